# SPDX-License-Identifier: Apache-2.0
"""Schedules: end points, monotone, exact counts, the formula; and what does not fit."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pyprune.errors import InputError
from pyprune.training import Cubic, Levels, Schedule, changes, cubic, kept, steps_of


@pytest.mark.parametrize("every", [1, 3, 7])
def test_cubic_is_the_formula_between_its_ends(every: int) -> None:
    schedule = Cubic.over(100, 0.95, warm_up=20, cool_down=59, initial=0.1, every=every)
    assert isinstance(schedule, Schedule)
    values = [schedule.value(step) for step in range(100)]
    assert values[:21] == [0.1] * 21
    assert values[41:] == [0.95] * 59
    assert values == sorted(values)
    for step in range(20, 41):
        seen = step - (step - 20) % every
        exact = Fraction(95, 100) + (Fraction(1, 10) - Fraction(95, 100)) * (1 - Fraction(seen - 20, 21)) ** 3
        assert values[step] == pytest.approx(float(exact), abs=1e-15)
    assert sum(changes(schedule, step) for step in range(100)) == len(set(values))  # from 0 to 0.1 at first


def test_densities_fall_in_parts_of_a_run_as_well() -> None:
    """GRAIN's own: density 1 until 0.2, s_f from 0.4 of the run on."""
    assert cubic(0.1, 0.2, 0.4, 1.0, 0.05) == 1.0
    assert cubic(0.3, 0.2, 0.4, 1.0, 0.05) == pytest.approx(0.05 + 0.95 / 8)
    assert cubic(0.4, 0.2, 0.4, 1.0, 0.05) == 0.05


def test_counts_are_exact_and_never_rise() -> None:
    schedule = Cubic(0.7, 0, 10)
    counts = [kept(schedule, 10, step) for step in range(12)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[10], counts[11]) == (10, 3, 3)


def test_no_steps_between_is_one_step() -> None:
    schedule = Cubic(0.5, 4, 4)
    assert [schedule.value(step) for step in (3, 4, 5)] == [0.0, 0.5, 0.5]


def test_levels() -> None:
    schedule = Levels.even((0.1, 0.5, 0.9), steps=11, warm_up=2)
    assert schedule.starts == (2, 5, 8)
    assert [schedule.value(step) for step in range(11)] == [0.0] * 2 + [0.1] * 3 + [0.5] * 3 + [0.9] * 3
    assert [step for step in range(11) if changes(schedule, step)] == [2, 5, 8]
    assert schedule.final == 0.9
    assert changes(Levels((0.5,), (0,)), 0)


def test_steps() -> None:
    assert steps_of(3, 10, 4) == 9
    assert steps_of(0.1, 1000, 10) == 10  # 0.1 is a tenth
    with pytest.raises(InputError, match="needs rows"):
        steps_of(1, 0, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cubic.over(10, 0.5, warm_up=5, cool_down=5), "no step to prune in"),
        (lambda: Cubic(1.5, 0, 1), "fraction of zeros"),
        (lambda: Cubic(0.5, 3, 2), "starts before it ends"),
        (lambda: Cubic(0.5, 0, 2, every=0), "at least 1"),
        (lambda: Levels((0.5, 0.6), (3, 3)), "a step of its own"),
        (lambda: Levels((), ()), "a step of its own"),
        (lambda: Levels.even((0.5, 0.6), steps=1), "fewer steps than levels"),
        (lambda: Levels((2.0,), (0,)), "fraction of zeros"),
    ],
)
def test_what_does_not_fit_is_said(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
