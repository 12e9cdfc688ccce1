# SPDX-License-Identifier: Apache-2.0
"""Pairs exchanged in a mask, one in and one out, until none makes the loss fall: what ``swap`` and ``best`` end in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyprune import ops
from pyprune.patterns import NM, Block, Pattern, Unstructured
from pyprune.solvers.block_exchange import exchange_blocks
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem
from pyprune.solvers.refit import whole_rows_as_they_were

_LEAST = 1e-5  # of its row's loss, that an exchange has to gain
_TRADES = 40  # rounds of exchanges between rows
# What a row's tableau may cost (multiply-adds), and on how many columns it works at a time where all cost more: 3,072
# columns at 50 % are still done at once. Tableaus of blocks are made by torch.
_WORK, _PART = 6e9, 2048
_BLOCK_WORK, _BLOCK_PART = 3e8, 1024
_FALL = 1e-3  # of the loss, by which a round on parts of the columns has to lower it for another one


def exchange(
    problem: LayerProblem, pattern: Pattern, mask: Tensor, damping: float, *, most: int | None = None
) -> Outcome:
    """Improve ``mask`` ``[out, in]`` by exchanges that keep the pattern, and fit exactly on what comes of it.

    First inside each row (N:M: inside each group), the best pair first, until none is left that gains a hundred
    thousandth of the row's loss. Where rows compete, then between them: what one row loses least by giving goes to the
    row that gains most, one change a row and a round. Nothing is believed that the exact fit does not confirm: the loss
    never rises.

    Very wide rows (:func:`part_of`) look at their most promising columns at a time, the others' weights staying as they
    are; an exchange then gains at least what it promises, but a mask where none is left may still have some.
    """
    search = _Search(problem, pattern, mask, damping, most)
    search.settle()
    if isinstance(pattern, (Unstructured, Block)) and pattern.scope == "layer" and most is None:
        for _ in range(_TRADES):
            if not search.trade():
                break
    return search.outcome()


def part_of(columns: int, kept: float, blocks: bool = False) -> int:
    """How many of a row's ``columns`` are looked at at a time, by what a tableau of all of them costs."""
    smaller = min(kept, columns - kept)
    most, part = (_BLOCK_WORK, _BLOCK_PART) if blocks else (_WORK, _PART)
    return columns if smaller**2 * (columns - smaller / 2) <= most else min(part, columns)


def price(problem: LayerProblem, pattern: Pattern) -> float:
    """What :func:`exchange` costs, in iterations of the mask search; measured on layers of 384 columns.

    Infinite for blocks, whose tableaus torch makes, and on GPUs, where it has not been measured.
    """
    columns = problem.shape[1]
    if problem.gram.is_cuda or (isinstance(pattern, Block) and pattern.rows * pattern.cols > 1):
        return math.inf
    smaller = min(pattern.sparsity, 1 - pattern.sparsity)
    build = smaller**2 * (1 - smaller / 2) * columns
    return 30 + (0.8 if isinstance(pattern, NM) else 1.75) * build


