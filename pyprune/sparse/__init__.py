# SPDX-License-Identifier: Apache-2.0
"""Models without their zeros: compressed layers, and the files that hold them."""

from __future__ import annotations

from pyprune.sparse.linear import SparseLinear
from pyprune.sparse.replace import sparsify

__all__ = ["SparseLinear", "sparsify"]
