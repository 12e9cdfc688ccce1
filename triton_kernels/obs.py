# SPDX-License-Identifier: Apache-2.0
"""Exact greedy Optimal Brain Surgeon of each row, lazily; A = H⁻¹ [k, k] shared, weight [rows, k].

One program takes one row through all its removals. A step removes p = argmin w_p² / D_p over the open
columns, D the diagonal of the inverse of what is left. The row p of that inverse is never kept up to date
but made when it is wanted, r = A[p, :] − V[:, p]ᵀ V, with a new row V[t, :] = r / √D_p for every step
(pivoted Cholesky): same pivots and weights as with explicit inverses. Then w −= r w_p / D_p and
D −= r² / D_p, and the next p is found on the way. Ties go to the lower column.

s steps cost s² k multiply-adds a row and read s² k / 2 numbers of V, which stream from memory: it is bound
by that. w, D and the rest of a row's state are k numbers each and stay in the cache.

The removals leave V[:t, p_t], the Cholesky factor L of A[P, P] in the order of removal. The weights are
w₀ − A[:, P] z with A[P, P] z = w₀[P], and `fit` gets them to float64's accuracy whatever the arithmetic
before: solves with L, residuals by a float64 product. No atomics; a row's bits depend on its own data only,
but for torch's product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from pyprune.triton_kernels.obs_kernels import remove_kernel, substitute_kernel
from pyprune.triton_kernels.watch import Watch

FACTORS = 4 << 30  # bytes of V held at once
ROUNDS = 8  # of refinement
# Rounds end where the next one, by the ratio of the last two, would move no weight by more than this part of the
# largest. That ratio, 1e-3 to 1e-6 on systems that float32 is used for, is right to a factor of ten.
STILL = 1e-9
# Smallest pivot that still counts, relative to the column's first: below it the row's system is singular.
SMALLEST_PIVOT = {torch.float32: 1e-6, torch.float64: 1e-14}


@dataclass(frozen=True)
class Line:
    """How a program walks along its row."""

    block: int  # columns at a time, a power of two
    depth: int  # rows of V at a time
    warps: int


def line_for(columns: int, itemsize: int) -> Line:
    """Choose the walk: 4 columns a lane, 8 on float32 rows of more than 1,024; 8 rows of V in flight."""
    block = min(8192 // itemsize, max(128, triton.next_power_of_2(columns)))
    return Line(block=block, depth=8, warps=min(8, block // 128))


def rows_at_once(steps: int, columns: int, itemsize: int) -> int:
    """Rows whose V fits into `FACTORS` bytes; at least one."""
    return max(1, FACTORS // max(1, steps * columns * itemsize))


def warps_for(size: int) -> int:
    """Warps for a substitution of `size` unknowns, a power of two: 8 of them a lane, on up to 16 warps."""
    return min(16, max(1, size // 256))


@dataclass
class Removals:
    """Of some rows, what went and what is needed to fit the rest.

    Attributes
    ----------
    order : Tensor of int32, shape (rows, steps)
        Columns in order of removal, -1 past a row's last.
    score : Tensor, shape (rows, steps)
        ``w² / D`` of each removal, 0 past the last.
    alpha, root : Tensor, shape (rows, steps)
        ``L⁻¹ w₀[P]``, and one over the diagonal of L.
    factor : Tensor, shape (rows, steps, k)
        V.
    done : Tensor of int32, shape (rows,)
        Removals made: fewer than asked where no open column had a positive pivot.
    sure : Tensor of bool, shape (rows,)
        Whether every column that is left still has one; in float32 one that has not may have lost it to rounding.
    """

    order: Tensor
    score: Tensor
    alpha: Tensor
    root: Tensor
    factor: Tensor
    done: Tensor
    sure: Tensor


def remove(
    inverse: Tensor,  # [k, k]
    weight: Tensor,  # [rows, k]
    count: Tensor,  # [rows]
    factor: Tensor,  # [rows, steps, k]
    *,
    keep: int = 0,
    of: int = 0,
) -> Removals:
    """Remove `count` weights from each row, greedily.

    Parameters
    ----------
    inverse : Tensor, shape (k, k), float32 or float64
        Symmetric positive definite, contiguous.
    weight : Tensor, shape (rows, k)
        Of the same dtype, contiguous. Not changed.
    count : Tensor of int32, shape (rows,)
        At most `steps` each, at least 1.
    factor : Tensor, shape (rows, steps, k)
        Where V goes; of the same dtype, contiguous.
    keep, of : int
        With `of > 0`, a weight may go only while its group of `of` columns holds more than `keep`.

    Raises
    ------
    ValueError
        If a shape, dtype, layout or device does not fit.
    """
    rows, columns = weight.shape
    dtype = weight.dtype
    if dtype not in SMALLEST_PIVOT or not weight.is_contiguous() or factor.ndim != 3:
        raise ValueError(f"weight must be contiguous float32 or float64, factor 3-D, got {dtype}, {factor.ndim}-D")
    if of and columns % of:
        raise ValueError(f"groups of {of} do not fit {columns} columns")
    steps = factor.shape[1]
    wanted = [
        ("inverse", inverse, (columns, columns), dtype),
        ("count", count, (rows,), torch.int32),
        ("factor", factor, (rows, steps, columns), dtype),
    ]
    for name, tensor, shape, kind in wanted:
        if (
            tensor.shape != shape
            or tensor.dtype != kind
            or not tensor.is_contiguous()
            or tensor.device != weight.device
        ):
            raise ValueError(f"{name} must be contiguous {kind} {shape} on {weight.device}, got {tuple(tensor.shape)}")
    shape = (rows, steps)
    out = Removals(
        order=torch.full(shape, -1, dtype=torch.int32, device=weight.device),
        score=weight.new_zeros(shape),
        alpha=weight.new_zeros(shape),
        root=weight.new_zeros(shape),
        factor=factor,
        done=torch.empty_like(count),
        sure=torch.empty_like(count, dtype=torch.bool),
    )
    if rows == 0 or columns == 0:
        return out
    pivot = inverse.diagonal().repeat(rows, 1)
    floor = torch.full_like(pivot, torch.inf) if of and of <= keep else SMALLEST_PIVOT[dtype] * pivot
    groups = columns // of if of else 1
    line = line_for(columns, weight.element_size())
    with torch.cuda.device_of(weight):  # Triton launches on the current device; no effect on CPU tensors
        remove_kernel[(rows,)](
            out.order,
            out.score,
            out.alpha,
            out.root,
            out.done,
            out.sure.view(torch.uint8),
            out.factor,
            weight.clone(),
            pivot,
            floor,
            torch.full((rows, groups), of - keep, dtype=torch.int32, device=weight.device),
            inverse,
            count,
            columns,
            steps,
            groups,
            OF=of,
            GROUP=triton.next_power_of_2(max(of, 1)),
            BLOCK=line.block,
            DEPTH=line.depth,
            num_warps=line.warps,
            num_stages=2,
            enable_fp_fusion=True,
        )
    return out


def substitute(gone: Removals, x: Tensor, *, forward: bool, backward: bool) -> None:
    """``x := L⁻¹ x``, then ``x := L⁻ᵀ x``, of each row, in place; x ``[rows, steps]``, of the factor's dtype."""
    rows, steps, columns = gone.factor.shape
    if x.shape != (rows, steps) or x.dtype != gone.factor.dtype or not x.is_contiguous():
        raise ValueError(f"x must be contiguous {gone.factor.dtype} ({rows}, {steps}), got {tuple(x.shape)} {x.dtype}")
    size = triton.next_power_of_2(steps)
    with torch.cuda.device_of(x):  # Triton launches on the current device; no effect on CPU tensors
        substitute_kernel[(rows,)](
            x,
            gone.factor,
            gone.root,
            gone.order,
            gone.done,
            columns,
            steps,
            FORWARD=forward,
            BACKWARD=backward,
            SIZE=size,
            num_warps=warps_for(size),
            num_stages=2,
            enable_fp_fusion=True,
        )


