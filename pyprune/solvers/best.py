# SPDX-License-Identifier: Apache-2.0
"""What we would choose for you: ``fast`` in SparseGPT's time, ``best`` in a little more, or as much as you allow."""

from __future__ import annotations

import math

from pyprune.errors import InputError
from pyprune.patterns import NM, Pattern
from pyprune.solvers.exchange import exchange, price
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem
from pyprune.solvers.refit import quick_refit, refit
from pyprune.solvers.search import Trail, search

_BEST = 24  # iterations of a small layer with a budget of 1


def _effort(problem: LayerProblem) -> float:
    """What an iteration costs beside the published SparseGPT, 1 for the layers of a small model.

    An iteration multiplies ``[rows, k] x [k, k]``; SparseGPT's loop over ``k`` columns takes as long as if each had
    some 700 rows more than it has. Wide layers get fewer iterations, and are content with fewer.
    """
    rows, columns = problem.shape
    return max(columns / (1 + 700 / max(rows, 1)) / 136, 1.0)


def fast(problem: LayerProblem, pattern: Pattern, damping: float, trail: Trail | None = None) -> Outcome:
    """Some five iterations of splitting, more for groups, and a refit: in the time of the published SparseGPT.

    The error is 0.5 to 0.7 of SparseGPT's. Where a direct refit would cost more than the search it ends one or two
    thousandths above the best fit on its mask; ``refit=True`` makes it exact.
    """
    effort = _effort(problem)
    groups = max(5, round(12 / math.sqrt(effort)))
    singles = 5 if effort < 3 else 4  # enough for 0.69 of SparseGPT's error at 90 %, where settling takes longest
    iterations = groups if isinstance(pattern, NM) else singles
    return _search(problem, pattern, damping, iterations, trail, gain=1e-3 if effort < 3 else 2e-3)


def best(
    problem: LayerProblem, pattern: Pattern, damping: float, trail: Trail | None = None, *, budget: float = 1.0
) -> Outcome:
    """A longer search and a refit: ALPS's error or less.

    Where a direct refit would cost more than the search it ends some ten-thousandths above the best fit on its mask.

    Parameters
    ----------
    budget : float
        Effort, relative to the default of 8 to 24 iterations, by shape and sparsity, which takes about as long as the
        published SparseGPT. From 2 on the refit is exact whatever it costs. With more, 4 at 90 % to 9 at 50 % of 384
        columns, the last part goes into the exchanges of ``swap``.
    """
    if not (math.isfinite(budget) and budget > 0):
        raise InputError("best: budget must be positive and finite", seen=str(budget), hint="1 is the default")
    # High sparsity settles more slowly, and its fits cost less.
    effort = _effort(problem)
    share = (1 + 0.25 * min(max(pattern.sparsity - 0.5, 0.0) / 0.4, 1.0)) / math.sqrt(effort)
    default = _BEST * min(max(share, 1 / 3), 1.0)
    gain = 0.0 if budget >= 2 else 2e-5 if effort < 2 else 1e-4
    iterations = max(3, round(default * budget))
    # Where two default searches are left beside them, exchanges bring more than further iterations.
    left = iterations - price(problem, pattern)
    if left >= 2 * default and not (trail is not None and trail.nested):
        mask, _, _ = search(problem, pattern, damping, round(left), trail)
        return exchange(problem, pattern, mask, damping)
    return _search(problem, pattern, damping, iterations, trail, gain=gain)


def _search(
    problem: LayerProblem, pattern: Pattern, damping: float, iterations: int, trail: Trail | None, *, gain: float
) -> Outcome:
    mask, point, metric = search(problem, pattern, damping, iterations, trail)
    if gain == 0.0:
        return refit(problem, mask, damping)
    return quick_refit(problem, mask, metric, point, damping, gain=gain)
