# SPDX-License-Identifier: Apache-2.0
"""What heads and neurons of an encoder cost, and the best ones that a budget allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.units import LayerShape, Units

MEASURES = ("flops", "macs", "parameters")


@dataclass(frozen=True)
class UnitCosts:
    """What one unit costs, the same in every layer.

    Whole numbers, so that sums of tens of thousands are exact in any order. Measured latencies, where units do not cost
    the same, are :class:`pyprune.latency.LatencyCosts`.

    Attributes
    ----------
    measure : str
        ``"flops"``, ``"macs"`` or ``"parameters"``.
    head, neuron : int
    """

    measure: str
    head: int
    neuron: int

    def of(self, half: int) -> int:
        """Cost of a unit of one half: 0 for heads, 1 for neurons."""
        return (self.head, self.neuron)[half]

    @property
    def fixed(self) -> int:
        """What is left without any units and counts: nothing."""
        return 0

    def kept(self, half: int, count: int) -> int:
        """Cost of so many units of one half of one layer."""
        return self.of(half) * count

    def by_threshold(self, scores: Sequence[Tensor], halves: Sequence[int], budget: int) -> list[Tensor]:
        """Masks ``[units]`` of all units whose score by cost is above the lowest threshold that a budget allows.

        Parameters
        ----------
        scores : sequence of Tensor, shape (units,)
            By half of a layer.
        halves : sequence of int
            Which half each is: 0 for heads, 1 for neurons.
        budget : int
        """
        pairs = list(zip(scores, halves, strict=True))
        costs = torch.cat([torch.full((len(score),), self.of(half), dtype=torch.int64) for score, half in pairs])
        kept = keep_best(torch.cat([(score / self.of(half)).cpu() for score, half in pairs]), costs, budget)
        return list(torch.split(kept, [len(score) for score in scores]))

    def by_sum(self, scores: Sequence[Tensor], halves: Sequence[int], budget: int) -> list[Tensor]:
        """Masks ``[units]`` of the largest sum of scores that a budget allows; as :meth:`by_threshold`."""
        places = [[index for index, half in enumerate(halves) if half == kind] for kind in (0, 1)]
        joined = [torch.cat([scores[0].new_zeros(0), *(scores[index] for index in own)]) for own in places]
        masks: list[Tensor] = [torch.empty(0)] * len(halves)
        for own, found in zip(places, best_split(joined[0], joined[1], self, budget), strict=True):
            for index, mask in zip(own, torch.split(found, [len(scores[index]) for index in own]), strict=True):
                masks[index] = mask
        return masks

    def total(self, units: Units) -> int:
        """Cost of all kept heads and neurons; heads count as whole ones."""
        layers = units.layers
        return self.head * sum(len(layer.heads) for layer in layers) + self.neuron * sum(
            len(layer.neurons) for layer in layers
        )


def unit_costs(units: Units, measure: str, tokens: float) -> UnitCosts:
    """Cost of a head and of a neuron.

    Multiply-adds of one sequence of ``tokens`` tokens: ``4·d·w·n + 2·n²·w`` a head of ``w`` channels, ``2·d·n`` a
    neuron (Kwon et al., NeurIPS 2022); FLOPs are twice that (Park et al., ICLR 2024). Parameters: weights and biases
    that go with the unit. Embeddings, norms, output biases and the head of the model are left out.

    Parameters
    ----------
    units : Units
        Of the encoder; only its sizes are read.
    measure : {"flops", "macs", "parameters"}
    tokens : float
        Mean tokens of a sequence. Costs are rounded to whole numbers.

    Examples
    --------
    >>> unit_costs(Units.dense(768, 12, 64, 3072, layers=12), "flops", 128)
    UnitCosts(measure='flops', head=54525952, neuron=393216)
    """
    if measure not in MEASURES:
        raise InputError(f"no budget is counted in {measure!r}", hint=f"one of {', '.join(MEASURES)}")
    one = LayerShape((units.width,), (units.width,), 0), LayerShape((), (), 1)
    if measure == "parameters":
        always = LayerShape((), (), 0).parameters(units.hidden)
        head, neuron = (unit.parameters(units.hidden) - always for unit in one)
        return UnitCosts(measure, head, neuron)
    if not (math.isfinite(tokens) and tokens > 0):
        raise InputError("operations are counted for a number of tokens above 0", seen=str(tokens))
    factor = 2 if measure == "flops" else 1
    head, neuron = (max(round(factor * unit.macs(units.hidden, tokens)), 1) for unit in one)
    return UnitCosts(measure, head, neuron)


def allowance(share: float, total: int) -> int:
    """The part ``share`` of ``total``, rounded down; ``share`` is read as the decimal that was written.

    >>> allowance(0.7, 10), allowance(0.29, 100)
    (7, 29)
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise InputError("a target is the part that is left, from 0 to 1", seen=repr(share), hint="0.4 keeps 40 %")
    return math.floor(Fraction(str(share)) * total)


