# SPDX-License-Identifier: Apache-2.0
"""How long halves of layers take by what is left of them: tables of times, and the units that a time allows."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import write_atomically
from pyprune.units import Units

VERSION = 1
WAYS = ("optimized", "eager")
_TICKS = 8192  # what a budget is divided into while units are searched
_NUMBERS = ("empty", "rest")
_SIZES = ("batch", "length", "threads")


@dataclass(frozen=True)
class LatencyTable:
    """Times of one call of an encoder whose layers are all alike, on one machine.

    Attributes
    ----------
    way : str
        What was timed: ``"optimized"`` (:func:`pyprune.optimize`) or ``"eager"``, the smaller model as it is.
    batch, length, threads : int
        Sequences of a call, tokens of each, and threads.
    heads, neurons : dict of int to float
        Seconds that a half of a layer takes longer than without units, by the number of units kept, as measured.
        The largest number is that of the dense layer.
    empty : float
        Seconds of a layer without units: its norms.
    rest : float
        Seconds of a call outside the layers.
    machine : str
        The processor.
    """

    way: str
    batch: int
    length: int
    threads: int
    heads: dict[int, float]
    neurons: dict[int, float]
    empty: float
    rest: float
    machine: str = ""

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        counted = {
            name: {str(count): seconds for count, seconds in sorted(getattr(self, name).items())}
            for name in ("heads", "neurons")
        }
        plain = {name: getattr(self, name) for name in ("way", *_SIZES, *_NUMBERS, "machine")}
        return {"version": VERSION, **plain, **counted}

    @classmethod
    def from_json(cls, value: object) -> LatencyTable:
        """A table as :meth:`to_json` wrote it.

        Raises
        ------
        InputError
            Anything else; the message names the entry.
        """
        names = {"version", "way", *_SIZES, *_NUMBERS, "machine", "heads", "neurons"}
        if not isinstance(value, dict) or value.keys() != names or value["version"] != VERSION:
            raise InputError("not a table of latencies", asked=", ".join(sorted(names)), seen=repr(value)[:200])
        if value["way"] not in WAYS:
            seen = repr(value["way"])[:80]
            raise InputError("a table of latencies is of an unknown way", asked=", ".join(WAYS), seen=seen)
        for name in _SIZES:
            if type(value[name]) is not int or value[name] < 1:
                raise InputError(f"a table of latencies: {name} is at least 1", seen=repr(value[name])[:80])
        for name in _NUMBERS:
            _seconds(value[name], name)
        counted: dict[str, Any] = {name: _counted(value[name], name) for name in ("heads", "neurons")}
        plain: dict[str, Any] = {name: value[name] for name in ("way", *_SIZES)}
        plain |= {name: float(value[name]) for name in _NUMBERS}
        return cls(**plain, **counted, machine=str(value["machine"])[:200])

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        path = Path(path).expanduser()
        write_atomically(path, (json.dumps(self.to_json(), indent=1) + "\n").encode(), "a table of latencies")
        return path

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table, or the one that a pruned model was made with: its folder, or its ``pyprune.json``.

        Raises
        ------
        InputError
            There is none.
        """
        path = Path(path).expanduser()
        path = path / "pyprune.json" if path.is_dir() else path
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"no table of latencies in {path}", seen=str(error)[:200]) from None
        if isinstance(value, dict) and "version" not in value:
            report = value.get("report", value)
            budget = report.get("budget") if isinstance(report, dict) else None
            value = budget.get("table") if isinstance(budget, dict) else None
        return cls.from_json(value)


