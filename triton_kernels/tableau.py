# SPDX-License-Identifier: Apache-2.0
"""Principal tableaus of many supports at once, by torch's batched products: what exchanges of pairs start from.

The tableau of ``[[K, b], [bᵀ, 0]]`` with respect to a set N of its columns, R the rest (Goodnight 1979, the sweep
operator), with L the factor of a panel's pivot block and X the panel's rows, is made panel by panel:
``P −= (L⁻¹X)ᵀ L⁻¹X``, X with a unit matrix taken from its pivot block. That leaves

    P_NN = −K_NN⁻¹    P_NR = K_NN⁻¹ K_NR    P_RR = K_RR − K_RN K_NN⁻¹ K_NR    y_N = K_NN⁻¹ b_N    y_R = b_R − K_RN y_N

Columns have positions: those of N from 0 on, those of R from `start` on, the border last; between them is padding,
whose rows and columns are zero but for ones on the diagonal.

n w² multiply-adds a row, n = |N|, w = its positions, in batched products that reuse each number `PANEL` times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PANEL = 64  # columns swept by one product
_ALIGN = 32  # where R begins, and the number of positions


@dataclass(frozen=True)
class Positions:
    """Where the columns of each row are.

    Attributes
    ----------
    index : Tensor of int64, shape (rows, positions)
        The column, -1 at padding and at the border.
    inside, start, outside : Tensor of int32, shape (rows,)
        How many columns are in N, where R begins, how many are in R.
    """

    index: Tensor
    inside: Tensor
    start: Tensor
    outside: Tensor


def width_for(columns: int) -> int:
    """Positions of a row of so many columns, whatever N is: a multiple of 32, with room for the border."""
    return -(-(columns + _ALIGN) // _ALIGN) * _ALIGN


def positions_of(inside: Tensor, columns: Tensor) -> Positions:
    """Positions of ``columns`` ``[rows, count]``, ascending, of which those ``inside`` (bool) are N."""
    rows, count = columns.shape
    order = (~inside).to(torch.uint8).argsort(dim=1, stable=True)
    number = inside.sum(dim=1)
    start = -(-number // _ALIGN) * _ALIGN
    rank = torch.arange(count, device=columns.device).expand(rows, count)
    place = torch.where(rank < number[:, None], rank, rank + (start - number)[:, None])
    index = torch.full((rows, width_for(count)), -1, dtype=torch.int64, device=columns.device)
    index.scatter_(1, place, columns.gather(1, order))
    return Positions(index, number.int(), start.int(), (count - number).int())


def bordered(matrix: Tensor, border: Tensor, at: Positions) -> Tensor:
    """``[[K, b], [bᵀ, 0]]`` of each row, ``[rows, positions, positions]``; ``matrix`` [k, k], ``border`` [rows, k]."""
    columns = len(matrix)
    padding = at.index < 0
    index = torch.where(padding, columns, at.index)
    tableau: Tensor = torch.nn.functional.pad(matrix, (0, 1, 0, 1))[index[:, :, None], index[:, None, :]]
    diagonal = tableau.diagonal(dim1=1, dim2=2)
    diagonal.copy_(torch.where(padding, 1.0, diagonal))
    edge = torch.nn.functional.pad(border, (0, 1)).gather(1, index)
    tableau[:, :, -1] = edge
    tableau[:, -1, :] = edge
    return tableau


def sweep(tableau: Tensor, inside: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Sweep the first ``inside`` columns of each row, at most ``most``, in place.

    Parameters
    ----------
    tableau : Tensor, shape (rows, positions, positions)
        K with a diagonal near one. The products follow torch's setting of TF32: turn it off around this.
    inside : Tensor, shape (rows,)

    Returns
    -------
    energy : Tensor, shape (rows,), float64
        ``b_N K_NN⁻¹ b_N``.
    good : Tensor of bool, shape (rows,)
        Whether K_NN is positive definite to working precision; the tableau of a row that is not means nothing.
    """
    smallest = (torch.finfo(tableau.dtype).eps * inside)[:, None]
    energy = tableau.new_zeros(len(tableau), dtype=torch.float64)
    good = torch.ones_like(energy, dtype=torch.bool)
    diagonal = tableau.diagonal(dim1=1, dim2=2)
    for first in range(0, most, PANEL):
        last = min(first + PANEL, most)
        column = torch.arange(first, last, device=tableau.device)
        swept = column < inside[:, None]
        unit = torch.eye(last - first, dtype=tableau.dtype, device=tableau.device)
        rows = torch.where(swept[:, :, None], tableau[:, first:last], 0.0)
        own = rows[:, :, first:last]
        pivots = torch.where(swept[:, :, None] & swept[:, None, :], own, unit)
        factor, info = torch.linalg.cholesky_ex(pivots)
        positive = (info == 0) & (factor.diagonal(dim1=1, dim2=2).square() > smallest).all(dim=1)
        factor = torch.where(positive[:, None, None], factor, unit)
        own -= unit * swept[:, None, :]
        half = torch.linalg.solve_triangular(factor, unit.expand_as(factor), upper=False) @ rows
        energy += half[:, :, -1].double().square().sum(dim=1)
        tableau.baddbmm_(half.mT, half, alpha=-1.0)
        diagonal[:, first:last] -= 2.0 * swept.to(tableau.dtype)
        good &= positive
    return energy, good