def prune(
    inverse: Tensor,  # [k, k]
    weight: Tensor,  # [rows, k]
    count: Tensor,  # [rows]
    steps: int,
    *,
    keep: int,
    of: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Remove and fit, a bounded number of rows at a time.

    Parameters
    ----------
    inverse, weight : Tensor, shapes (k, k) and (rows, k), float64
    count : Tensor of int64, shape (rows,)
        At least 1.
    dtype : torch.dtype
        Arithmetic of the removals.

    Returns
    -------
    weight : Tensor, shape (rows, k), float64
    order : Tensor of int64, shape (rows, steps)
    loss : Tensor, shape (rows, steps), float64
        NaN from where a row ran out of columns with a positive pivot.
    settled : Tensor of bool, shape (rows,)
        Whether this arithmetic carried the row.
    """
    rows, columns = weight.shape
    pruned = torch.empty_like(weight)
    order = torch.empty(rows, steps, dtype=torch.int64, device=weight.device)
    loss, settled = weight.new_empty(rows, steps), torch.empty_like(count, dtype=torch.bool)
    # In units that float32 can hold: the largest diagonal entry and each row's largest weight near one.
    unit = _power_near(inverse.diagonal().max())
    scaled = (inverse * unit).to(dtype).contiguous()
    height = min(rows, rows_at_once(steps, columns, dtype.itemsize))
    factor = scaled.new_empty(height, steps, columns)
    for first in range(0, rows, height):
        part = slice(first, first + height)
        own = weight[part]
        scale = _power_near(own.abs().amax(dim=1, keepdim=True))
        gone = remove(scaled, (own * scale).to(dtype), count[part].int(), factor[: len(own)], keep=keep, of=of)
        whole = gone.done == count[part]
        pruned[part], rest = fit(inverse, own, gone, unit, scale)
        order[part] = gone.order
        past = torch.arange(steps, device=weight.device) >= gone.done[:, None]
        loss[part] = torch.where(past & ~whole[:, None], torch.nan, gone.score.double() * (unit / scale / scale))
        settled[part] = whole & rest & (gone.sure if dtype == torch.float32 else True)
    return pruned, order, loss, settled


def fit(inverse: Tensor, dense: Tensor, gone: Removals, unit: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that the removals leave, float64 ``[rows, k]``, and which rows came to rest, bool ``[rows]``.

    ``inverse`` and ``dense`` are A and w₀; the removals saw ``unit · A`` and ``scale · w₀``.
    """
    rows, columns = dense.shape
    past = gone.order < 0
    at = torch.where(past, columns, gone.order).long()
    removed = dense.new_zeros(rows, columns + 1, dtype=torch.bool).scatter_(1, at, ~past)[:, :columns]
    weight, going = dense.clone(), torch.ones_like(gone.sure)
    still, before = ~going, torch.full_like(dense[:, 0], torch.inf)
    watch = Watch(dense.device)
    x = gone.alpha
    for step in range(ROUNDS):
        if step > 0:
            if watch.all_down(going):
                break
            own = torch.where(past, 0.0, weight.gather(1, at.clamp(max=columns - 1)))
            scale = _power_near(own.abs().amax(dim=1, keepdim=True))
            x = (own * scale).to(gone.factor.dtype)
        substitute(gone, x, forward=step > 0, backward=True)
        z = torch.where(past | ~going[:, None], 0.0, x.double() * (unit / scale))
        change = dense.new_zeros(rows, columns + 1).scatter_(1, at, z)[:, :columns] @ inverse
        weight -= change
        left = torch.where(removed, 0.0, weight).abs().amax(dim=1)
        moved = torch.where(removed, 0.0, change).abs().amax(dim=1)
        moved = torch.where(moved == 0.0, 0.0, moved / left)
        rest = (moved == 0.0) if step == 0 else moved * moved <= STILL * before
        still = still | (going & rest)
        going = going & ~rest & torch.isfinite(moved)
        before = moved
    return torch.where(removed, 0.0, weight), still


def _power_near(value: Tensor) -> Tensor:
    """One over each value, rounded to a power of two; one for zero and what is not finite."""
    mantissa, _ = torch.frexp(value)
    return torch.where(torch.isfinite(value) & (value > 0), 2.0 * mantissa / value, 1.0)