@dataclass(frozen=True)
class LatencyCosts:
    """What is kept of a half of a layer, in nanoseconds; see :func:`latency_costs`.

    Attributes
    ----------
    heads, neurons : tuple of int
        Cost by the number of units kept, from none, which costs nothing; never falling.
    fixed : int
        What is left without any units.
    table : LatencyTable, optional
        What they were made of.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    fixed: int
    table: LatencyTable | None = field(default=None, repr=False)

    measure = "latency"

    def of(self, half: int) -> int:
        """Mean cost of a unit of one half: 0 for heads, 1 for neurons."""
        costs = (self.heads, self.neurons)[half]
        return costs[-1] // max(len(costs) - 1, 1)

    @property
    def head(self) -> int:
        """Mean cost of a head."""
        return self.of(0)

    @property
    def neuron(self) -> int:
        """Mean cost of a neuron."""
        return self.of(1)

    def kept(self, half: int, count: int) -> int:
        """Cost of so many units of one half of one layer."""
        return (self.heads, self.neurons)[half][count]

    def total(self, units: Units) -> int:
        """Cost of a whole call."""
        return self.fixed + sum(
            self.heads[len(layer.heads)] + self.neurons[len(layer.neurons)] for layer in units.layers
        )

    def by_sum(self, scores: Sequence[Tensor], halves: Sequence[int], budget: int) -> list[Tensor]:
        """The units of the largest sum of scores that a budget allows.

        Parameters
        ----------
        scores : sequence of Tensor, shape (units,)
            By half of a layer, at least 0; not divided by costs.
        halves : sequence of int
            Which half each is: 0 for heads, 1 for neurons.
        budget : int

        Returns
        -------
        list of Tensor of bool, shape (units,)
        """
        return keep_by_tables(scores, [(self.heads, self.neurons)[half] for half in halves], budget)

    def by_threshold(self, scores: Sequence[Tensor], halves: Sequence[int], budget: int) -> list[Tensor]:
        """The same: units have no costs of their own that a threshold could divide by."""
        return self.by_sum(scores, halves, budget)


def latency_costs(table: LatencyTable, units: Units) -> LatencyCosts:
    """Whole costs of every number of units, from a table of a few measured times. A pure function.

    Times that fall where units are added are noise: they are replaced by the nearest that do not (least squares, by
    pooling neighbours). Between measured numbers of units the line is straight.

    Parameters
    ----------
    table : LatencyTable
    units : Units
        Of the dense encoder; only its sizes are read.

    Raises
    ------
    InputError
        The table is of layers of other sizes.

    Examples
    --------
    >>> table = LatencyTable("eager", 1, 16, 1, {2: 4e-9}, {2: 2e-9, 4: 1e-9}, empty=1e-9, rest=5e-9)
    >>> latency_costs(table, Units.dense(4, 2, 2, 4, layers=3))
    LatencyCosts(heads=(0, 2, 4), neurons=(0, 1, 2, 2, 2), fixed=8)
    """
    found = []
    for name, measured, most in (("heads", table.heads, units.heads), ("neurons", table.neurons, units.neurons)):
        if not measured or max(measured) != most:
            raise InputError(
                "the table of latencies is of another model",
                asked=f"{most} {name} in a dense layer",
                seen=str(max(measured, default=0)),
                hint="measure one of this model: leave latency_table out",
            )
        counts = [0, *sorted(count for count in measured if count)]
        seconds = rising([0.0, *(max(measured[count], 0.0) for count in counts[1:])])
        found.append(_every_count(counts, seconds))
    fixed = round(1e9 * (table.rest + table.empty * len(units.layers)))
    return LatencyCosts(found[0], found[1], fixed, table)


def rising(values: Sequence[float]) -> list[float]:
    """The nearest numbers in least squares that never fall.

    >>> rising([0.0, 3.0, 1.0, 4.0])
    [0.0, 2.0, 2.0, 4.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]


