# SPDX-License-Identifier: Apache-2.0
"""Another solver's mask, improved by exchanges until none makes the loss fall."""

from __future__ import annotations

from pyprune.errors import InputError
from pyprune.patterns import Pattern
from pyprune.solvers.admm import admm
from pyprune.solvers.best import best, fast
from pyprune.solvers.exchange import exchange
from pyprune.solvers.magnitude import magnitude
from pyprune.solvers.obs import obs
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem
from pyprune.solvers.sparsegpt import sparsegpt
from pyprune.solvers.wanda import wanda

_STARTS = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
    "obs": obs,
    "admm": admm,
    "fast": fast,
    "best": best,
}


def swap(
    problem: LayerProblem, pattern: Pattern, damping: float, *, start: str = "admm", exchanges: int | None = None
) -> Outcome:
    """Exchange pairs of weights or blocks, one in and one out, and end in the exact fit (:mod:`.exchange`).

    Parameters
    ----------
    start : str
        The solver whose mask is improved. The longer it searches, the better the end: exchanges do not leave a basin.
    exchanges : int, optional
        At most so many inside each row, and then none between rows. Default: until no exchange makes the loss fall.
    """
    if start not in _STARTS:
        raise InputError(f"swap: unknown start {start!r}", hint=f"one of {', '.join(_STARTS)}")
    if exchanges is not None and exchanges < 0:
        raise InputError("swap: exchanges must not be negative", seen=str(exchanges))
    return exchange(problem, pattern, _STARTS[start](problem, pattern, damping).mask, damping, most=exchanges)
