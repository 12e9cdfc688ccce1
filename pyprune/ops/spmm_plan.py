# SPDX-License-Identifier: Apache-2.0
"""Whether a matrix is multiplied faster without its zeros or with them: a pure function of what is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops.sparse_weight import VALUE_TYPES

# Share of kept weights up to which spmm was at least as fast as torch's linear, by the most tokens it holds for.
CROSSOVERS = {
    "avx2": ((1, 0.5), (8, 0.9), (None, 0.8)),
    "avx512": ((1, 0.3), (8, 0.4), (None, 0.6)),
    "avx512bf16": ((1, 0.3), (8, 0.4), (None, 0.6)),
}
FEWEST = 4096


@dataclass(frozen=True)
class Verdict:
    """What to store a matrix as, and why in words."""

    format: str  # "sparse" or "dense"
    reason: str


def faster(
    out: int, columns: int, density: float, *, dtype: torch.dtype, tokens: int, isa: str | None = None
) -> Verdict:
    """Which is faster on a CPU."""
    raise NotImplementedError
