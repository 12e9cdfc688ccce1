# SPDX-License-Identifier: Apache-2.0
"""Models without their zeros: compressed layers, the files that hold them, and an encoder's layers as one module."""

from __future__ import annotations

from pyprune.sparse.linear import SparseLinear
from pyprune.sparse.packed import PackedEncoder, optimize
from pyprune.sparse.replace import sparsify

__all__ = ["PackedEncoder", "SparseLinear", "optimize", "sparsify"]
