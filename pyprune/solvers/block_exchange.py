# SPDX-License-Identifier: Apache-2.0
"""Whole blocks exchanged in one row of blocks, by exact gains from the tableau that its rows share."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.errors import NumericsError
from pyprune.ops.swap import tableau


def exchange_blocks(
    system: Tensor, target: Tensor, keep: Tensor, width: int, least: float, most: int | None
) -> tuple[Tensor, int, Tensor]:
    """Exchange a kept block for another while the loss of the ``height`` rows falls by more than ``least``.

    As in :func:`pyprune.ops.swap`, with ``2·width`` columns in a pivot, and the rows' targets as so many borders: rows
    of a block have their support in common, and so the tableau.

    Parameters
    ----------
    system : Tensor, shape (k, k), float64
    target : Tensor, shape (height, k), float64
    keep : Tensor of bool, shape (k / width,)

    Returns
    -------
    keep : Tensor of bool, shape (k / width,)
    exchanged : int
    worth : Tensor, shape (k / width,)
        Loss of removing a block that is kept, gain of adding one that is not.
    """
    keep = keep.clone()
    swept = tableau(system, target, keep.repeat_interleave(width))
    if swept is None:
        raise NumericsError("swap: a restricted system is not positive definite", hint="a larger damping")
    columns = torch.arange(len(system), device=system.device).reshape(-1, width)
    exchanged = 0
    while True:
        diagonal = swept[columns[:, :, None], columns[:, None, :]] * torch.where(keep, -1.0, 1.0)[:, None, None]
        border = swept[columns, len(system) :]
        kept, rest = torch.nonzero(keep)[:, 0], torch.nonzero(~keep)[:, 0]
        if not len(kept) or not len(rest) or (most is not None and exchanged >= most):
            break
        across = swept[columns[kept].reshape(-1)][:, columns[rest].reshape(-1)].reshape(len(kept), width, -1)
        gains = _gains(across, diagonal[kept], border[kept], diagonal[rest], border[rest])
        best = int(gains.argmax())
        if not float(gains.reshape(-1)[best]) > least:
            break
        out, into = kept[best // len(rest)], rest[best % len(rest)]
        _pivot(swept, columns[out], columns[into])
        keep[out], keep[into] = False, True
        exchanged += 1
    return keep, exchanged, _energy(diagonal, border)


def _gains(across: Tensor, inverse: Tensor, weight: Tensor, schur: Tensor, gradient: Tensor) -> Tensor:
    """What it gains to remove block ``p`` and then add block ``q``, ``[kept, rest]``.

    Parameters
    ----------
    across : Tensor, shape (kept, width, rest · width)
        Couplings.
    inverse, weight : Tensor, shape (kept, width, width) and (kept, width, height)
    schur, gradient : Tensor, shape (rest, width, width) and (rest, width, height)
    """
    kept, width, _ = across.shape
    moved = torch.linalg.solve(inverse, torch.cat([across, weight], dim=2))
    spread, freed = moved[:, :, : across.shape[2]], moved[:, :, across.shape[2] :]
    across, spread = (matrix.reshape(kept, width, -1, width) for matrix in (across, spread))
    schur = schur + torch.einsum("paqi,paqj->pqij", across, spread)  # with p out
    gradient = gradient + torch.einsum("paqi,pah->pqih", across, freed)
    gained: Tensor = _energy(schur.flatten(0, 1), gradient.flatten(0, 1)).reshape(kept, -1)
    lost: Tensor = (weight * freed).sum(dim=(1, 2))
    return gained - lost[:, None]


def _energy(matrix: Tensor, border: Tensor) -> Tensor:
    """``tr bᵀ M⁻¹ b`` for each of ``[blocks, width, width]`` and ``[blocks, width, height]``."""
    if matrix.shape[-1] == 1:
        return border.square().sum(dim=(1, 2)) / matrix[:, 0, 0]
    energy: Tensor = (border * torch.linalg.solve(matrix, border)).sum(dim=(1, 2))
    return energy


def _pivot(swept: Tensor, out: Tensor, into: Tensor) -> None:
    """Sweep the columns ``out`` out of the support and ``into`` into it; in place."""
    both = torch.cat([out, into])
    sign = torch.cat([-torch.ones_like(out), torch.ones_like(into)]).to(swept.dtype)
    inverse = torch.linalg.inv(swept[both][:, both])
    rows = inverse @ swept[both]
    swept -= swept[:, both] @ rows
    swept[both] = sign[:, None] * rows
    swept[:, both] = (sign[:, None] * rows).T
    swept[both[:, None], both] = -sign[:, None] * inverse * sign
