# SPDX-License-Identifier: Apache-2.0
"""Greedy quantisation by OBS, in torch: each row's weights go to their grid one by one, the rest makes up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.compat.grid import Rounding
from pyprune.errors import NumericsError


def quantise_rows(system: Tensor, weight: Tensor, rounding: Rounding, step: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise every weight that is not zero, always the one whose loss is least.

    With ``A = H⁻¹`` of the weights not on the grid yet, fixing ``w_p`` at ``q`` costs ``(w_p − q)² / A_pp`` and moves
    the rest by ``−A[:,p] (w_p − q) / A_pp`` (OBC, Frantar et al. 2022, section 5). A weight pushed further than half a
    step from its grid, hence beyond its ends, goes at once, the furthest first. Zeros stay zero and move nothing.

    Parameters
    ----------
    system : Tensor, shape (k, k), float64
        The damped ``H``, positive definite.
    weight : Tensor, shape (rows, k)
    rounding : callable
        ``[rows, k] -> [rows, k]``, the nearest grid points.
    step : Tensor, shape (rows, 1)
        Spacing of each row's grid.

    Returns
    -------
    quantised : Tensor, shape (rows, k), float64
    loss : Tensor, shape (rows, k), float64
        Increase of ``(w − w₀) H (w − w₀)ᵀ`` at each step; the steps of zeros come first and cost nothing.
    """
    rows, features = weight.shape
    w = weight.double().clone()
    live = w != 0
    inverse = _restricted_inverses(system, live)
    quantised, loss = torch.zeros_like(w), torch.zeros_like(w)
    zeros = features - live.sum(dim=1)
    every = torch.arange(rows, device=w.device)
    for turn in range(int(zeros.min()) if rows else features, features):
        active = zeros <= turn
        target = rounding(w)
        picked, cost = _pick(torch.where(live, (w - target) ** 2, 0.0), inverse, live, step)
        if not bool(torch.isfinite(cost[active]).all()):
            raise NumericsError(
                "a row ran out of weights with a positive pivot",
                seen="the inverse is not positive definite to working precision",
                hint="a larger rel_damp",
            )
        chosen = every[active], picked[active]
        loss[active, turn] = cost[active]
        quantised[chosen] = target[chosen]
        live[chosen] = False
        column, pivot = inverse[every, :, picked], inverse[every, picked, picked]
        miss = (w - target)[every, picked]
        w -= torch.where(active[:, None], column * (miss / pivot)[:, None], 0.0)
        scaled = torch.where(active[:, None], column / pivot.sqrt()[:, None], 0.0)
        inverse.baddbmm_(scaled[:, :, None], scaled[:, None, :], alpha=-1.0)
    return quantised, loss


def _pick(miss: Tensor, inverse: Tensor, live: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The column each row fixes next, and what it costs; infinite where none can be."""
    pivots = torch.diagonal(inverse, dim1=1, dim2=2)
    scores = torch.where(live & (pivots > 0), miss / pivots, torch.inf)
    beyond = live & (pivots > 0) & (miss > 0.25 * step.double() ** 2)
    furthest = torch.where(beyond, miss, -1.0).argmax(dim=1)
    picked = torch.where(beyond.any(dim=1), furthest, scores.argmin(dim=1))
    return picked, scores.gather(1, picked[:, None])[:, 0]


def _restricted_inverses(system: Tensor, live: Tensor) -> Tensor:
    """``[rows, k, k]``: the inverse of the system on each row's live columns, the identity elsewhere."""
    rows = len(live)
    if bool((live == live[:1]).all()):  # one inversion serves all
        live = live[:1]
    both = live[:, :, None] & live[:, None, :]
    restricted = torch.where(both, system, torch.diag_embed((~live).to(system.dtype)))
    return torch.cholesky_inverse(torch.linalg.cholesky(restricted)).expand(rows, -1, -1).contiguous()
