# SPDX-License-Identifier: Apache-2.0
"""Exact greedy Optimal Brain Surgeon, one block of weights at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError, NumericsError
from pyprune.ops import library

_SMALLEST_PIVOT = 1e-14  # that still counts, relative to the column's first


def block_obs(
    inverse: Tensor,  # [k, k]
    weight: Tensor,  # [rows, k]
    count: int | Tensor,  # or int64 [rows / height]
    *,
    height: int = 1,
    width: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # weight [rows, k], order [rows / height, steps], loss [rows / height, steps]
    """Remove ``count`` blocks from each group of ``height`` rows, always the one whose loss is least.

    A block is ``height`` consecutive rows by ``width`` consecutive columns. The rows of a group lose the same columns,
    so one ``A = H⁻¹`` of what is left serves them all: a block ``B`` costs ``Σ_rows w_B A_BB⁻¹ w_Bᵀ`` and moves the
    rest of its rows by ``−w_B A_BB⁻¹ A_B,:`` (OBC, Frantar et al. 2022, section 4, there for single rows). Ties go to
    the lower index. Blocks of one weight are :func:`pyprune.ops.obs`.

    Parameters
    ----------
    inverse : Tensor, shape (k, k)
        Inverse of the damped gram, symmetric positive definite, shared by the rows. Used in float64.
    weight : Tensor, shape (rows, k)
        Where to start: the dense weight, or the rectified one.
    count : int or Tensor of int64, shape (rows / height,)
        How many blocks each group loses.
    height, width : int
        Of a block; they must divide ``rows`` and ``k``. On a GPU the reference serves blocks of more than 64 columns.

    Returns
    -------
    weight : Tensor, shape (rows, k), float64
        Exactly zero where removed; elsewhere the least-squares fit restricted to what is left.
    order : Tensor of int64, shape (rows / height, steps)
        The removed blocks in order, counted along the columns, -1 after a group's last step; ``steps`` is the largest
        count.
    loss : Tensor, shape (rows / height, steps), float64
        Increase of ``(w − w₀) H (w − w₀)ᵀ``, summed over the group, at each step; 0 after a group's last one.

    Raises
    ------
    InputError
        Shapes, blocks or counts do not fit.
    NumericsError
        Inputs are not finite, or the inverse is not positive definite.

    Examples
    --------
    >>> pruned, order, loss = block_obs(torch.eye(4), torch.tensor([[3.0, 0.0, 1.0, 2.0]]), 1, width=2)
    >>> pruned
    tensor([[3., 0., 0., 0.]], dtype=torch.float64)
    >>> order, loss
    (tensor([[1]]), tensor([[5.]], dtype=torch.float64))
    """
    counts = _check(inverse, weight, count, height, width)
    steps = int(counts.max()) if counts.numel() else 0
    pruned, order, loss = _block_obs(
        inverse.double().contiguous(), weight.double().contiguous(), counts, steps, height, width
    )
    if bool(torch.isnan(loss).any()):
        group = int(torch.nonzero(torch.isnan(loss).any(dim=1))[0])
        raise NumericsError(
            f"block_obs: rows {group * height} to {(group + 1) * height - 1} ran out of blocks with positive pivots",
            seen="the inverse is not positive definite to working precision",
            hint="more damping when the gram is inverted",
        )
    return pruned, order, loss


def _check(inverse: Tensor, weight: Tensor, count: int | Tensor, height: int, width: int) -> Tensor:
    library.check_inverse("block_obs", inverse, weight)
    rows, features = weight.shape
    if height < 1 or width < 1 or rows % height or features % width:
        raise InputError(
            "block_obs: blocks do not fit the weight",
            asked=f"{height} x {width}",
            seen=f"weight [{rows}, {features}]",
            hint="a height that divides the rows and a width that divides the columns",
        )
    groups, blocks = rows // height, features // width
    counts = torch.as_tensor(count, dtype=torch.int64).to(weight.device)
    if counts.dim() and tuple(counts.shape) != (groups,):
        raise InputError("block_obs: one count a group of rows", asked=f"[{groups}]", seen=str(list(counts.shape)))
    counts = counts.expand(groups).contiguous()
    if groups and (int(counts.min()) < 0 or int(counts.max()) > blocks):
        raise InputError(
            "block_obs: count is out of range",
            asked=f"{int(counts.min())} to {int(counts.max())} blocks of a group of rows",
            seen=f"0 to {blocks} are possible",
        )
    for name, tensor in (("inverse", inverse), ("weight", weight)):
        if not library.all_finite(tensor):
            raise NumericsError(f"block_obs: {name} holds NaN or inf", hint="check the weights and statistics")
    return counts


@backends.implements("block_obs", "reference")
def block_obs_reference(
    inverse: Tensor, weight: Tensor, count: Tensor, steps: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One explicit inverse per group of rows, ``A −= A_:,B A_BB⁻¹ A_B,:``."""
    groups, blocks = len(weight) // height, weight.shape[1] // width
    weight = weight.clone()
    order = torch.full((groups, steps), -1, dtype=torch.int64, device=weight.device)
    loss = torch.zeros(groups, steps, dtype=torch.float64, device=weight.device)
    diagonal = torch.arange(blocks, device=weight.device)
    for group, w in enumerate(weight.reshape(groups, height, blocks, width)):  # views: w is a part of weight
        a = inverse.reshape(blocks, width, blocks, width).clone()
        live = torch.ones(blocks, dtype=torch.bool, device=weight.device)
        for step in range(int(count[group])):
            lower, info = torch.linalg.cholesky_ex(a[diagonal, :, diagonal])
            white = torch.linalg.solve_triangular(lower, w.permute(1, 2, 0), upper=False)
            scores = torch.where(live & (info == 0), white.square().sum(dim=(1, 2)), torch.inf)
            p = int(scores.argmin())
            if not bool(torch.isfinite(scores[p])):
                loss[group, step:] = torch.nan
                break
            order[group, step], loss[group, step] = p, scores[p]
            across = a[p].reshape(width, -1).clone()
            moved = torch.cholesky_solve(across, lower[p])  # A_BB⁻¹ A_B,:
            w -= (w[:, p] @ moved).reshape(w.shape)
            a -= (across.T @ moved).reshape(a.shape)
            live[p] = False
            w[:, ~live] = 0.0
    return weight, order, loss


