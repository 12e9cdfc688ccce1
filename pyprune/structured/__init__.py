# SPDX-License-Identifier: Apache-2.0
"""Encoders that are physically smaller: heads, channels of heads and neurons that were cut are not there any more."""

from __future__ import annotations

from pyprune.structured.cutting import compact, dense_units, masked

__all__ = ["compact", "dense_units", "masked"]
