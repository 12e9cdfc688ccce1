# SPDX-License-Identifier: Apache-2.0
"""How much is pruned at which step: pure functions of the step, so that a resumed run needs no state of them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, runtime_checkable

from pyprune.errors import InputError
from pyprune.patterns import kept_count


def cubic(step: float, start: float, end: float, initial: float, final: float) -> float:
    """``v_f + (v_0 − v_f) (1 − (step − start)/(end − start))³`` between start and end; v_0 before, v_f after.

    Zhu and Gupta (2017): fast at first, while much can go, and slower towards the end. Steps may be numbers or parts of
    a whole; values are sparsities, densities or thresholds.

    >>> [round(cubic(step, 2, 4, 0.0, 0.8), 3) for step in range(1, 6)]
    [0.0, 0.0, 0.7, 0.8, 0.8]
    """
    if step >= end:
        return final
    if step <= start:
        return initial
    left = 1.0 - (step - start) / (end - start)
    return final + (initial - final) * left**3


@runtime_checkable
class Schedule(Protocol):
    """Sparsity by step; steps are optimizer steps, from 0."""

    @property
    def final(self) -> float:
        """The sparsity of the end."""

    def value(self, step: int) -> float:
        """Sparsity that holds in the forward pass of a step."""


@dataclass(frozen=True)
class Cubic:
    """From one sparsity to another in a cubic curve, with steps before at the first and steps after at the last.

    Parameters
    ----------
    final : float
        Sparsity of the end, 0 to 1.
    start, end : int
        First step that prunes, and the first that has the final sparsity. Steps before ``start`` are the warm-up, those
        from ``end`` on the cool-down, in which the weights that are left recover.
    initial : float
        Sparsity before ``start``.
    every : int
        The value changes only every so many steps.

    Examples
    --------
    >>> schedule = Cubic.over(1000, 0.9, warm_up=200, cool_down=600)
    >>> schedule.value(0), schedule.value(200), round(schedule.value(300), 4), schedule.value(400)
    (0.0, 0.0, 0.7875, 0.9)
    >>> kept(schedule, 1000, 300)
    213
    """

    final: float
    start: int
    end: int
    initial: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        check_sparsity(self.final, "final")
        check_sparsity(self.initial, "initial")
        if not 0 <= self.start <= self.end:
            raise InputError("a schedule starts before it ends", seen=f"start {self.start}, end {self.end}")
        if self.every < 1:
            raise InputError("every has to be at least 1", seen=str(self.every))

    @classmethod
    def over(
        cls,
        steps: int,
        final: float,
        *,
        warm_up: int = 0,
        cool_down: int = 0,
        initial: float = 0.0,
        every: int = 1,
    ) -> Cubic:
        """For a training of so many steps.

        Raises
        ------
        InputError
            Warm-up and cool-down leave no step to prune in.
        """
        end = steps - cool_down
        if not 0 <= warm_up < end <= steps:
            raise InputError(
                "warm-up and cool-down leave no step to prune in",
                asked=f"{warm_up} and {cool_down} steps",
                seen=f"{steps} steps in all",
                hint="fewer of them, or more epochs",
            )
        return cls(final, warm_up, end, initial, every)

    def value(self, step: int) -> float:
        """Sparsity that holds in the forward pass of a step."""
        if step < self.start:
            return self.initial
        if step >= self.end:
            return self.final
        behind = step - self.start
        return cubic(self.start + behind - behind % self.every, self.start, self.end, self.initial, self.final)


@dataclass(frozen=True)
class Levels:
    """A sparsity at a time, each from a step on.

    Parameters
    ----------
    levels : tuple of float
        Sparsities.
    starts : tuple of int
        The step from which each holds, ascending. Before the first nothing is pruned.

    Examples
    --------
    >>> schedule = Levels.even((0.54, 0.83, 0.92, 0.9375), steps=400)
    >>> schedule.starts, schedule.value(0), schedule.value(199), schedule.value(399)
    ((0, 100, 200, 300), 0.54, 0.83, 0.9375)
    """

    levels: tuple[float, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        for level in self.levels:
            check_sparsity(level, "levels")
        pairs = zip(self.starts[:-1], self.starts[1:], strict=True)
        if (
            not self.levels
            or len(self.levels) != len(self.starts)
            or self.starts[0] < 0
            or any(a >= b for a, b in pairs)
        ):
            raise InputError(
                "every level starts at a step of its own, in ascending order",
                seen=f"{len(self.levels)} levels, starts {list(self.starts)[:8]}",
            )

    @classmethod
    def even(cls, levels: Sequence[float], *, steps: int, warm_up: int = 0) -> Levels:
        """As many steps for each as there are, after a warm-up.

        Raises
        ------
        InputError
            There are fewer steps than levels.
        """
        if steps - warm_up < len(levels):
            raise InputError("there are fewer steps than levels", seen=f"{steps} steps, {len(levels)} levels")
        starts = (warm_up + (steps - warm_up) * index // len(levels) for index in range(len(levels)))
        return cls(tuple(levels), tuple(starts))

    @property
    def final(self) -> float:
        """The sparsity of the end."""
        return self.levels[-1]

    def value(self, step: int) -> float:
        """Sparsity that holds in the forward pass of a step."""
        index = bisect.bisect_right(self.starts, step)
        return self.levels[index - 1] if index else 0.0


def kept(schedule: Schedule, numel: int, step: int) -> int:
    """Weights kept of ``numel`` at a step: :func:`pyprune.patterns.kept_count`, exact and never rising twice."""
    return kept_count(numel, schedule.value(step))


def changes(schedule: Schedule, step: int) -> bool:
    """Whether this step has another sparsity than the one before it."""
    return schedule.value(step) != (schedule.value(step - 1) if step else 0.0)


def steps_of(epochs: float, rows: int, batch_size: int, accumulate: int = 1) -> int:
    """Optimizer steps of a training: an epoch's last, smaller batch counts.

    >>> steps_of(2, 100, 32), steps_of(0.5, 100, 32), steps_of(1, 100, 16, accumulate=2)
    (8, 2, 4)
    """
    if rows < 1 or batch_size < 1 or accumulate < 1 or not (math.isfinite(epochs) and epochs > 0):
        raise InputError(
            "a training needs rows, a batch size and epochs",
            seen=f"{rows} rows, batches of {batch_size}, {epochs} epochs",
        )
    batches = -(-rows // batch_size)
    return math.ceil(Fraction(repr(float(epochs))) * -(-batches // accumulate))


def check_sparsity(value: float, name: str) -> None:
    """Raise :class:`InputError` unless this is a fraction of zeros."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise InputError(f"{name}: a sparsity is a fraction of zeros, from 0 to 1", seen=repr(value))
