# SPDX-License-Identifier: Apache-2.0
"""Models without their zeros."""

from __future__ import annotations

from pyprune.sparse.optimize import PackedEncoder, optimize

__all__ = ["PackedEncoder", "optimize"]
