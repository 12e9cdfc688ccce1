# SPDX-License-Identifier: Apache-2.0
"""Exact greedy Optimal Brain Surgeon, one weight at a time, all rows at once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError, NumericsError
from pyprune.ops import library
from pyprune.ops.masked_lstsq import solve_rows
from pyprune.ops.rescale import rescale


def obs(
    inverse: Tensor,  # [k, k]
    weight: Tensor,  # [rows, k]
    count: int | Tensor,  # or int64 [rows] or [points, rows]
    *,
    keep: int = 0,
    of: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:  # weight [rows, k] or [points, rows, k], order [rows, steps], loss [rows, steps]
    """Remove ``count`` weights from each row, always the one whose loss is least, updating the others.

    With ``A = H⁻¹`` of the weights still there, one step removes ``p = argmin w_p² / A_pp`` at a loss of
    ``w_p² / A_pp`` and moves the rest by ``−A[:,p] w_p / A_pp`` (Hassibi & Stork 1993; ExactOBS, Frantar et al.
    2022, eq. 3; AKR, arXiv 2310.13191, Algorithm 2). Ties go to the lower index.

    Parameters
    ----------
    inverse : Tensor, shape (k, k)
        Inverse of the damped gram, symmetric positive definite, shared by the rows. Used in float64.
    weight : Tensor, shape (rows, k)
        Where to start: the dense weight, or the rectified one.
    count : int or Tensor of int64, shape (rows,) or (points, rows)
        How many weights each row loses. Several points are read off one run, which goes as far as the largest.
    keep, of : int
        With ``of > 0`` a weight may go only while its group of ``of`` consecutive ones holds more than ``keep``.
    dtype : torch.dtype
        Arithmetic in which weights are chosen: float64, or float32 for half the time. Choices between weights whose
        losses agree to about five digits may then differ, and ``loss`` is no more accurate than that; rows for which
        float32 does not suffice are done in float64. The weights are accurate to float64 either way. The reference
        uses float64 always; it is also what a GPU runs where a row's state is too large for a multiprocessor (on an
        H100 above 24,000 columns, 13,000 in float64).

    Returns
    -------
    weight : Tensor, shape (rows, k) or (points, rows, k), float64
        Exactly zero where removed; elsewhere the least-squares fit restricted to what is left.
    order : Tensor of int64, shape (rows, steps)
        The removed columns in order, -1 after a row's last step; ``steps`` is the largest count.
    loss : Tensor, shape (rows, steps), float64
        Increase of ``(w − w₀) H (w − w₀)ᵀ`` at each step, 0 after a row's last one.

    Raises
    ------
    InputError
        Shapes, counts or ``dtype`` do not fit.
    NumericsError
        Inputs are not finite, or the inverse is not positive definite.

    Examples
    --------
    >>> pruned, order, loss = obs(torch.eye(3), torch.tensor([[3.0, 1.0, 2.0]]), 2)
    >>> order
    tensor([[1, 2]])
    """
    counts = _check(inverse, weight, count, keep, of)
    if dtype not in (torch.float32, torch.float64):
        raise InputError("obs: dtype must be float32 or float64", seen=str(dtype))
    steps = int(counts.max()) if counts.numel() else 0
    pruned, order, loss = _obs(
        inverse.double().contiguous(), weight.double().contiguous(), counts, steps, keep, of, dtype == torch.float32
    )
    if bool(torch.isnan(loss).any()):
        row = int(torch.nonzero(torch.isnan(loss).any(dim=1))[0])
        raise NumericsError(
            f"obs: row {row} ran out of weights with a positive pivot",
            seen="the inverse is not positive definite to working precision",
            hint="more damping when the gram is inverted",
        )
    return pruned, order, loss


def _check(inverse: Tensor, weight: Tensor, count: int | Tensor, keep: int, of: int) -> Tensor:
    library.check_inverse("obs", inverse, weight)
    rows, features = weight.shape
    counts = torch.as_tensor(count, dtype=torch.int64).to(weight.device)
    if counts.dim() > 2 or (counts.dim() and counts.shape[-1] != rows) or counts.shape[:-1] == (0,):
        raise InputError(
            "obs: count does not fit", asked=f"a number, [{rows}] or [points, {rows}]", seen=str(list(counts.shape))
        )
    counts = (counts if counts.dim() else counts.expand(rows)).contiguous()
    if of < 0 or (of and (features % of or not 0 <= keep <= of)):
        raise InputError("obs: the groups do not fit", asked=f"keep {keep} of {of}", seen=f"{features} columns")
    most = features // of * (of - keep) if of else features
    if counts.numel() and (int(counts.min()) < 0 or int(counts.max()) > most):
        raise InputError(
            "obs: count is out of range",
            asked=f"{int(counts.min())} to {int(counts.max())} a row",
            seen=f"0 to {most} are possible",
        )
    for name, tensor in (("inverse", inverse), ("weight", weight)):
        if not library.all_finite(tensor):
            raise NumericsError(f"obs: {name} holds NaN or inf", hint="check the weights and statistics")
    return counts


@backends.implements("obs", "reference")
def obs_reference(
    inverse: Tensor, weight: Tensor, count: Tensor, steps: int, keep: int, of: int, single: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank-1 updates of one explicit inverse per row; in float64, ``single`` or not."""
    pruned = weight.expand(*count.shape, weight.shape[1]).clone()
    order = torch.full((len(weight), steps), -1, dtype=torch.int64, device=weight.device)
    loss = torch.zeros(len(weight), steps, dtype=torch.float64, device=weight.device)
    for row, w in enumerate(weight.clone()):
        a, live, wanted = inverse.clone(), torch.ones_like(w, dtype=torch.bool), count[..., row]
        for step in range(int(wanted.max())):
            open_ = live & (a.diagonal() > 0)
            if of:
                open_ &= (live.reshape(-1, of).sum(dim=1) > keep).repeat_interleave(of)
            scores = torch.where(open_, w**2 / a.diagonal(), torch.inf)
            p = int(scores.argmin())
            if not bool(open_[p]):
                loss[row, step:] = torch.nan
                break
            order[row, step], loss[row, step] = p, scores[p]
            column = a[:, p].clone()
            w -= column * (w[p] / column[p])
            a -= torch.outer(column, column / column[p])
            live[p] = False
            w[~live] = 0.0
            pruned[..., row, :][wanted == step + 1] = w
    return pruned, order, loss


