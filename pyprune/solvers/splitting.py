# SPDX-License-Identifier: Apache-2.0
"""Mask search by operator splitting: a dense copy that knows the gram, a sparse copy that knows the pattern.

The engine behind ``admm``, ``fast`` and ``best``. Douglas–Rachford splitting (ADMM's other name) of

    min_W ½ tr (W − S) H (W − S)ᵀ      subject to the pattern,

keeps one state ``Z``: ``D`` is its projection onto the pattern, ``B = S + (2D − Z − S) M`` with ``M = ρ (H + ρI)⁻¹``,
and ``Z ← Z + θ (B − D) + β (Z − Z₋)`` (Boyd et al. 2011; Boža, arXiv 2401.02938; ALPS, arXiv 2406.07831). What makes it
reach ALPS's error within ten iterations:

* columns are scaled so that ``H⁻¹`` has a unit diagonal. The squares the projection compares then are what exact OBS
  would call the losses of single removals (Hassibi & Stork 1993), not magnitudes, and one penalty near 1 fits all
  layers, so that one to four inverses replace an eigendecomposition;
* it starts at ``Z = S``: the dual begins as what the first projection cut off, instead of as zero;
* the relaxation ``θ`` falls from over- to under-relaxed, which first explores and then settles, and a heavy-ball term
  ``β`` speeds it up.

The constants are fits over sparsities and lengths of the search on layers of a small BERT and on synthetic ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import NumericsError
from pyprune.patterns import NM, Pattern
from pyprune.solvers.problem import LayerProblem


def _hardness(pattern: Pattern) -> float:
    """0 at 50 % and 2:4, 1 at 90 %: what the constants depend on."""
    hardness = min(max((pattern.sparsity - 0.5) / 0.4, -0.5), 1.25)
    return 0.75 * max(hardness, 0.0) if isinstance(pattern, NM) else hardness


def search_ridge(pattern: Pattern) -> float:
    """The search's own damping, a part of each diagonal entry: all that the metric takes from the pattern."""
    return 0.01 + 0.02 * max(0.0, _hardness(pattern))


@dataclass(frozen=True)
class Schedule:
    """How long to search, and how.

    Attributes
    ----------
    iterations : int
        At most so many; one product ``[rows, k] x [k, k]`` and one selection each.
    stages : int
        Penalties, each with an inverse of its own.
    penalty : tuple of float
        First and last ``ρ``, geometric in between.
    relaxation : tuple of float
        First and last ``θ``.
    momentum : float
        ``β``.
    settled : float
        Stop once an iteration exchanges no more than this part of the kept weights.
    """

    iterations: int
    stages: int
    penalty: tuple[float, float]
    relaxation: tuple[float, float]
    momentum: float
    settled: float = 0.0

    @classmethod
    def of(cls, pattern: Pattern, iterations: int, *, settled: float = 0.0) -> Schedule:
        """The schedule that fits a pattern and a number of iterations."""
        hardness, grouped = _hardness(pattern), isinstance(pattern, NM)
        high = max(hardness, 0.0)
        first = 1.1 * (20 / iterations) ** 0.13 * (1 - high) + 1.5 * high
        first *= 1.06 if grouped else 1.0
        stages = 1 if iterations < 8 else 2 if iterations <= 24 else 4
        return cls(
            iterations,
            stages,
            penalty=(first, first * 1.4 * (iterations / 20) ** 0.3),
            relaxation=(1.4 + 0.3 * hardness, 0.4),
            momentum=0.3 - 0.4 * hardness if grouped else 0.25 - 0.35 * hardness,
            settled=settled,
        )

    def stage_of(self, iteration: int) -> int:
        """Stage of an iteration; stages are as even as can be."""
        return iteration * self.stages // self.iterations

    def penalty_of(self, stage: int) -> float:
        """``ρ`` of a stage."""
        first, last = self.penalty
        return float(first * (last / first) ** (stage / max(1, self.stages - 1)))

    def relaxation_of(self, iteration: int) -> float:
        """``θ`` of an iteration."""
        done = iteration / max(1, self.iterations - 1)
        first, last = self.relaxation
        return float(first + (last - first) * done**1.2)


