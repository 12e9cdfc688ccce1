# SPDX-License-Identifier: Apache-2.0
"""ADMM on the mask and the weights together, run until the mask settles, with an exact refit."""

from __future__ import annotations

from pyprune.errors import InputError
from pyprune.patterns import Pattern
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem
from pyprune.solvers.refit import refit
from pyprune.solvers.search import Trail, search


def admm(
    problem: LayerProblem, pattern: Pattern, damping: float, trail: Trail | None = None, *, iterations: int = 100
) -> Outcome:
    """Search the mask by ADMM (Boža, arXiv 2401.02938; ALPS, Meng et al. 2024), then fit exactly on it.

    The penalty grows through four stages; the search ends early once an iteration exchanges less than one of 100,000
    kept weights.

    Parameters
    ----------
    iterations : int
        At most so many.
    """
    if iterations < 1:
        raise InputError("admm: iterations must be positive", seen=str(iterations))
    mask, _, _ = search(problem, pattern, damping, iterations, trail, settled=1e-5)
    return refit(problem, mask, damping)