@backends.implements("block_obs", "cpp")
def _block_obs_cpp(
    inverse: Tensor, weight: Tensor, count: Tensor, steps: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, features = weight.shape
    pruned = torch.empty_like(weight)
    order = torch.empty(rows // height, steps, dtype=torch.int64)
    loss = torch.empty(rows // height, steps, dtype=torch.float64)
    backends.extension().block_obs(
        pruned.data_ptr(),
        order.data_ptr(),
        loss.data_ptr(),
        inverse.data_ptr(),
        weight.data_ptr(),
        count.data_ptr(),
        rows,
        features,
        height,
        width,
        steps,
        backends.threads(),
    )
    return pruned, order, loss


# Columns of a block at most: beyond it few steps are left, and the reference takes them one matrix at a time.
_WIDEST = 64
# Bytes of bases held at once; constant, though bits do not depend on it.
_WORKSPACE = 4 << 30


def steps_at_once(columns: int, width: int) -> int:
    """Blocks of ``width`` columns that go before the inverse of the others is made anew.

    Few for narrow matrices: reading what they took grows with their number, making the inverse with its reciprocal.
    """
    return max(1, (64 if columns <= 2048 else 128) // width)


def groups_at_once(each: int, groups: int, workspace: int = _WORKSPACE) -> int:
    """Groups of rows whose ``each`` bytes fit ``workspace``; at least one."""
    return max(1, min(groups, workspace // max(each, 1)))


@backends.implements("block_obs", "cuda")
def _block_obs_cuda(
    inverse: Tensor, weight: Tensor, count: Tensor, steps: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, features = weight.shape
    groups, blocks = rows // height, features // width
    if width > _WIDEST:
        return block_obs_reference(inverse, weight, count, steps, height, width)
    order = torch.empty(groups, steps, dtype=torch.int64, device=weight.device)
    loss = weight.new_empty(groups, steps)
    if not weight.numel() or not steps:
        return weight.clone(), order, loss
    plane = torch.arange(features, device=weight.device).reshape(blocks, width).T.reshape(-1)
    planes = inverse[plane][:, plane].contiguous()
    moved = weight[:, plane].contiguous().reshape(groups, height, features)
    at_once = groups_at_once(8 * features * (features + steps_at_once(features, width) * width), groups)
    for first in range(0, groups, at_once):
        part = slice(first, first + at_once)
        order[part], loss[part] = _remove(planes, moved[part], count[part], steps, width)
    gone = torch.zeros(groups, blocks + 1, dtype=torch.bool, device=weight.device)
    gone.scatter_(1, torch.where(order < 0, blocks, order), True)
    pruned = torch.empty_like(weight)
    pruned[:, plane] = moved.masked_fill_(gone[:, None, :blocks].repeat(1, 1, width), 0.0).reshape(rows, features)
    return pruned, order, loss


def _remove(inverse: Tensor, weight: Tensor, count: Tensor, steps: int, width: int) -> tuple[Tensor, Tensor]:
    """Removals from weights ``[groups, height, k]``, columns in planes, in place: order and loss."""
    extension = backends.extension()
    groups, height, features = weight.shape
    blocks, panel = features // width, steps_at_once(features, width)
    order = torch.empty(groups, steps, dtype=torch.int64, device=weight.device)
    loss = weight.new_empty(groups, steps)
    state = torch.zeros_like(count)
    lower = torch.tril_indices(width, width, device=weight.device)
    own = inverse.reshape(width, blocks, width, blocks).diagonal(dim1=1, dim2=3)[lower[0], lower[1]]
    diagonal = own.repeat(groups, 1, 1)
    floor = _SMALLEST_PIVOT * inverse.diagonal()
    chain = weight.new_empty(groups, min(panel, steps) * width, features)
    base = inverse
    with library.cuda_stream(weight) as stream:
        workspace = weight.new_empty(groups, extension.block_obs_plan_cuda(height, width, blocks, steps))
        for first in range(0, steps, panel):
            last = min(first + panel, steps)
            lines = chain.view(-1)[: groups * (last - first) * width * features].view(groups, -1, features)
            extension.block_obs_cuda(
                weight.data_ptr(),
                order.data_ptr(),
                loss.data_ptr(),
                state.data_ptr(),
                lines.data_ptr(),
                diagonal.data_ptr(),
                workspace.data_ptr(),
                base.data_ptr(),
                0 if base is inverse else features * features,
                floor.data_ptr(),
                count.data_ptr(),
                groups,
                height,
                width,
                blocks,
                steps,
                first,
                last,
                stream,
            )
            if last < steps and base is inverse:
                base = torch.baddbmm(base.expand(groups, -1, -1), lines.mT, lines, alpha=-1.0)
            elif last < steps:
                base.baddbmm_(lines.mT, lines, alpha=-1.0)
    return order, loss


_block_obs = library.register(
    "block_obs(Tensor inverse, Tensor weight, Tensor count, int steps, int height, int width)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda inverse, weight, count, steps, height, width: (
        torch.empty_like(weight),
        weight.new_empty((weight.shape[0] // height, steps), dtype=torch.int64),
        weight.new_empty((weight.shape[0] // height, steps)),
    ),
)
