# SPDX-License-Identifier: Apache-2.0
"""SparseGPT (Frantar & Alistarh 2023): fixed column order, one shared factor, exact counts."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.patterns import NM, Block, Pattern, Unstructured, kept_count
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem


def sparsegpt(problem: LayerProblem, pattern: Pattern, damping: float, *, block: int = 128) -> Outcome:
    """Sweep the columns left to right.

    ``scope="layer"`` lets the rows of a block of columns compete, as published; unlike the published code the
    count is exact, because blocks share the rounding of the whole matrix.

    Parameters
    ----------
    block : int
        Columns whose mask is chosen at once, rounded up to a multiple of the group of N:M or the width of blocks.
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
    elif isinstance(pattern, Block):
        block = -(-block // pattern.cols) * pattern.cols
        weight, mask = _sweep_blocks(pattern, start, reverse, block)
    else:
        raise InputError(f"sparsegpt does not know the pattern {pattern.describe()}")
    return Outcome(weight, mask, factor)


def _prune_per_block(pattern: Unstructured, shape: tuple[int, int], block: int) -> Tensor:
    """Weights to remove from each block of columns; the partial sums are rounded, so the total is exact."""
    rows, cols = shape
    height = 1 if pattern.scope == "row" else rows
    ends = [*range(block, cols, block), cols] if cols else []
    removed = torch.tensor([0] + [height * end - kept_count(height * end, pattern.sparsity) for end in ends])
    return removed.diff()


def _sweep_blocks(pattern: Block, start: Tensor, reverse: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """The sweep by ``span`` columns at a time, which lose the blocks of the pattern that cost least.

    With ``H = R Rᵀ`` and weights that have made up for all that went to their left, removing the columns ``B`` of a
    row costs ``‖w_B R_BB‖²`` where everything to the right of ``B`` adapts: the published ``(w_j R_jj)²`` for a single
    column.
    """
    rows, cols = start.shape
    weight, change = torch.empty_like(start), torch.zeros_like(start)
    mask = torch.empty(rows, cols, dtype=torch.bool, device=start.device)
    for first in range(0, cols, span):
        stop = min(first + span, cols)
        part, own = slice(first, stop), reverse[first:stop, first:stop].contiguous()
        # What makes the loss of these columns vanish if nothing of them goes: (change R)_part = 0.
        pushed = ops.matmul(change[:, :first], reverse[:first, part])
        current = start[:, part] - torch.linalg.solve_triangular(own, pushed, upper=True, left=False)
        count = pattern.kept_blocks(rows, stop) - pattern.kept_blocks(rows, first)
        kept = pattern.expand(ops.select(pattern.sizes(_losses(current, own, pattern.cols)), count, pattern.scope))
        swept, _ = ops.sparsegpt(current, own, mask=kept, block=span)
        weight[:, part], mask[:, part], change[:, part] = swept, kept, swept - start[:, part]
    return weight, mask


def _losses(weight: Tensor, factor: Tensor, width: int) -> Tensor:
    """``|w_B R_BB|`` for every run ``B`` of ``width`` columns, ``[rows, columns]``: roots of the losses' summands."""
    runs = weight.shape[1] // width
    each = torch.arange(runs, device=weight.device)
    diagonal = factor.reshape(runs, width, runs, width)[each, :, each]
    return torch.einsum("rbi,bij->rbj", weight.reshape(-1, runs, width), diagonal).reshape(weight.shape).abs()
