# SPDX-License-Identifier: Apache-2.0
"""Exact greedy OBS: row-uniform, N:M, blocks, or with the budget allocated across rows by their loss traces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.patterns import NM, Block, Pattern, Unstructured
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem
from pyprune.solvers.refit import refit


@dataclass(frozen=True)
class _Asked:
    """A pattern as greedy removal sees it.

    Attributes
    ----------
    kind : Pattern
        What it has in common with the patterns that one run serves.
    grid : (int, int)
        Rows and columns of what goes as a whole: weights or blocks.
    removed : int
        How many of them, of each row, or of all where rows compete.
    compete : bool
    """

    kind: Pattern
    grid: tuple[int, int]
    removed: int
    compete: bool

    @property
    def steps(self) -> int:
        """Removals from each row."""
        return self.grid[1] if self.compete else self.removed


class _Run(NamedTuple):
    """What went in which order at what loss, and the weights after some numbers of steps."""

    weights: dict[int, Tensor]
    order: Tensor
    loss: Tensor


def obs(problem: LayerProblem, pattern: Pattern, damping: float) -> Outcome:
    """Remove the weight of least loss, again and again, refitting the rest each time.

    ``scope="layer"`` runs every row down to nothing, then spends the budget where the losses are smallest
    (OBC, Frantar et al. 2022, section 4.2, "global step"), and refits exactly on that support. With blocks it is whole
    blocks that go, and rows of blocks that compete.

    Weights are chosen in float32 where that was enough to factor the gram (:attr:`Factorisation.reverse`); what they
    end in is float64.
    """
    (outcome,) = obs_curve(problem, [pattern], damping)
    return outcome


def obs_curve(problem: LayerProblem, patterns: Sequence[Pattern], damping: float) -> Iterator[Outcome]:
    """The same for several patterns, by one run for all that differ only in how much goes.

    Greedy removal is nested: what is gone at a lower sparsity is a prefix of what is gone at a higher one. So each
    kind of pattern is run once, as far down as its sparsest needs, and the others are read off on the way. N:M is
    not nested (a group that is full changes what follows), and each has a run of its own.
    """
    asked = [_ask(pattern, *problem.shape) for pattern in patterns]
    steps: dict[Pattern, set[int]] = {}
    for one in asked:
        steps.setdefault(one.kind, set()).add(one.steps)
    runs = {kind: _run(problem, kind, sorted(points), damping) for kind, points in steps.items()}
    return (_read(problem, one, runs[one.kind], damping) for one in asked)


def _ask(pattern: Pattern, rows: int, cols: int) -> _Asked:
    if isinstance(pattern, NM):
        return _Asked(pattern, (rows, cols), cols // pattern.of * (pattern.of - pattern.keep), compete=False)
    if isinstance(pattern, Block):
        grid, kept = pattern.grid(rows, cols), pattern.kept_blocks(rows, cols)
    elif isinstance(pattern, Unstructured):
        grid = rows, cols
        kept = pattern.kept_per_row(cols) if pattern.scope == "row" else pattern.kept(rows, cols)
    else:
        raise InputError(f"obs does not know the pattern {pattern.describe()}")
    compete = pattern.scope == "layer"
    kind = dataclasses.replace(pattern, sparsity=1.0, scope="layer")
    return _Asked(kind, grid, (grid[0] * grid[1] if compete else grid[1]) - kept, compete)


def _run(problem: LayerProblem, kind: Pattern, points: list[int], damping: float) -> _Run:
    factor, start = problem.factorise(damping), problem.start(damping)
    if isinstance(kind, Block):
        weight, order, loss = ops.block_obs(factor.inverse, start, points[-1], height=kind.rows, width=kind.cols)
        return _Run({points[-1]: weight}, order, loss)
    keep, of = (kind.keep, kind.of) if isinstance(kind, NM) else (0, 0)
    count = torch.tensor(points).to(start.device)[:, None].expand(-1, len(start))
    weights, order, loss = ops.obs(factor.inverse, start, count, keep=keep, of=of, dtype=factor.reverse.dtype)
    return _Run(dict(zip(points, weights, strict=True)), order, loss)


def _read(problem: LayerProblem, asked: _Asked, run: _Run, damping: float) -> Outcome:
    order = _allocate(run.order, run.loss, asked.removed) if asked.compete else run.order[:, : asked.removed]
    mask = _mask(order, *asked.grid)
    if isinstance(asked.kind, Block):
        mask = asked.kind.expand(mask)
    if asked.compete or asked.removed not in run.weights:
        return refit(problem, mask, damping)
    return Outcome(run.weights[asked.removed], mask, problem.factorise(damping))


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
