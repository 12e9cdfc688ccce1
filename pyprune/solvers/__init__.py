# SPDX-License-Identifier: Apache-2.0
"""One matrix at a time: a :class:`LayerProblem` and a pattern go in, a :class:`LayerSolution` comes out."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pyprune.errors import InputError, NumericsError
from pyprune.ops import library
from pyprune.patterns import Pattern, Scope, Unstructured, assert_holds
from pyprune.solvers.admm import admm
from pyprune.solvers.best import best, fast
from pyprune.solvers.curve import along_a_trail, by_greedy_removal, check_kinds, check_nested, one_by_one
from pyprune.solvers.factorisation import Factorisation
from pyprune.solvers.magnitude import magnitude
from pyprune.solvers.obs import obs
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem, LayerSolution
from pyprune.solvers.refit import refit as refit_on
from pyprune.solvers.sparsegpt import sparsegpt
from pyprune.solvers.swap import swap
from pyprune.solvers.wanda import wanda

__all__ = [
    "Factorisation",
    "LayerProblem",
    "LayerSolution",
    "available",
    "default_damping",
    "default_pattern",
    "solve",
    "solve_curve",
]


class _Run(Protocol):
    def __call__(self, problem: LayerProblem, pattern: Pattern, damping: float, **options: Any) -> Outcome: ...


@dataclass(frozen=True)
class _Solver:
    run: Callable[..., Outcome]
    damping: float  # the published default, relative to the mean diagonal
    scope: Scope  # where rows compete in the published method
    line: str
    curve: Callable[..., Iterator[tuple[int, Outcome]]] = one_by_one  # how several patterns are solved


_SOLVERS = {
    "magnitude": _Solver(magnitude, 1e-4, "layer", "smallest |w| go"),
    "wanda": _Solver(wanda, 1e-4, "row", "smallest |w|·‖x‖ go"),
    "sparsegpt": _Solver(sparsegpt, 1e-2, "layer", "columns in order, errors pushed to the right"),
    "obs": _Solver(obs, 1e-4, "row", "exact greedy, the rest refitted after every removal", by_greedy_removal),
    "admm": _Solver(admm, 1e-4, "layer", "mask and weights in turn until the mask settles, exact refit", along_a_trail),
    "fast": _Solver(
        fast, 1e-4, "layer", "a few iterations of that: two thirds of SparseGPT's error in its time", along_a_trail
    ),
    "best": _Solver(best, 1e-4, "layer", "as good as budget= allows; ALPS's error by default", along_a_trail),
    "swap": _Solver(swap, 1e-4, "layer", "another solver's mask, pairs exchanged until no exchange helps"),
}


def available() -> tuple[str, ...]:
    """Names that ``solve(..., solver=...)`` takes."""
    return tuple(_SOLVERS)


def default_pattern(solver: str, sparsity: float) -> Unstructured:
    """The unstructured pattern of the solver's own paper."""
    return Unstructured(sparsity, _entry(solver).scope)


def default_damping(solver: str) -> float:
    """The ridge of the solver's own paper, relative to the gram's mean diagonal."""
    return _entry(solver).damping


def solve(
    problem: LayerProblem,
    pattern: Pattern,
    solver: str = "obs",
    *,
    damping: float | None = None,
    refit: bool = False,
    **options: Any,
) -> LayerSolution:
    """Prune one layer so that its output changes least.

    Parameters
    ----------
    problem : LayerProblem
    pattern : Unstructured, NM or Block
        What the mask must look like; the count is met exactly.
    solver : str
        One of :func:`available`.
    damping : float, optional
        Ridge relative to the gram's mean diagonal, centred on the dense weight. Default: the solver's own. It is
        raised tenfold, at most six times, where the system is singular; the solution states what was used.
    refit : bool
        Solve the restricted least squares exactly on the mask found (``obs`` ends in it anyway).
    **options
        Of the solver, such as ``block`` of ``sparsegpt``.

    Returns
    -------
    LayerSolution

    Raises
    ------
    InputError
        Unknown solver or option, or a pattern that does not fit the shape.
    NumericsError
        The gram is zero or not positive definite at any damping tried; the message names the layer.

    Examples
    --------
    >>> import torch, pyprune
    >>> problem = LayerProblem(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    >>> solve(problem, Unstructured(0.5), "obs", damping=0.0).weight
    tensor([[3.5000, 0.0000]])
    """
    entry = _entry(solver)
    _check_options(solver, entry, options)
    pattern.check(*problem.shape, problem.name)
    damping = entry.damping if damping is None else damping
    begin = time.perf_counter()
    outcome = entry.run(problem, pattern, damping, **options)
    outcome = _finish(problem, pattern, outcome, damping, refit)
    return _solution(problem, solver, outcome, time.perf_counter() - begin)


