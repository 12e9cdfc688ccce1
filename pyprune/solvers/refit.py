# SPDX-License-Identifier: Apache-2.0
"""The least-squares fit on a mask, in which every good solver ends."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import ops
from pyprune.ops.masked_cg import leading_part
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem
from pyprune.solvers.splitting import NaturalMetric

_MOST = 60  # steps
_PRODUCTS = 10.0  # with the gram, that they usually take
_DIRECT = 1.3  # how much slower small factors run than one large product


def refit(problem: LayerProblem, mask: Tensor, damping: float) -> Outcome:
    """Weights that fit the target best on ``mask`` ``[out, in]``, with the ridge centred on the dense weight.

    Rows that lose nothing keep the weight a solver starts from, to the last bit.
    """
    factor = problem.factorise(damping)
    weight = ops.masked_lstsq(problem.gram, problem.rhs(), mask, anchor=problem.weight.double(), damp=factor.damping)
    return Outcome(whole_rows_as_they_were(problem, weight, mask, damping), mask, factor)


def quick_refit(
    problem: LayerProblem, mask: Tensor, metric: NaturalMetric, point: Tensor, damping: float, *, gain: float
) -> Outcome:
    """The same, exact where that is cheap; else by conjugate gradients while a step gains more than ``gain``.

    A direct fit costs a factor of each row's support. On wide layers that is many times the search itself, while the
    sparse copy of the search is a dozen products away from the fit.

    Parameters
    ----------
    metric, point : NaturalMetric, Tensor of shape (out, in)
        Of the search: where conjugate gradients start.
    gain : float
        Part of a row's error; what is left to gain then is a few times as much.
    """
    if _direct_pays(mask):
        return refit(problem, mask, damping)
    factor = problem.factorise(damping)
    # A unit diagonal, and the few strong directions that real grams have, make the preconditioner.
    scale = (problem.gram.diagonal().clamp(min=0) + factor.ridge).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    change = torch.where(metric.scale > 0, scale / metric.scale, 0.0)
    system = ops.rescale(problem.gram, 1.0 / scale, ridge=factor.ridge, dtype=torch.float32)
    # The dense optimum solves the damped system, whatever the target: one product gives the right-hand side back.
    dense = (problem.start(damping) * scale).float()
    found, _ = ops.masked_cg(
        system,
        ops.matmul(dense, system),
        mask,
        point * change.float(),
        steps=_MOST,
        tolerance=gain,
        basis=leading_part(system, min(32, max(16, len(system) // 32))),
        dense=dense,
    )
    weight = found.double().div_(scale)
    return Outcome(whole_rows_as_they_were(problem, weight, mask, damping), mask, factor)


def _direct_pays(mask: Tensor) -> bool:
    rows, columns = mask.shape
    kept = mask.sum(dim=1).double()
    smaller = torch.minimum(kept, columns - kept)
    return _DIRECT * float((smaller**3).sum()) / 3 <= _PRODUCTS * rows * columns**2


def whole_rows_as_they_were(problem: LayerProblem, weight: Tensor, mask: Tensor, damping: float) -> Tensor:
    """``weight`` ``[out, in]`` with the weight a solver starts from in the rows that lose nothing; in place."""
    whole = mask.all(dim=1)
    if bool(whole.any()):
        weight[whole] = problem.start(damping)[whole].to(weight.dtype)
    return weight
