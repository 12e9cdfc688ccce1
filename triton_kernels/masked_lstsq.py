# SPDX-License-Identifier: Apache-2.0
"""Inverses of small restricted systems: for each row H_SS⁻¹ of its support S; H [k, k] of unit diagonal.

One program does one row, whose support has up to 128 columns. It gathers H_SS into registers and inverts
it there by Gauss and Jordan's elimination, whose pivots are those of Cholesky's factorisation, so that every
solve after that is one product instead of two chains of substitutions.

n³ multiply-adds a row, n² elements of H read through L2 and n² written. float32: for corrections that are
refined (`solve_supports`). Rows do not meet: a row's bits depend on its own data only. No atomics.

`solve_supports` below goes on from there, and takes the factors of larger supports from torch, a bounded
number of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels.watch import Watch

MOST = 128  # columns of a support that a program holds
ROUNDS = 6  # of refinement
CHUNK = 1 << 30  # bytes of systems and factors held at once

# A multiply-add of a batch of factors costs as much as so many of one large product; conjugate gradients take about so
# many products with the system for each row.
BATCHED = 10.0
PRODUCTS = 200.0


@dataclass(frozen=True)
class Tile:
    """How a program holds its system."""

    size: int  # a power of two
    warps: int


def tile_for(largest: int) -> Tile:
    """Choose the tile for supports of up to `largest` columns, 32 numbers a thread."""
    size = max(16, triton.next_power_of_2(largest))
    return Tile(size=size, warps=max(1, size * size // 1024))


def iteration_pays(kept: Tensor, columns: int) -> bool:
    """Whether conjugate gradients are taken for rows with supports of `kept` ``[rows]`` of `columns` columns.

    Never where all supports fit on chip, else where they are estimated to cost less than a factor of each row.
    """
    size = kept.double()
    fits = len(kept) == 0 or int(kept.max()) <= MOST
    return not fits and (len(kept) * PRODUCTS + columns) * columns**2 < BATCHED * float((size**3).sum()) / 3


@triton.jit
def invert_kernel(
    # inverse [rows, N, N], written; NaN in a row where a pivot is not positive to working precision
    inverse_ptr,
    # H [k, k]; the support's columns [rows, N] int32 and their number [rows] int32
    system_ptr,
    index_ptr,
    count_ptr,
    # sizes
    columns,
    floor,
    # constants
    N: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, N)
    count = tl.load(count_ptr + row)
    real = slot < count
    index = tl.load(index_ptr + row * N + slot, mask=real, other=0)
    matrix = tl.load(
        system_ptr + index[:, None] * columns + index[None, :], mask=real[:, None] & real[None, :], other=0.0
    )
    # With p = a_jj: A − a_:j a_j: / p, but line j becomes a_j: / p, column j −a_:j / p, and a_jj 1 / p. One product
    # does all of it, if p − 1 and 1 + 1 / p stand for p in the column and in the line.
    for j in range(0, count):
        line = tl.sum(tl.where(slot[:, None] == j, matrix, 0.0), axis=0)
        column = tl.sum(tl.where(slot[None, :] == j, matrix, 0.0), axis=1)
        pivot = tl.sum(tl.where(slot == j, line, 0.0), axis=0)
        pivot = tl.where(pivot > floor, pivot, float("nan"))
        scaled = tl.where(slot == j, 1.0 + 1.0 / pivot, line / pivot)
        matrix -= tl.where(slot == j, pivot - 1.0, column)[:, None] * scaled[None, :]
    at = row * N * N + slot[:, None] * N + slot[None, :]
    tl.store(inverse_ptr + at, tl.where(real[:, None] & real[None, :], matrix, 0.0))


def invert_supports(
    inverse: Tensor,  # [rows, N, N]
    system: Tensor,  # [k, k]
    index: Tensor,  # [rows, N]
    count: Tensor,  # [rows]
) -> None:
    """Invert the restricted systems of all rows, into `inverse`.

    Parameters
    ----------
    inverse : Tensor, shape (rows, N, N), float32
        Overwritten, zero past a row's count; N as `tile_for` says. NaN where a system is singular in float32.
    system : Tensor, shape (k, k), float32
        Symmetric, of unit diagonal; k below 46,341.
    index, count : Tensor, shapes (rows, N) and (rows,), int32
        As `supports` makes them.

    Raises
    ------
    ValueError
        If a shape, dtype, layout or device does not fit.
    """
    rows, size = index.shape
    columns = len(system)
    wanted = [
        ("inverse", inverse, (rows, size, size), torch.float32),
        ("system", system, (columns, columns), torch.float32),
        ("index", index, (rows, size), torch.int32),
        ("count", count, (rows,), torch.int32),
    ]
    for name, tensor, shape, dtype in wanted:
        if (
            tensor.shape != shape
            or tensor.dtype != dtype
            or not tensor.is_contiguous()
            or tensor.device != system.device
        ):
            raise ValueError(f"{name} must be contiguous {dtype} {shape} on {system.device}, got {tuple(tensor.shape)}")
    tile = tile_for(size)
    if tile.size != size or size > MOST or columns > 46_340:
        raise ValueError(f"supports of {size} of {columns} columns: {tile.size} wide, at most {MOST}, are possible")
    if rows == 0 or columns == 0:
        return
    with torch.cuda.device_of(system):  # Triton launches on the current device; no effect on CPU tensors
        invert_kernel[(rows,)](
            inverse,
            system,
            index,
            count,
            columns,
            size * torch.finfo(torch.float32).eps,
            N=size,
            num_warps=tile.warps,
            num_stages=1,
            enable_fp_fusion=True,
        )


def supports(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Columns of each row's support in ascending order, int32 ``[rows, size]``, and their number, int32 ``[rows]``.

    Entries past the number are k, one past the last column. No row may have more than `size`.
    """
    columns = mask.shape[1]
    place = mask.cumsum(dim=1, dtype=torch.int32)
    column = torch.arange(columns, dtype=torch.int32, device=mask.device).expand_as(place)
    index = place.new_full((len(mask), size + 1), columns)  # what is outside goes into one place more
    index.scatter_(1, torch.where(mask, place - 1, size).long(), column)
    return index[:, :size].contiguous(), place[:, -1].contiguous()


