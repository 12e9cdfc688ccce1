# SPDX-License-Identifier: Apache-2.0
"""The version, in one place; the build reads it from the text of this file."""

__version__ = "0.1.0"
