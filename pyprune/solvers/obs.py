# SPDX-License-Identifier: Apache-2.0
"""Exact greedy OBS: row-uniform, N:M, blocks, or with the budget allocated across rows by their loss traces."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.patterns import NM, Block, Pattern, Unstructured
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem
from pyprune.solvers.refit import refit


def obs(problem: LayerProblem, pattern: Pattern, damping: float) -> Outcome:
    """Remove the weight of least loss, again and again, refitting the rest each time.

    ``scope="layer"`` runs every row down to nothing, then spends the budget where the losses are smallest
    (OBC, Frantar et al. 2022, section 4.2, "global step"), and refits exactly on that support. With blocks it is whole
    blocks that go, and rows of blocks that compete.

    Weights are chosen in float32 where that was enough to factor the gram (:attr:`Factorisation.reverse`); what they
    end in is float64.
    """
    factor = problem.factorise(damping)
    start = problem.start(damping)
    rows, cols = problem.shape
    dtype = factor.reverse.dtype
    if isinstance(pattern, NM):
        count = cols // pattern.of * (pattern.of - pattern.keep)
        weight, order, _ = ops.obs(factor.inverse, start, count, keep=pattern.keep, of=pattern.of, dtype=dtype)
        return Outcome(weight, _mask(order, rows, cols), factor)
    if isinstance(pattern, Block):
        return _by_blocks(problem, pattern, start, damping)
    if not isinstance(pattern, Unstructured):
        raise InputError(f"obs does not know the pattern {pattern.describe()}")
    if pattern.scope == "row":
        weight, order, _ = ops.obs(factor.inverse, start, cols - pattern.kept_per_row(cols), dtype=dtype)
        return Outcome(weight, _mask(order, rows, cols), factor)
    _, order, loss = ops.obs(factor.inverse, start, cols, dtype=dtype)
    mask = _mask(_allocate(order, loss, rows * cols - pattern.kept(rows, cols)), rows, cols)
    return refit(problem, mask, damping)


def _by_blocks(problem: LayerProblem, pattern: Block, start: Tensor, damping: float) -> Outcome:
    factor = problem.factorise(damping)
    rows, cols = problem.shape
    groups, blocks = pattern.grid(rows, cols)
    count = blocks - pattern.kept_blocks(rows, cols) if pattern.scope == "row" else blocks
    weight, order, loss = ops.block_obs(factor.inverse, start, count, height=pattern.rows, width=pattern.cols)
    if pattern.scope == "row":
        return Outcome(weight, pattern.expand(_mask(order, groups, blocks)), factor)
    order = _allocate(order, loss, groups * blocks - pattern.kept_blocks(rows, cols))
    return refit(problem, pattern.expand(_mask(order, groups, blocks)), damping)


def _mask(order: Tensor, rows: int, cols: int) -> Tensor:
    """True where a column (or a block) does not occur in the row's removal order (-1 is padding)."""
    mask = torch.ones(rows, cols + 1, dtype=torch.bool, device=order.device)
    mask.scatter_(1, torch.where(order < 0, cols, order), False)
    return mask[:, :cols].contiguous()


def _allocate(order: Tensor, loss: Tensor, budget: int) -> Tensor:
    """Blank out (with -1) all but ``budget`` removals, the cheapest over all rows that form a prefix in each.

    A row's losses need not rise from step to step; their running maximum does, so that choosing the smallest of
    all rows always takes a prefix.
    """
    if loss.numel() == 0:
        return order
    envelope = loss.cummax(dim=1).values.reshape(-1)
    chosen = torch.argsort(envelope, stable=True)[:budget]
    taken = torch.zeros_like(envelope, dtype=torch.bool).scatter_(0, chosen, True).reshape(order.shape)
    return torch.where(taken, order, -1)
