# SPDX-License-Identifier: Apache-2.0
"""Magnitude pruning: the smallest ``|w|`` go, the rest stay as they are."""

from __future__ import annotations

from pyprune.patterns import Pattern
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem


def magnitude(problem: LayerProblem, pattern: Pattern, damping: float) -> Outcome:
    """Keep the largest ``|w|`` of the starting weight; no statistics are used without ``cross``."""
    start = problem.start(damping)
    mask = pattern.select(start.abs())
    factor = problem.factorise(damping) if problem.cross is not None else None
    return Outcome(start.masked_fill(~mask, 0.0), mask, factor)
