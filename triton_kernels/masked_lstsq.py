# SPDX-License-Identifier: Apache-2.0
"""Small restricted systems: for each row H_SS w_S = c_S, w = 0 elsewhere; H [k, k] of unit diagonal.

One program solves one row whose support has up to 128 columns. It gathers H_SS into registers in float32
and sweeps it to its inverse, pivot by pivot (Goodnight 1979; the pivots are those of Cholesky's
factorisation), so that every solve after that is one product instead of two chains of substitutions.
Then it refines with float64 residuals, for which H_SS is gathered again, until a correction is worth no
more than `tolerance` of the row's energy wᵀc. A row that does not get there is left to the caller: a
pivot is not positive to float32's precision, or corrections do not shrink.

n³ multiply-adds a row, 2 n² float64 ones for each of two or three residuals; n² elements of H read
through L2 for each of them. Rows do not meet: a row's bits depend on its own data only. No atomics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST = 128  # columns of a support
ROUNDS = 6  # of refinement
STRIP = 16  # lines of H gathered at a time for a residual


@dataclass(frozen=True)
class Tile:
    """How a program holds its system."""

    size: int  # a power of two
    warps: int


def tile_for(largest: int) -> Tile:
    """Choose the tile for supports of up to `largest` columns: 64 registers a thread at most hold it."""
    size = max(STRIP, triton.next_power_of_2(largest))
    return Tile(size=size, warps=max(1, size * size // 2048))


@triton.jit
def small_kernel(
    # solution [rows, k] float64, zero; scratch [rows, N] float64; status [rows] int64, written: 0, or -1 if it failed
    solution_ptr,
    scratch_ptr,
    status_ptr,
    # H [k, k], c [rows, k], float64; the support's columns [rows, N] int32 and their number [rows] int32
    system_ptr,
    target_ptr,
    index_ptr,
    count_ptr,
    # sizes
    columns,
    tolerance,
    floor,
    # constants
    N: tl.constexpr,
    STRIP: tl.constexpr,
    ROUNDS: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, N)
    count = tl.load(count_ptr + row)
    real = slot < count
    index = tl.load(index_ptr + row * N + slot, mask=real, other=0).to(tl.int64)
    both = real[:, None] & real[None, :]
    matrix = tl.load(system_ptr + index[:, None] * columns + index[None, :], mask=both, other=0.0).to(tl.float32)

    # The inverse, with its sign turned.
    positive = count >= 0  # yes
    for j in range(0, count):
        line = tl.sum(tl.where(slot[:, None] == j, matrix, 0.0), axis=0)
        column = tl.sum(tl.where(slot[None, :] == j, matrix, 0.0), axis=1)
        pivot = tl.sum(tl.where(slot == j, line, 0.0), axis=0)
        positive = positive & (pivot > floor)
        scaled = line / pivot
        swept = matrix - column[:, None] * scaled[None, :]
        swept = tl.where(slot[:, None] == j, scaled[None, :], swept)
        swept = tl.where(slot[None, :] == j, (column / pivot)[:, None], swept)
        matrix = tl.where((slot[:, None] == j) & (slot[None, :] == j), -1.0 / pivot, swept)

    target = tl.load(target_ptr + row * columns + index, mask=real, other=0.0)
    found = tl.zeros((N,), dtype=tl.float64)
    residual = target
    before = tl.full((), float("inf"), dtype=tl.float64)
    solved = count < 0  # no
    going = positive
    for step in range(0, ROUNDS):
        if going:
            correction = -tl.sum(matrix * residual.to(tl.float32)[None, :], axis=1).to(tl.float64)
            found += correction
            # `gap` is what the correction was worth, wᵀc what the whole solution is.
            gap = tl.sum(correction * residual, axis=0)
            energy = tl.sum(found * target, axis=0)
            solved = ((step > 0) & (gap <= tolerance * energy)) | ((gap == 0.0) & (energy == 0.0))
            going = (not solved) & ((step == 0) | (gap < 0.5 * before))
            before = gap
            tl.store(scratch_ptr + row * N + slot, found)
            tl.debug_barrier()  # read by other threads than wrote it
            residual = target
            for first in range(0, count, STRIP):
                near = first + tl.arange(0, STRIP)
                own = tl.load(index_ptr + row * N + near, mask=near < count, other=0).to(tl.int64)
                inside = (near < count)[:, None] & real[None, :]
                lines = tl.load(system_ptr + own[:, None] * columns + index[None, :], mask=inside, other=0.0)
                residual -= tl.sum(lines * tl.load(scratch_ptr + row * N + near)[:, None], axis=0)
            tl.debug_barrier()
    tl.store(solution_ptr + row * columns + index, found, mask=real)
    tl.store(status_ptr + row, tl.where(solved, 0, -1).to(tl.int64))


def solve_small(
    solution: Tensor,  # [rows, k]
    status: Tensor,  # [rows]
    system: Tensor,  # [k, k]
    target: Tensor,  # [rows, k]
    mask: Tensor,  # [rows, k] bool
    tolerance: float,
    largest: int,
) -> None:
    """Solve all rows, into `solution`.

    Parameters
    ----------
    solution : Tensor, shape (rows, k), float64
        Contiguous; overwritten.
    status : Tensor of int64, shape (rows,)
        Overwritten: 0, or -1 for a row that this arithmetic cannot carry.
    system : Tensor, shape (k, k), float64
        Contiguous, symmetric, of unit diagonal.
    target : Tensor, shape (rows, k), float64
    mask : Tensor of bool, shape (rows, k)
    tolerance : float
        Part of a row's energy that the last correction is worth at most.
    largest : int
        No row has more columns in its support; at most `MOST`.

    Raises
    ------
    ValueError
        If a shape, dtype, layout or device does not fit.
    """
    rows, columns = target.shape
    if not 0 <= largest <= MOST:
        raise ValueError(f"supports of up to {largest} columns; at most {MOST} are possible")
    wanted = [
        ("solution", solution, (rows, columns), torch.float64),
        ("status", status, (rows,), torch.int64),
        ("system", system, (columns, columns), torch.float64),
        ("target", target, (rows, columns), torch.float64),
        ("mask", mask, (rows, columns), torch.bool),
    ]
    for name, tensor, shape, dtype in wanted:
        if (
            tensor.shape != shape
            or tensor.dtype != dtype
            or not tensor.is_contiguous()
            or tensor.device != target.device
        ):
            raise ValueError(f"{name} must be contiguous {dtype} {shape} on {target.device}, got {tuple(tensor.shape)}")
    solution.zero_()
    status.zero_()
    if rows == 0 or columns == 0:
        return
    tile = tile_for(largest)
    index, count = supports(mask, tile.size)
    with torch.cuda.device_of(target):  # Triton launches on the current device; no effect on CPU tensors
        small_kernel[(rows,)](
            solution,
            target.new_empty(rows, tile.size),
            status,
            system,
            target,
            index,
            count,
            columns,
            tolerance,
            largest * torch.finfo(torch.float32).eps,
            N=tile.size,
            STRIP=STRIP,
            ROUNDS=ROUNDS,
            num_warps=tile.warps,
            num_stages=1,
            enable_fp_fusion=True,
        )


def supports(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Columns of each row's support in ascending order, int32 ``[rows, size]``, and their number, int32 ``[rows]``.

    Entries past the number are undefined. No row may have more than `size`.
    """
    place = mask.cumsum(dim=1, dtype=torch.int32)
    count = place[:, -1].contiguous()
    column = torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device).expand_as(place)
    index = place.new_zeros(len(mask), size + 1)  # what is outside goes into one place more
    index.scatter_(1, torch.where(mask, place - 1, size).long(), column)
    return index[:, :size].contiguous(), count