def solve_supports(
    system: Tensor, target: Tensor, mask: Tensor, tolerance: float, largest: int
) -> tuple[Tensor, Tensor]:
    """Solve by a float32 inverse or factor of each row's system and float64 refinement.

    Parameters
    ----------
    system : Tensor, shape (k, k), float64
        Symmetric, of unit diagonal.
    target : Tensor, shape (rows, k), float64
    mask : Tensor of bool, shape (rows, k)
    tolerance : float
        The last correction of a row is worth no more than this part of its energy wᵀc.
    largest : int
        No row has more columns in its support.

    Returns
    -------
    solution : Tensor, shape (rows, k), float64
    solved : Tensor of bool, shape (rows,)
        False where float32 does not carry the row; its solution is then undefined.
    """
    size = tile_for(largest).size if largest <= MOST else largest
    single = system.float()
    solution, solved = torch.empty_like(target), mask.new_empty(len(mask))
    for part in _chunks(len(target), 2 * 4 * size**2):
        index, count = supports(mask[part], size)
        solve = _by_inverse(single, index, count) if size <= MOST else _by_factor(single, index)
        solution[part], solved[part] = _refine(solve, system, target[part], index, tolerance)
    return solution, solved


def _chunks(rows: int, bytes_a_row: int) -> list[slice]:
    height = max(1, CHUNK // max(1, bytes_a_row))
    return [slice(first, first + height) for first in range(0, rows, height)]


def _by_inverse(single: Tensor, index: Tensor, count: Tensor) -> Callable[[Tensor], Tensor]:
    inverse = single.new_empty(*index.shape, index.shape[1])
    invert_supports(inverse, single, index, count)
    return lambda residual: torch.bmm(inverse, residual[:, :, None])[:, :, 0]


def _by_factor(single: Tensor, index: Tensor) -> Callable[[Tensor], Tensor]:
    factor, _ = torch.linalg.cholesky_ex(_gather(single, index))  # what fails does not converge
    return lambda residual: torch.cholesky_solve(residual[:, :, None], factor)[:, :, 0]


def _gather(system: Tensor, index: Tensor) -> Tensor:
    """Each row's system, ``[rows, n, n]``, with the identity past its support."""
    real = index < len(system)
    at = torch.where(real, index, 0).long()
    own = system[at[:, :, None], at[:, None, :]]
    own.masked_fill_(~(real[:, :, None] & real[:, None, :]), 0.0)
    own.diagonal(dim1=1, dim2=2).masked_fill_(~real, 1.0)
    return own


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Entries of ``[rows, k]`` on each support, zero past it."""
    real = index < values.shape[1]
    return torch.where(real, values.gather(1, torch.where(real, index, 0).long()), 0.0)


def _spread(values: Tensor, index: Tensor, columns: int) -> Tensor:
    """The other way: ``[rows, k]``, zero outside the supports."""
    return values.new_zeros(len(values), columns + 1).scatter_(1, index.long(), values)[:, :columns]


def _refine(
    solve: Callable[[Tensor], Tensor], system: Tensor, target: Tensor, index: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    own = _take(target, index)
    found = torch.zeros_like(own)
    going = torch.ones_like(own[:, 0], dtype=torch.bool)
    solved, before = ~going, torch.full_like(own[:, 0], torch.inf)
    watch = Watch(target.device)
    for step in range(ROUNDS):
        if step > 0 and watch.all_down(going):
            break
        residual = own
        if step > 0:
            residual = _take(torch.addmm(target, _spread(found, index, target.shape[1]), system, alpha=-1.0), index)
        correction = torch.where(going[:, None], solve(residual.float()).double(), 0.0)
        found += correction
        # `gap` is what the correction was worth, wᵀc what the whole solution is.
        gap, energy = (correction * residual).sum(dim=1), (found * own).sum(dim=1)
        enough = (gap <= tolerance * energy) if step > 0 else (gap == 0.0) & (energy == 0.0)
        solved = solved | (going & enough)
        going = going & ~enough & ((gap < 0.5 * before) if step > 0 else torch.isfinite(gap))
        before = gap
    return _spread(found, index, target.shape[1]), solved