def keep_by_tables(scores: Sequence[Tensor], costs: Sequence[Sequence[int]], budget: int) -> list[Tensor]:
    """Keep the units of the largest sum of scores, where the cost of a group depends on how many of it are kept.

    Of a group the best ones are kept, however many; how many of each is a knapsack with one choice a group, solved by
    dynamic programming over the budget in ticks (as in SPDY and ZipLM, Frantar and Alistarh, ICML 2022, Kurtic et al.,
    NeurIPS 2023). A threshold on score by cost, which is exact where every unit costs the same, is not here: the first
    unit of a group costs more than the others, and the next few may cost nothing. Costs are rounded up to ticks of
    1/8192 of the budget where it is larger than that, so that it is never exceeded; within that the result is exact.
    Equal sums go to fewer units, equal scores to the lower index.

    Parameters
    ----------
    scores : sequence of Tensor, shape (units,)
        By group, finite and at least 0.
    costs : sequence of sequence of int
        Of every group by the number of units kept, from 0, which costs nothing, to all; never falling.
    budget : int

    Returns
    -------
    list of Tensor of bool, shape (units,)
        On the CPU.

    Raises
    ------
    InputError
        Scores or costs that do not fit, or a negative budget.

    Examples
    --------
    >>> groups = [torch.tensor([5.0, 4.0]), torch.tensor([3.0, 3.0, 3.0])]
    >>> [kept.tolist() for kept in keep_by_tables(groups, [(0, 6, 7), (0, 4, 4, 5)], 10)]
    [[True, False], [True, True, False]]
    >>> [kept.tolist() for kept in keep_by_tables(groups, [(0, 6, 7), (0, 4, 4, 5)], 12)]
    [[True, True], [True, True, True]]
    """
    if budget < 0:
        raise InputError("a budget is at least 0", seen=str(budget))
    tick = max(1, -(-budget // _TICKS))
    room = budget // tick
    best = torch.zeros(room + 1, dtype=torch.float64)
    taken, orders = [], []
    for group, table in zip(scores, costs, strict=True):
        values = group.detach().double().cpu()
        _check_group(values, table)
        order = torch.argsort(values, descending=True, stable=True)
        worth = [0.0, *values[order].cumsum(0).tolist()]
        # Of numbers of units that cost the same the largest is best; it wins only where it has a larger sum.
        options: dict[int, int] = {}
        for count, cost in enumerate(table):
            ticks = -(-int(cost) // tick)
            if ticks <= room and (ticks not in options or worth[count] > worth[options[ticks]]):
                options[ticks] = count
        found, chosen = best.clone(), torch.zeros(room + 1, dtype=torch.int64)
        if 0 in options:
            found += worth[options[0]]
            chosen += options[0]
        for ticks, count in options.items():
            if ticks == 0:
                continue
            candidate = best[: room + 1 - ticks] + worth[count]
            better = candidate > found[ticks:]
            found[ticks:] = torch.where(better, candidate, found[ticks:])
            chosen[ticks:] = torch.where(better, count, chosen[ticks:])
        best = found
        taken.append(chosen)
        orders.append(order)
    place, kept = room, []
    for chosen, order, table in zip(reversed(taken), reversed(orders), reversed(list(costs)), strict=True):
        count = int(chosen[place])
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[:count]] = True
        kept.append(mask)
        place -= -(-int(table[count]) // tick)
    return kept[::-1]


def _every_count(counts: Sequence[int], seconds: Sequence[float]) -> tuple[int, ...]:
    costs = []
    for (low, first), (high, second) in itertools.pairwise(zip(counts, seconds, strict=True)):
        costs += [round(1e9 * (first + (second - first) * (n - low) / (high - low))) for n in range(low, high)]
    return (*costs, round(1e9 * seconds[-1]))


def _check_group(scores: Tensor, costs: Sequence[int]) -> None:
    if scores.dim() != 1 or len(costs) != len(scores) + 1:
        raise InputError(
            "scores and costs do not fit",
            asked="scores [units], costs of 0 to all of them",
            seen=f"{list(scores.shape)}, {len(costs)} costs",
        )
    if costs[0] != 0 or any(second < first for first, second in itertools.pairwise(costs)):
        raise InputError("costs by the number of units start at 0 and never fall", seen=str(list(costs[:8])))
    if len(scores) and not (bool(torch.isfinite(scores).all()) and float(scores.min()) >= 0):
        raise InputError("scores are finite and at least 0", seen=f"{float(scores.min()):g}")


def _seconds(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InputError(f"a table of latencies: {what} is no time in seconds", seen=repr(value)[:80])
    return float(value)


def _counted(value: object, what: str) -> dict[int, float]:
    if not isinstance(value, Mapping) or not all(str(key).isdecimal() and len(str(key)) < 10 for key in value):
        raise InputError(f"a table of latencies: {what} are not seconds by number of units", seen=repr(value)[:80])
    return {int(key): _seconds(seconds, f"{what}[{key}]") for key, seconds in value.items()}