class _Search:
    """Masks of units (weights, or blocks): rows of them, what each is worth, and the fit."""

    def __init__(self, problem: LayerProblem, pattern: Pattern, mask: Tensor, damping: float, most: int | None) -> None:
        self._problem, self._damping, self._most = problem, damping, most
        self._factor = problem.factorise(damping)
        self._height, self._width = (pattern.rows, pattern.cols) if isinstance(pattern, Block) else (1, 1)
        self._of = pattern.of if isinstance(pattern, NM) else 0
        self._system = problem.gram.clone()
        self._system.diagonal().add_(self._factor.ridge)
        self._target = problem.rhs() + self._factor.ridge * problem.weight.double()
        self._start = problem.start(damping)
        self._units = mask[:: self._height, :: self._width].clone()
        single = self._height == self._width == 1
        kept = float(mask.sum()) / max(1, len(mask))
        self._at_once = part_of(mask.shape[1], kept, blocks=not single)
        self._worth = torch.zeros(self._units.shape, dtype=torch.float64, device=mask.device)
        every = torch.arange(len(self._units), device=mask.device)
        self._weight, self._loss = self._fit(every, self._units)

    def outcome(self) -> Outcome:
        """Mask and weights as they are now."""
        mask = self._mask(self._units)
        weight = whole_rows_as_they_were(self._problem, self._weight, mask, self._damping)
        return Outcome(weight, mask, self._factor)

    def settle(self) -> None:
        """Exchange inside rows; a row whose loss did not fall stays as it was."""
        every = torch.arange(len(self._units), device=self._units.device)
        while len(every):
            before = float(self._loss.sum())
            found, worth = self._exchanged(every, self._units)
            weight, loss = self._fit(every, found)
            better = loss <= self._loss
            chosen = every[better]
            self._take(chosen, found[better], worth[better], weight[self._rows(better.nonzero()[:, 0])], loss[better])
            self._worth[~better] = torch.where(self._units, torch.inf, 0.0).double()[~better]
            done = self._at_once == self._system.shape[0] or self._most is not None
            if done or before - float(self._loss.sum()) <= _FALL * before:
                break

    def trade(self) -> bool:
        """One round between rows; whether the loss fell."""
        if not self._units.numel():
            return False
        give = torch.where(self._units, self._worth, torch.inf).min(dim=1)
        take = torch.where(self._units, 0.0, self._worth).max(dim=1)
        givers, takers = _matched(give.values, take.values, _LEAST * float(self._loss.mean()))
        if not givers:
            return False
        units = self._units.clone()
        giving, taking, groups = (
            torch.tensor(rows).to(units.device) for rows in (givers, takers, sorted(givers + takers))
        )
        units[giving, give.indices[giving]] = False
        units[taking, take.indices[taking]] = True
        found, worth = self._exchanged(groups, units[groups])
        weight, loss = self._fit(groups, found)
        if not float(loss.sum()) < float(self._loss[groups].sum()):
            return False
        self._take(groups, found, worth, weight, loss)
        return True

    def _take(self, groups: Tensor, units: Tensor, worth: Tensor, weight: Tensor, loss: Tensor) -> None:
        self._units[groups], self._worth[groups], self._loss[groups] = units, worth, loss
        self._weight[self._rows(groups)] = weight

    def _rows(self, groups: Tensor) -> Tensor:
        """Rows of the matrix that belong to rows of units."""
        return (groups[:, None] * self._height + torch.arange(self._height, device=groups.device)).reshape(-1)

    def _mask(self, units: Tensor) -> Tensor:
        return units.repeat_interleave(self._height, dim=0).repeat_interleave(self._width, dim=1)

    def _fit(self, groups: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Exact weights and the loss of each row of units."""
        rows = self._rows(groups)
        weight = ops.masked_lstsq(self._system, self._target[rows], self._mask(units))
        change = weight - self._start[rows]
        loss = (ops.matmul(change, self._system) * change).sum(dim=1)
        return weight, loss.reshape(len(groups), self._height).sum(dim=1)

    def _exchanged(self, groups: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Units after the exchanges inside rows, and what each is worth then."""
        rows, least = self._rows(groups), _LEAST * self._loss[groups]
        part, target = None, self._target[rows]
        if self._at_once < self._system.shape[0]:
            part, target = self._part(rows, units)
        if self._height == self._width == 1:
            inverse = None
            if part is None and 2 * int(units.sum()) > units.numel():
                inverse = self._factor.inverse
            found, _, worth = ops.swap(
                self._system,
                target,
                units,
                least=least,
                most=self._most,
                of=self._of,
                columns=part,
                inverse=inverse,
                dtype=self._factor.reverse.dtype,
            )
            return found, worth
        return self._exchanged_blocks(units, target, part, least)

    def _exchanged_blocks(
        self, units: Tensor, target: Tensor, part: Tensor | None, least: Tensor
    ) -> tuple[Tensor, Tensor]:
        found = units.clone()
        worth = torch.where(units, torch.inf, 0.0).double()
        everything = torch.arange(units.shape[1], device=units.device)
        within = torch.arange(self._width, device=units.device)
        for g in range(len(units)):
            blocks = everything if part is None else part[g]
            columns = (blocks[:, None] * self._width + within).reshape(-1)
            own = target[g * self._height : (g + 1) * self._height, columns]
            found[g, blocks], _, worth[g, blocks] = exchange_blocks(
                self._system[columns][:, columns], own, units[g, blocks], self._width, float(least[g]), self._most
            )
        return found, worth

    def _part(self, rows: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """The most promising units of each row of them, ascending, and the target that all others leave.

        Estimates from the diagonal of the inverse of the whole system: what a weight costs at least, what a gradient
        gains at most. As many kept as pruned ones are taken, or whole groups of N:M.
        """
        mask = self._mask(units)
        weight = ops.masked_lstsq(self._system, self._target[rows], mask)
        gradient = ops.matmul(weight, self._system, self._target[rows].clone(), scale=-1.0)
        diagonal = self._factor.inverse.diagonal()
        shape = (len(units), self._height, units.shape[1], self._width)
        cost = (weight.square() / diagonal).reshape(shape).sum(dim=(1, 3))
        gain = (gradient.square() * diagonal).reshape(shape).sum(dim=(1, 3))
        part = _promising(units, cost, gain, max(1, self._at_once // self._width), self._of)
        chosen = torch.zeros_like(units).scatter_(1, part, True)
        outside = weight.masked_fill(self._mask(chosen), 0.0)
        return part, ops.matmul(outside, self._system, self._target[rows].clone(), scale=-1.0)


def _promising(units: Tensor, cost: Tensor, gain: Tensor, count: int, of: int) -> Tensor:
    """Indices of about ``count`` units in each row, ascending: cheap ones that are kept and dear ones that are not."""
    if of:
        groups = units.shape[1] // of
        cheapest = torch.where(units, cost, torch.inf).reshape(-1, groups, of).amin(dim=2)
        dearest = torch.where(units, 0.0, gain).reshape(-1, groups, of).amax(dim=2)
        best = (dearest - cheapest).argsort(dim=1, descending=True, stable=True)[:, : max(1, count // of)]
        return (best.sort(dim=1).values[:, :, None] * of + torch.arange(of, device=units.device)).flatten(1)
    # By rank among one's own kind: as many of both, until one of them is exhausted.
    kept, rest = (
        torch.where(own, score, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        for own, score in ((units, cost), (~units, -gain))
    )
    return torch.where(units, kept, rest).argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


def _matched(give: Tensor, take: Tensor, least: float) -> tuple[list[int], list[int]]:
    """Rows that give and rows that take, no row twice, the best pairs first, while one gains more than ``least``."""
    givers, takers = give.argsort(stable=True).tolist(), take.argsort(descending=True, stable=True).tolist()
    losses, gains = give.tolist(), take.tolist()
    giving: list[int] = []
    taking: list[int] = []
    used: set[int] = set()
    row, column = 0, 0
    while row < len(givers) and column < len(takers):
        giver, taker = givers[row], takers[column]
        if giver in used:
            row += 1
        elif taker in used or taker == giver:
            column += 1
        elif gains[taker] - losses[giver] > least:
            giving.append(giver)
            taking.append(taker)
            used |= {giver, taker}
        else:
            break
    return giving, taking