def solve_curve(
    problem: LayerProblem,
    patterns: Sequence[Pattern],
    solver: str = "obs",
    *,
    damping: float | None = None,
    refit: bool = False,
    nested: bool = False,
    **options: Any,
) -> list[LayerSolution]:
    """Prune one layer to several patterns, such as all points of a sparsity curve, in one go.

    The masks are those of :func:`solve`, but what the points have in common is computed once. ``obs`` removes greedily
    down to the sparsest pattern and reads the others off on the way: nine points from 10 to 90 % take a third of the
    time of nine calls. ``admm``, ``fast`` and ``best`` share their metric and inverses, which saves little; the others
    share only the gram's factorisation.

    Parameters
    ----------
    problem, solver, damping, refit, **options
        As for :func:`solve`.
    patterns : sequence of Unstructured, NM or Block
        In any order, and of different kinds if need be.
    nested : bool
        Every mask lies within those of the denser patterns, which must be of one kind (methods that grow or shrink a
        model step by step need that). Masks of ``obs`` (but for N:M), ``magnitude`` and ``wanda`` are nested anyway;
        those of ``admm``, ``fast`` and ``best`` are made so, for up to a few hundredths more error.

    Returns
    -------
    list of LayerSolution
        In the order of ``patterns``; ``seconds`` is an equal part of the whole.

    Raises
    ------
    InputError
        No patterns, or what :func:`solve` raises; with ``nested``, patterns of different kinds, or a solver that does
        not choose nested masks.
    NumericsError
        As :func:`solve`.

    Examples
    --------
    >>> import torch, pyprune
    >>> problem = LayerProblem(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), torch.eye(4))
    >>> [s.error for s in solve_curve(problem, [Unstructured(0.25), Unstructured(0.5)])]
    [0.03333333333333333, 0.16666666666666666]
    """
    entry = _entry(solver)
    _check_options(solver, entry, options)
    patterns = list(patterns)
    if not patterns:
        raise InputError(f"{problem.name}: no patterns to solve for", hint="[Unstructured(0.5), Unstructured(0.7)]")
    for pattern in patterns:
        pattern.check(*problem.shape, problem.name)
    if nested:
        check_kinds(patterns, problem.name)
    damping = entry.damping if damping is None else damping
    begin = time.perf_counter()
    found = {
        index: _finish(problem, patterns[index], outcome, damping, refit)
        for index, outcome in entry.curve(entry.run, problem, patterns, damping, nested, options)
    }
    seconds = (time.perf_counter() - begin) / len(patterns)
    outcomes = [found[index] for index in range(len(patterns))]
    if nested:
        check_nested([outcome.mask for outcome in outcomes], patterns, solver, problem.name)
    return [_solution(problem, solver, outcome, seconds) for outcome in outcomes]


def _entry(solver: str) -> _Solver:
    if solver not in _SOLVERS:
        raise InputError(f"unknown solver {solver!r}", hint=f"one of {', '.join(_SOLVERS)}")
    return _SOLVERS[solver]


def _check_options(solver: str, entry: _Solver, options: dict[str, Any]) -> None:
    known = [name for name, p in inspect.signature(entry.run).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise InputError(
                f"solver {solver!r} has no option {name!r}", hint=f"its options: {', '.join(known) or 'none'}"
            )


def _finish(problem: LayerProblem, pattern: Pattern, outcome: Outcome, damping: float, refit: bool) -> Outcome:
    """The refit if it is wanted, the pattern checked, the weight as it will be stored."""
    if refit:
        outcome = refit_on(problem, outcome.mask, damping)
    assert_holds(pattern, outcome.mask, problem.name)
    return dataclasses.replace(outcome, weight=_stored(problem, outcome))


def _solution(problem: LayerProblem, solver: str, outcome: Outcome, seconds: float) -> LayerSolution:
    factor = outcome.factor
    return LayerSolution(
        weight=outcome.weight,
        mask=outcome.mask,
        damping=0.0 if factor is None else factor.damping,
        seconds=seconds,
        solver=solver,
        notes=() if factor is None else factor.notes,
        problem=problem,
        factor=factor,
    )


def _stored(problem: LayerProblem, outcome: Outcome) -> Tensor:
    weight = outcome.weight.to(problem.weight.dtype)
    if not library.all_finite(weight):
        raise NumericsError(
            f"{problem.name}: the pruned weight does not fit {problem.weight.dtype}",
            seen=f"largest magnitude {float(outcome.weight.abs().max()):.3g}",
            hint="a larger damping, or prune in float32",
        )
    return weight