class NaturalMetric:
    """A problem with its columns scaled so that the damped gram's inverse has a unit diagonal.

    The search's own damping is relative to each diagonal entry, and more at high sparsity: directions without energy
    must not decide. Dead columns get the scale 0 and so are the first to go.

    With ``remember`` it keeps the inverses it has made, for the next search.

    Attributes
    ----------
    ridge : float
        :func:`search_ridge` of the pattern.
    scale : Tensor, shape (k,), float64
        Weights are multiplied by it.
    system : Tensor, shape (k, k), float64
        The damped gram in this metric.
    start : Tensor, shape (rows, k), float32
        The dense optimum in this metric.
    """

    def __init__(self, problem: LayerProblem, pattern: Pattern, damping: float, *, remember: bool = False) -> None:
        problem.factorise(damping)  # says what is wrong with the gram, if anything is
        root = problem.gram.diagonal().clamp(min=0).sqrt()
        inverse_root = torch.where(root > 0, 1.0 / root, 1.0)
        self.ridge = search_ridge(pattern)
        unit = ops.rescale(problem.gram, inverse_root, shift=self.ridge)
        spread = self._inverse(unit, 0.0, problem.name).diagonal().double().sqrt()
        self.system = ops.rescale(unit, spread)
        self.scale = root / spread
        self.start = (problem.start(damping) * self.scale).float().contiguous()
        self._name = problem.name
        self._made: dict[float, Tensor] | None = {} if remember else None

    def multiplier(self, penalty: float) -> Tensor:
        """``ρ (H + ρI)⁻¹``, float32 ``[k, k]``; not to be changed."""
        if self._made is not None and penalty in self._made:
            return self._made[penalty]
        made = self._inverse(self.system, penalty, self._name).mul_(penalty)
        if self._made is not None:
            self._made[penalty] = made
        return made

    @staticmethod
    def _inverse(system: Tensor, ridge: float, name: str) -> Tensor:
        for dtype in (torch.float32, torch.float64):
            found = ops.cholesky(system, ridge=ridge, inverse=True, dtype=dtype)
            if found.inverse is not None and found.failed < 0:
                return found.inverse.float()
        raise NumericsError(
            f"{name}: the gram is not positive definite",
            seen=f"pivot {found.failed} of the gram with 1 % on its diagonal is not positive",
            hint="a gram is E[x xᵀ]; more calibration tokens, or rescaled features",
        )


def split(
    pattern: Pattern,
    metric: NaturalMetric,
    schedule: Schedule,
    *,
    within: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Search a mask.

    Parameters
    ----------
    within : Tensor of bool, shape (rows, k), optional
        Only these weights may be kept.

    Returns
    -------
    mask : Tensor of bool, shape (rows, k)
    point : Tensor, shape (rows, k), float32
        The sparse copy, in the metric: near the least-squares fit on the mask, not yet it.
    """
    state = metric.start.clone()
    previous = state.clone()
    mask = _select(pattern, state, within)
    kept = max(1, int(mask.sum()))
    multiplier, stage = state, -1
    for iteration in range(schedule.iterations):
        if schedule.stage_of(iteration) != stage:
            stage = schedule.stage_of(iteration)
            multiplier = metric.multiplier(schedule.penalty_of(stage))
        ops.admm_step(
            state,
            mask,
            metric.start,
            multiplier,
            schedule.relaxation_of(iteration),
            momentum=schedule.momentum,
            previous=previous,
        )
        following = _select(pattern, state, within)
        done = schedule.settled > 0 and int((following != mask).sum()) <= 2 * schedule.settled * kept
        mask = following
        if done:
            break
    return mask, torch.where(mask, state, 0.0)


def _select(pattern: Pattern, state: Tensor, within: Tensor | None) -> Tensor:
    # Where a weight of size zero is kept all others are, so that a tie with a removed one goes by position as before.
    return pattern.select(state.abs() if within is None else torch.where(within, state.abs(), 0.0))