@backends.implements("obs", "cpp")
def _obs_cpp(
    inverse: Tensor, weight: Tensor, count: Tensor, steps: int, keep: int, of: int, single: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, features = weight.shape
    pruned = torch.empty(*count.shape, features, dtype=torch.float64)
    order = torch.empty(rows, steps, dtype=torch.int64)
    loss = torch.empty(rows, steps, dtype=torch.float64)
    backends.extension().obs(
        pruned.data_ptr(),
        order.data_ptr(),
        loss.data_ptr(),
        inverse.data_ptr(),
        weight.data_ptr(),
        count.data_ptr(),
        library.ELEMENT_TYPE[torch.float32 if single else torch.float64],
        count.shape[0] if count.dim() == 2 else 1,
        rows,
        features,
        steps,
        keep,
        of,
        backends.threads(),
    )
    return pruned, order, loss


def _fit_without(inverse: Tensor, weight: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of float64 accuracy with the columns ``order`` names gone, and which rows' fits can be relied on.

    They are a fit: ``A_PP z = w₀[P]`` for the removed ``P``, ``w = w₀ − z A[P, :]``.
    """
    rows, features = weight.shape
    gone = torch.zeros(rows, features + 1, dtype=torch.bool, device=weight.device)
    gone = gone.scatter_(1, torch.where(order < 0, features, order), True)[:, :features].contiguous()
    z, status = solve_rows(inverse, weight, gone, 1e-14)
    return torch.where(gone, 0.0, torch.addmm(weight, z, inverse, alpha=-1.0)), status == 0


def _point_by_point(run: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Several counts a row for a way that knows one: the others' weights are fits on prefixes of the longest run."""

    @functools.wraps(run)
    def all_points(
        inverse: Tensor, weight: Tensor, count: Tensor, steps: int, keep: int, of: int, single: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if count.dim() == 1:
            return run(inverse, weight, count, steps, keep, of, single)
        longest = count.amax(dim=0)
        last, order, loss = run(inverse, weight, longest, steps, keep, of, single)
        step = torch.arange(steps, device=weight.device)
        points = []
        for counts in count:
            fitted, good = _fit_without(inverse, weight, torch.where(step < counts[:, None], order, -1))
            fitted[counts == longest] = last[counts == longest]
            rows = torch.nonzero(~good & (counts < longest))[:, 0]
            if len(rows):
                fitted[rows] = run(inverse, weight[rows], counts[rows], steps, keep, of, single)[0]
            points.append(fitted)
        return torch.stack(points), order, loss

    return all_points


@backends.implements("obs", "triton")
@_point_by_point
def _obs_triton(
    inverse: Tensor, weight: Tensor, count: Tensor, steps: int, keep: int, of: int, single: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from pyprune.triton_kernels.obs import prune  # imports triton, only where it is used

    pruned = weight.clone()
    order = torch.full((len(weight), steps), -1, dtype=torch.int64, device=weight.device)
    loss = weight.new_zeros(len(weight), steps)
    rows = torch.nonzero(count)[:, 0]
    for dtype in (torch.float32, torch.float64) if single else (torch.float64,):
        if len(rows):  # those that float32 does not settle are done again
            *found, settled = prune(inverse, weight[rows], count[rows], steps, keep=keep, of=of, dtype=dtype)
            pruned[rows], order[rows], loss[rows] = found
            rows = rows[~settled]
    return pruned, order, loss


# Bytes of rows of V; constant, though bits do not depend on it.
_WORKSPACE = 4 << 30


@backends.implements("obs", "cuda")
@_point_by_point
def _obs_cuda(
    inverse: Tensor, weight: Tensor, count: Tensor, steps: int, keep: int, of: int, single: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = len(weight)
    pruned, loss = weight.clone(), weight.new_zeros(rows, steps)
    order = torch.full((rows, steps), -1, dtype=torch.int64, device=weight.device)
    if not weight.numel() or not steps:
        return pruned, order, loss
    # Columns by powers of two: pivots start near one, and so do a row's weights.
    diagonal = inverse.diagonal()
    unit = torch.exp2((-0.5 * torch.where(diagonal > 0, diagonal, 1.0).log2()).round())
    scaled, start = rescale(inverse, unit), weight * unit
    largest = start.abs().amax(dim=1, keepdim=True)
    scale = torch.exp2(-torch.where(largest > 0, largest, 1.0).log2().floor())
    start *= scale
    todo = torch.arange(rows, device=weight.device)
    for dtype in (torch.float32, torch.float64) if single else (torch.float64,):
        moved, order[todo], losses, status = _remove(scaled, start[todo], count[todo], steps, keep, of, dtype)
        pruned[todo] = moved / (unit * scale[todo])
        loss[todo] = losses / scale[todo] ** 2
        todo = todo[status != 0]
        if not len(todo):
            break
    fitted, good = _fit_without(inverse, weight, order)
    return torch.where(good[:, None], fitted, pruned), order, loss


def blocks_at_once(resident: int, each: int, rows: int, workspace: int = _WORKSPACE) -> int:
    """Blocks to launch: as many as the device runs at once, as there are rows, as fit the workspace; at least one.

    Parameters
    ----------
    resident : int
        Blocks that the device runs at once; 0 where a row's state does not fit, and no kernel is to be used.
    each : int
        Bytes of workspace that one block needs.
    """
    return 0 if resident == 0 else max(1, min(resident, rows, workspace // each))


def _remove(
    inverse: Tensor, weight: Tensor, count: Tensor, steps: int, keep: int, of: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Removals by the CUDA kernel in ``dtype``: weights, order, loss, and which rows (not 0) need float64."""
    extension, kind = backends.extension(), library.ELEMENT_TYPE[dtype]
    rows, features = weight.shape
    stride = -(-features // 4) * 4
    with library.cuda_stream(weight) as stream:
        resident, elements = extension.obs_plan_cuda(kind, features, stride, steps, keep, of)
        blocks = blocks_at_once(resident, elements * dtype.itemsize, rows)
        if blocks == 0:  # more columns than a multiprocessor holds
            return *obs_reference(inverse, weight, count, steps, keep, of, False), torch.zeros_like(count)
        moved = torch.nn.functional.pad(weight.to(dtype), (0, stride - features))
        padded = torch.nn.functional.pad(inverse.to(dtype), (0, stride - features)).contiguous()
        workspace = torch.empty(blocks, elements, dtype=dtype, device=weight.device)
        order = torch.empty(rows, steps, dtype=torch.int64, device=weight.device)
        loss = torch.empty(rows, steps, dtype=torch.float64, device=weight.device)
        status = torch.empty_like(count)
        extension.obs_cuda(
            moved.data_ptr(),
            order.data_ptr(),
            loss.data_ptr(),
            status.data_ptr(),
            workspace.data_ptr(),
            padded.data_ptr(),
            count.data_ptr(),
            kind,
            rows,
            features,
            stride,
            steps,
            keep,
            of,
            blocks,
            stream,
        )
    return moved[:, :features].double(), order, loss, status


_obs = library.register(
    "obs(Tensor inverse, Tensor weight, Tensor count, int steps, int keep, int of, bool single)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda inverse, weight, count, steps, keep, of, single: (
        weight.new_empty((*count.shape, weight.shape[1])),
        weight.new_empty((weight.shape[0], steps), dtype=torch.int64),
        weight.new_empty((weight.shape[0], steps)),
    ),
)
