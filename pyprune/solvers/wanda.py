# SPDX-License-Identifier: Apache-2.0
"""Wanda (Sun et al. 2023): the smallest ``|w_ij| · ‖x_j‖`` go, the rest stay as they are."""

from __future__ import annotations

from pyprune.patterns import Pattern
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem


def wanda(problem: LayerProblem, pattern: Pattern, damping: float) -> Outcome:
    """Keep the largest ``|w_ij| · sqrt(gram_jj)`` of the starting weight."""
    start = problem.start(damping)
    scores = start.abs() * problem.gram.diagonal().clamp(min=0).sqrt()
    mask = pattern.select(scores)
    factor = problem.factorise(damping) if problem.cross is not None else None
    return Outcome(start.masked_fill(~mask, 0.0), mask, factor)
