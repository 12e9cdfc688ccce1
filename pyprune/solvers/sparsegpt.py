# SPDX-License-Identifier: Apache-2.0
"""SparseGPT (Frantar & Alistarh 2023): fixed column order, one shared factor, exact counts."""

from __future__ import annotations

import torch

from pyprune import ops
from pyprune.errors import InputError
from pyprune.patterns import NM, Pattern, Unstructured, kept_count
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem


def sparsegpt(problem: LayerProblem, pattern: Pattern, damping: float, *, block: int = 128) -> Outcome:
    """Sweep the columns left to right.

    ``scope="layer"`` lets the rows of a block of columns compete, as published; unlike the published code the
    count is exact, because blocks share the rounding of the whole matrix.

    Parameters
    ----------
    block : int
        Columns whose mask is chosen at once. For N:M it is rounded up to a multiple of the group.
    """
    if block < 1:
        raise InputError("sparsegpt: block must be positive", seen=str(block))
    factor = problem.factorise(damping)
    # In float32, as published, wherever that carries the factor; in float64 for float64 weights.
    single = problem.weight.dtype != torch.float64 and factor.reverse.dtype == torch.float32
    start = problem.start(damping, torch.float32 if single else torch.float64)
    reverse = factor.reverse if single else factor.reverse_double
    if isinstance(pattern, NM):
        block = -(-block // pattern.of) * pattern.of
        weight, mask = ops.sparsegpt(start, reverse, keep=pattern.keep, of=pattern.of, block=block)
    elif isinstance(pattern, Unstructured):
        per_row = pattern.scope == "row"
        counts = _prune_per_block(pattern, problem.shape, block)
        weight, mask = ops.sparsegpt(start, reverse, prune=counts.to(start.device), per_row=per_row, block=block)
    else:
        raise InputError(f"sparsegpt does not know the pattern {pattern.describe()}")
    return Outcome(weight, mask, factor)


def _prune_per_block(pattern: Unstructured, shape: tuple[int, int], block: int) -> torch.Tensor:
    """Weights to remove from each block of columns; the partial sums are rounded, so the total is exact."""
    rows, cols = shape
    height = 1 if pattern.scope == "row" else rows
    ends = [*range(block, cols, block), cols] if cols else []
    removed = torch.tensor([0] + [height * end - kept_count(height * end, pattern.sparsity) for end in ends])
    return removed.diff()
