# SPDX-License-Identifier: Apache-2.0
"""Greedy OBS that removes blocks of consecutive weights, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.errors import InputError, NumericsError


def block_obs(inverse: Tensor, weight: Tensor, size: int, parallel: int = 32) -> tuple[Tensor, Tensor]:
    """Remove all blocks of ``size`` columns from each row, always the one whose loss is least.

    With ``A = H⁻¹`` of the weights still there, a block ``B`` costs ``w_B A_BB⁻¹ w_Bᵀ`` and moves the rest by
    ``−w_B A_BB⁻¹ A_B,:`` (OBC, Frantar et al. 2022, section 4). ``A`` is shared by the rows: a row keeps the blocks of
    its own diagonal and the factor ``V`` of what was subtracted, ``A_row = A − VᵀV``.

    Parameters
    ----------
    inverse : Tensor, shape (k, k)
        Symmetric positive definite; used in float64.
    weight : Tensor, shape (rows, k)
    size : int
        Must divide ``k``.
    parallel : int
        Rows worked on at once; each takes ``8 k²`` bytes.

    Returns
    -------
    order : Tensor of int64, shape (rows, k / size)
        Blocks in the order they go; ties go to the lower index.
    loss : Tensor, shape (rows, k / size), float64
        Increase of ``(w − w₀) H (w − w₀)ᵀ`` at each step.

    Raises
    ------
    InputError
        ``size`` does not divide the columns, or is not positive.
    NumericsError
        The inverse is not positive definite to working precision.

    Examples
    --------
    >>> block_obs(torch.eye(4), torch.tensor([[3.0, 0.0, 1.0, 2.0]]), 2)[0]
    tensor([[1, 0]])
    """
    features = weight.shape[1]
    if size < 1 or features % size:
        raise InputError(
            "blocks do not fit the columns", asked=f"blocks of {size}", seen=f"{features} columns", hint="a divisor"
        )
    order = torch.empty(len(weight), features // size, dtype=torch.int64, device=weight.device)
    loss = torch.empty(order.shape, dtype=torch.float64, device=weight.device)
    for start in range(0, len(weight), max(parallel, 1)):
        part = slice(start, start + max(parallel, 1))
        order[part], loss[part] = _rows(inverse.double(), weight[part].double(), size)
    return order, loss


def _rows(shared: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    rows, features = weight.shape
    blocks = features // size
    w = weight.clone().reshape(rows, blocks, size)
    every = torch.arange(rows, device=w.device)
    diagonal = torch.arange(blocks, device=w.device)
    own = shared.reshape(blocks, size, blocks, size)[diagonal, :, diagonal].expand(rows, -1, -1, -1).clone()
    subtracted = w.new_zeros(rows, features, features)
    live = torch.ones(rows, blocks, dtype=torch.bool, device=w.device)
    order, loss = [], []
    for step in range(blocks):
        lower, info = torch.linalg.cholesky_ex(own)
        whitened = torch.linalg.solve_triangular(lower, w[..., None], upper=False)[..., 0]
        scores = torch.where(live & (info == 0), whitened.square().sum(dim=2), torch.inf)
        best, chosen = scores.min(dim=1)
        if not bool(torch.isfinite(best).all()):
            raise NumericsError(
                f"block_obs: after {step} of {blocks} blocks a row had none left with a positive definite diagonal",
                seen="the inverse is not positive definite to working precision",
                hint="more damping when the gram is inverted",
            )
        order.append(chosen)
        loss.append(best)
        live[every, chosen] = False
        columns = (chosen[:, None] * size + torch.arange(size, device=w.device))[:, :, None]
        past = subtracted[:, : step * size]
        across = shared[columns[:, :, 0]] - past.gather(2, columns.mT.expand(-1, step * size, -1)).mT @ past
        factor = torch.linalg.solve_triangular(lower[every, chosen], across, upper=False)
        subtracted[:, step * size : (step + 1) * size] = factor
        by_block = factor.reshape(rows, size, blocks, size)
        w -= torch.einsum("rs,rsbt->rbt", whitened[every, chosen], by_block)
        own -= torch.einsum("rsbt,rsbu->rbtu", by_block, by_block)
        w[~live] = 0.0
        own[~live] = torch.eye(size, dtype=own.dtype, device=own.device)
    return torch.stack(order, dim=1), torch.stack(loss, dim=1)