def keep_best(scores: Tensor, costs: Tensor, budget: int) -> Tensor:
    """Keep units from the best score down, as long as together they cost no more than ``budget``.

    The first that does not fit ends it: the kept ones are exactly those above a threshold, ties going to the lower
    index. One sort and one prefix sum.

    Parameters
    ----------
    scores : Tensor, shape (units,)
        Larger is better. Two kinds of units compete if each score is divided by the cost of its unit.
    costs : Tensor of int64, shape (units,)
        At least 0.
    budget : int

    Returns
    -------
    Tensor of bool, shape (units,)

    Raises
    ------
    InputError
        Scores that are not finite, or costs that do not fit.

    Examples
    --------
    >>> keep_best(torch.tensor([1.0, 3.0, 1.0, 2.0]), torch.tensor([1, 1, 1, 1]), 3).tolist()
    [True, True, False, True]
    """
    _check(scores, costs)
    order = torch.argsort(scores, descending=True, stable=True)
    fits = costs[order].cumsum(0) <= budget
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[order[: int(fits.sum())]] = True
    return kept


def best_split(heads: Tensor, neurons: Tensor, costs: UnitCosts, budget: int) -> tuple[Tensor, Tensor]:
    """Keep the heads and neurons of the largest sum of scores that a budget allows; exact for two kinds of units.

    For every number of heads, the best heads and as many of the best neurons as still fit (Kwon et al., NeurIPS 2022,
    mask search). Equal sums go to fewer heads, equal scores to the lower index.

    Parameters
    ----------
    heads : Tensor, shape (a,)
    neurons : Tensor, shape (b,)
        Scores, at least 0.
    costs : UnitCosts
    budget : int

    Returns
    -------
    heads, neurons : Tensor of bool, shapes (a,) and (b,)

    Examples
    --------
    >>> best_split(torch.tensor([5.0, 1.0]), torch.tensor([2.0, 2.0]), UnitCosts("flops", 3, 1), 4)
    (tensor([ True, False]), tensor([ True, False]))
    """
    for scores in (heads, neurons):
        _check(scores, torch.ones(len(scores), dtype=torch.int64))
        if len(scores) and float(scores.min()) < 0:
            raise InputError("scores of a split may not be negative", seen=f"{float(scores.min()):g}")
    orders = [torch.argsort(scores, descending=True, stable=True) for scores in (heads, neurons)]
    sums = [
        torch.cat([scores.new_zeros(1, dtype=torch.float64), scores.double()[order].cumsum(0)])
        for scores, order in zip((heads, neurons), orders, strict=True)
    ]
    counts = torch.arange(len(heads) + 1)
    left = budget - costs.head * counts
    with_heads = torch.div(left.clamp(min=0), costs.neuron, rounding_mode="floor").clamp(max=len(neurons))
    worth = torch.where(left >= 0, sums[0] + sums[1][with_heads], -torch.inf)
    best = int(worth.argmax()) if budget >= 0 else 0
    found = []
    for scores, order, count in zip((heads, neurons), orders, (best, int(with_heads[best])), strict=True):
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[order[:count]] = True
        found.append(kept)
    return found[0], found[1]


def _check(scores: Tensor, costs: Tensor) -> None:
    if scores.dim() != 1 or costs.shape != scores.shape or costs.dtype != torch.int64:
        raise InputError(
            "scores and costs do not fit",
            asked="scores [units], costs int64 [units]",
            seen=f"{list(scores.shape)}, {costs.dtype} {list(costs.shape)}",
        )
    if not bool(torch.isfinite(scores).all()):
        raise InputError("a score is not finite", seen=f"{int((~torch.isfinite(scores)).sum())} of {len(scores)}")
    if len(costs) and int(costs.min()) < 0:
        raise InputError("a unit cannot cost less than nothing", seen=str(int(costs.min())))
