# SPDX-License-Identifier: Apache-2.0
"""The protocol of the AKR paper, which the scripts `akr_*.py` run for one task each."""
