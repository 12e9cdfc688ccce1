# SPDX-License-Identifier: Apache-2.0
"""What other projects call pruning a layer, in this library's terms: a problem and a pattern."""

from __future__ import annotations

import logging

from torch import Tensor

from pyprune import solvers
from pyprune.errors import InputError, NumericsError
from pyprune.patterns import NM, Unstructured
from pyprune.solvers import LayerProblem, LayerSolution

LOGGER = logging.getLogger("pyprune.compat")


def pattern_of(sparsity: float, pruned: int, group: int) -> Unstructured | NM:
    """``pruned`` of every ``group`` weights go; with ``pruned = 0`` that fraction ``sparsity`` of the layer.

    >>> pattern_of(0.5, 0, 0)
    Unstructured(sparsity=0.5, scope='layer')
    >>> pattern_of(0.0, 1, 4)
    NM(keep=3, of=4)
    """
    if pruned == 0:
        return Unstructured(float(sparsity), scope="layer")
    if not 0 < pruned <= group:
        raise InputError("N:M pruning removes N of every M weights, 0 < N <= M", seen=f"N={pruned}, M={group}")
    return NM(keep=group - pruned, of=group)


def problem_of(weight: Tensor, hessian: Tensor, name: str) -> LayerProblem:
    """The problem on ``weight`` ``[out, in]``; inputs that were always zero lose their weights.

    Their diagonal entry becomes 1, as published, which makes the system solvable without changing any other weight.
    Neither argument is changed. ``hessian`` may lie on another device.

    Raises
    ------
    NumericsError
        No input was ever different from zero, or something is not finite.
    """
    hessian = hessian.to(weight.device)
    dead = hessian.diagonal() == 0
    if len(dead) and bool(dead.all()):
        raise NumericsError(
            f"{name}: the Hessian is zero", hint="no token reached this layer: leave it dense, or check the calibration"
        )
    if bool(dead.any()):
        hessian, weight = hessian.clone(), weight.clone()
        hessian.diagonal()[dead] = 1
        weight[:, dead] = 0
    return LayerProblem(weight, hessian, name=name)


def solve_as_published(
    problem: LayerProblem, pattern: Unstructured | NM, solver: str, damping: float, block: int
) -> LayerSolution:
    """Solve it; the block of columns means something to ``sparsegpt`` alone."""
    if solver == "sparsegpt":
        return solvers.solve(problem, pattern, solver, damping=damping, block=block)
    return solvers.solve(problem, pattern, solver, damping=damping)


def report(problem: LayerProblem, solution: LayerSolution) -> None:
    """Log what other projects print: time and error at level INFO, what a person should know as a WARNING."""
    for note in solution.notes:
        LOGGER.warning("%s: %s", problem.name, note)
    if LOGGER.isEnabledFor(logging.INFO):  # the errors cost as much as a fast solver
        LOGGER.info(
            "%s: time %.2f s, error %.6g, %.4g %% of the output's energy, sparsity %.4f",
            problem.name,
            solution.seconds,
            published_loss(problem, solution),
            100 * solution.error,
            solution.sparsity,
        )


def published_loss(problem: LayerProblem, solution: LayerSolution) -> float:
    """Sum of the published per-weight losses, ``½ (w − w₀)(H + λI)(w − w₀)ᵀ`` over all rows."""
    change = solution.weight.double() - problem.weight.double()
    ridge = solution.damping * float(problem.gram.diagonal().mean()) if problem.gram.numel() else 0.0
    return 0.5 * (problem.loss(solution.weight) + ridge * float((change**2).sum()))
