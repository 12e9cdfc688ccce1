# SPDX-License-Identifier: Apache-2.0
"""What we would choose for you: ``fast`` in SparseGPT's time, ``best`` in a little more, or as much as you allow."""

from __future__ import annotations

import math

from pyprune.errors import InputError
from pyprune.patterns import NM, Pattern
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem
from pyprune.solvers.refit import quick_refit, refit
from pyprune.solvers.search import Trail, search

_BEST = 24  # iterations with a budget of 1


def fast(problem: LayerProblem, pattern: Pattern, damping: float, trail: Trail | None = None) -> Outcome:
    """Five iterations of splitting (eight for groups) and a refit, in no more time than the published SparseGPT.

    The error is 0.55 to 0.7 of SparseGPT's on most layers. Where a direct refit would cost more than the search it ends
    within about a thousandth of the best fit on its mask; ``refit=True`` makes it exact.
    """
    return _search(problem, pattern, damping, 8 if isinstance(pattern, NM) else 5, trail, gain=1e-3)


def best(
    problem: LayerProblem, pattern: Pattern, damping: float, trail: Trail | None = None, *, budget: float = 1.0
) -> Outcome:
    """A longer search and a refit: ALPS's error or less.

    Parameters
    ----------
    budget : float
        Effort, relative to the default of 24 iterations, which takes about as long as the published SparseGPT. From 2
        on the refit is exact whatever it costs.
    """
    if not (math.isfinite(budget) and budget > 0):
        raise InputError("best: budget must be positive and finite", seen=str(budget), hint="1 is the default")
    return _search(problem, pattern, damping, max(3, round(_BEST * budget)), trail, gain=2e-5 if budget < 2 else 0.0)


def _search(
    problem: LayerProblem, pattern: Pattern, damping: float, iterations: int, trail: Trail | None, *, gain: float
) -> Outcome:
    mask, point, metric = search(problem, pattern, damping, iterations, trail)
    if gain == 0.0:
        return refit(problem, mask, damping)
    return quick_refit(problem, mask, metric, point, damping, gain=gain)
