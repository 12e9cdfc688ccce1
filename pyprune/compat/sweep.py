# SPDX-License-Identifier: Apache-2.0
"""SparseGPT's sweep in torch for what the compiled one does not know: a grid for kept weights, weights already gone."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from pyprune import ops
from pyprune.compat.grid import Rounding
from pyprune.errors import InputError
from pyprune.patterns import NM, Unstructured, kept_count
from pyprune.solvers import LayerProblem, LayerSolution

# What stays of some columns, bool [rows, span]: given the first column's index, their scores, and what is not gone yet.
Choice = Callable[[int, Tensor, Tensor], Tensor]


def sweep(
    problem: LayerProblem,
    pattern: Unstructured | NM,
    damping: float,
    block: int,
    *,
    gone: Tensor | None = None,
    rounding: Rounding | None = None,
) -> LayerSolution:
    """Columns left to right; what a column loses by pruning and rounding is pushed onto the columns to its right.

    Parameters
    ----------
    problem : LayerProblem
    pattern : Unstructured or NM
        With scope ``"layer"``: the rows of a block of columns compete, and the count of the layer is exact.
    damping : float
        Relative to the mean diagonal.
    block : int
        Columns whose mask is chosen at once; for N:M rounded up to a multiple of the group.
    gone : Tensor of bool, shape (out, in), optional
        Weights that are gone already. They count, and are taken first; a group of N:M that has lost more than the
        pattern asks for stays as it is.
    rounding : callable, optional
        Puts the kept weights of all rows on their grids; pruned weights are zero whatever the grid.

    Raises
    ------
    InputError
        ``block`` is not positive, the pattern does not fit, or more is gone than the pattern removes.
    """
    rows, cols = problem.shape
    pattern.check(rows, cols, problem.name)
    if block < 1:
        raise InputError(f"{problem.name}: the block must be positive", seen=str(block))
    kept = torch.ones(rows, cols, dtype=torch.bool, device=problem.weight.device) if gone is None else ~gone
    if int(kept.sum()) < pattern.kept(rows, cols):
        raise InputError(
            f"{problem.name}: more weights are gone than the pattern removes",
            asked=f"{pattern.describe()}: {rows * cols - pattern.kept(rows, cols)} of {rows * cols}",
            seen=f"{int((~kept).sum())} zeros",
            hint="a higher sparsity, or do not preserve the old mask",
        )
    if isinstance(pattern, NM):
        block = -(-block // pattern.of) * pattern.of
        return _run(problem, damping, block, kept, rounding, _by_groups(pattern), pattern.of)
    return _run(problem, damping, block, kept, rounding, _by_blocks(pattern, kept, block), block)


def sweep_mask(
    problem: LayerProblem, mask: Tensor, damping: float, block: int, rounding: Rounding | None = None
) -> LayerSolution:
    """As :func:`sweep`, on a mask that was chosen before (``[out, in]``, True = kept)."""
    return _run(problem, damping, block, mask.clone(), rounding, None, block)


def _run(
    problem: LayerProblem,
    damping: float,
    block: int,
    kept: Tensor,
    rounding: Rounding | None,
    choice: Choice | None,
    span: int,
) -> LayerSolution:
    begin = time.perf_counter()
    factor = problem.factorise(damping)
    upper, weight = _inverse_upper(problem.gram, factor.ridge), problem.weight.double().clone()
    for start in range(0, weight.shape[1], block):
        columns = slice(start, start + block)
        pivots, part, mask = upper[columns, columns], weight[:, columns], kept[:, columns]
        pushed = torch.zeros_like(part)
        for j in range(part.shape[1]):
            if choice is not None and j % span == 0:
                group = slice(j, j + span)
                scores = (part[:, group] / pivots.diagonal()[group]) ** 2
                mask[:, group] = choice(start + j, scores, mask[:, group])
            before = part[:, j].clone()
            after = before if rounding is None else rounding(before[:, None])[:, 0]
            after = torch.where(mask[:, j], after, 0.0)
            pushed[:, j] = (before - after) / pivots[j, j]
            part[:, j:] -= torch.outer(pushed[:, j], pivots[j, j:])
            part[:, j] = after
        weight[:, start + block :] -= pushed @ upper[columns, start + block :]
    stored = weight.to(problem.weight.dtype)
    return LayerSolution(
        weight=stored,
        mask=kept,
        damping=factor.damping,
        seconds=time.perf_counter() - begin,
        solver="sparsegpt",
        notes=factor.notes,
        problem=problem,
        factor=factor,
    )


def _inverse_upper(gram: Tensor, ridge: float) -> Tensor:
    """Upper ``U`` with ``(gram + ridge I)⁻¹ = UᵀU``: the inverse of ``R`` with ``gram + ridge I = R Rᵀ``, R upper."""
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    reverse = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(reverse), dtype=reverse.dtype, device=reverse.device)
    upper: Tensor = torch.linalg.solve_triangular(reverse, identity, upper=True)
    return upper


def _by_groups(pattern: NM) -> Choice:
    def choice(column: int, scores: Tensor, mask: Tensor) -> Tensor:
        return ops.nm(torch.where(mask, scores, -1.0), pattern.keep, pattern.of) & mask

    return choice


def _by_blocks(pattern: Unstructured, kept: Tensor, block: int) -> Choice:
    """Each block removes its share, or what is gone already; later blocks make up for that, so the total is exact."""
    rows, cols = kept.shape
    gone = [int((~kept[:, start : start + block]).sum()) for start in range(0, cols, block)]
    total = rows * cols - pattern.kept(rows, cols)
    quotas: dict[int, int] = {}  # by the first column of a block
    removed = 0
    for index, gone_here in enumerate(gone):
        end = min((index + 1) * block, cols)
        share = rows * end - kept_count(rows * end, pattern.sparsity) - removed
        quotas[index * block] = min(max(share, gone_here), total - removed - sum(gone[index + 1 :]))
        removed += quotas[index * block]

    def choice(column: int, scores: Tensor, mask: Tensor) -> Tensor:
        wanted = scores.numel() - quotas[column]
        return ops.select(torch.where(mask, scores, -1.0), wanted, "layer")

    return choice
