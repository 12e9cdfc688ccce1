# SPDX-License-Identifier: Apache-2.0
"""The restricted systems of ``masked_lstsq`` on a GPU: which rows go together, which way, and how they are refined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyprune import backends
from pyprune.ops import library

# Bytes of factors and of the chunk's own tensors. Constant, so that which rows share a product does not depend on
# what else is in the device's memory.
_WORKSPACE = 1 << 30
_TENSORS = 8  # float64 [rows, k] that are alive in a chunk at once
_LEAST_ROWS = 16  # a kernel has a block for a row: fewer that fit would leave the device idle
_REFINEMENTS = 6


class Chunk(NamedTuple):
    """Rows that are solved together."""

    rows: list[int]
    side: int  # of the largest system
    complement: bool
    kernel: bool  # False: gathered by torch, in float64


def plan(
    kept: Sequence[int],
    columns: int,
    *,
    complement: bool,
    on_chip: int,
    factor_size: Callable[[int], int] | None,
    workspace: int = _WORKSPACE,
) -> list[Chunk]:
    """Divide rows into chunks of systems of similar size that fit the workspace.

    Parameters
    ----------
    kept : sequence of int
        Size of each row's support.
    columns : int
    complement : bool
        Whether a row may be solved on its complement, where that is smaller.
    on_chip : int
        Largest side that is factored in shared memory; no chunk has both kinds.
    factor_size : callable
        float32 elements of a factor, by its side. None: no kernel is wanted.
    workspace : int
        Bytes that a chunk may use. One row may need more.
    """
    routes: dict[tuple[bool, bool, int], list[int]] = {}
    sides = []
    for row, count in enumerate(kept):
        over = complement and 2 * count > columns
        side = columns - count if over else count
        kernel = factor_size is not None and 4 * factor_size(side) * _LEAST_ROWS <= workspace
        if not kernel:
            over, side = False, count
        sides.append(side)
        # Within a factor of two: a small system in a large one's shared memory wastes most of it.
        size = (max(side, 1) - 1).bit_length() + (64 if side > on_chip else 0)
        routes.setdefault((kernel, over, size), []).append(row)
    chunks = []
    for (kernel, over, _), rows in sorted(routes.items()):
        rows.sort(key=lambda row: (sides[row], row))
        while rows:
            side = sides[rows[-1]]
            system = 4 * factor_size(side) if kernel and factor_size is not None else 3 * 8 * side * side
            height = max(1, workspace // max(1, system + 8 * _TENSORS * columns))
            chunks.append(Chunk(rows[-height:], side, over, kernel))
            rows = rows[:-height]
    return chunks


def solve_in_double(system: Tensor, target: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Gather every row's system, padded to ``side`` with ones on the diagonal, and factor it in float64.

    Parameters
    ----------
    system : Tensor, shape (k, k), float64
    target, mask : Tensor, shape (rows, k), float64 and bool
    side : int
        Size of the largest support.

    Returns
    -------
    solution : Tensor, shape (rows, k), float64
    status : Tensor of int64, shape (rows,)
        0, or 1 + the first pivot of the support that is not positive to working precision; the row is then zero.
    """
    order = mask.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :side]
    real = torch.arange(side, device=mask.device) < mask.sum(dim=1, keepdim=True)
    gathered = system[order[:, :, None], order[:, None, :]]
    gathered *= real[:, :, None] & real[:, None, :]
    gathered.diagonal(dim1=1, dim2=2).add_(~real)
    floor = gathered.diagonal(dim1=1, dim2=2) * (torch.finfo(torch.float64).eps * side)
    factor, info = torch.linalg.cholesky_ex(gathered)
    low = ~(factor.diagonal(dim1=1, dim2=2) ** 2 > floor)
    first = torch.where(low.any(dim=1), low.to(torch.uint8).argmax(dim=1) + 1, 0) if side else info
    # Beyond the pivot where Cholesky stopped its result means nothing.
    status = torch.where((info > 0) & ((first == 0) | (info < first)), info, first).to(torch.int64)
    rhs = torch.where(real, target.gather(1, order), 0.0)
    found = torch.cholesky_solve(rhs[:, :, None], factor)[:, :, 0]
    found = torch.where(real & (status == 0)[:, None], found, 0.0)
    return torch.zeros_like(target).scatter_(1, order, found), status


def solve_by_cuda(
    system: Tensor, target: Tensor, mask: Tensor, kept: Tensor, inverse: Tensor | None, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Factors in float32 by the CUDA kernels, refined with float64 residuals; what float32 cannot carry in float64.

    ``system``, and ``inverse`` where it is given, are float64 ``[k, k]``; solutions ``[rows, k]``, status ``[rows]``.
    """
    extension = backends.extension()
    solution = torch.zeros_like(target)
    status = torch.full((len(target),), -1, dtype=torch.int64, device=target.device)
    sizes = kept.tolist()
    columns = len(system)
    with library.cuda_stream(target):
        on_chip = extension.masked_factor_on_chip()
    chunks = plan(
        sizes, columns, complement=inverse is not None, on_chip=on_chip, factor_size=extension.masked_factor_size
    )
    for chunk in (chunk for chunk in chunks if chunk.kernel):
        rows = torch.tensor(chunk.rows, device=target.device)
        matrix = inverse if chunk.complement else None
        found, solved = _refine(system, matrix, target[rows], mask[rows], chunk.side, tolerance)
        solution[rows] = found
        status[rows] = torch.where(solved, 0, -1)
    finish_in_double(system, target, mask, kept, status >= 0, solution, status)
    return solution, status


def finish_in_double(
    system: Tensor, target: Tensor, mask: Tensor, kept: Tensor, solved: Tensor, solution: Tensor, status: Tensor
) -> None:
    """Solve the rows that are not ``solved`` by :func:`solve_in_double`, into ``solution`` and ``status``.

    A bounded number of rows of similar support at a time; ``kept`` is the size of each row's support.
    """
    left = torch.nonzero(~solved)[:, 0]
    for chunk in plan(kept[left].tolist(), len(system), complement=False, on_chip=0, factor_size=None):
        rows = left[torch.tensor(chunk.rows, device=left.device)]
        solution[rows], status[rows] = solve_in_double(system, target[rows], mask[rows], chunk.side)


def _refine(
    system: Tensor, inverse: Tensor | None, target: Tensor, mask: Tensor, side: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """One chunk, on the complement where ``inverse`` is given: solutions, and which rows got there."""
    systems = _Systems(system if inverse is None else inverse, mask, side, wanted=inverse is None)
    found, solved = torch.zeros_like(target), torch.zeros_like(systems.regular)
    going = systems.regular
    before = torch.full((len(target),), torch.inf, dtype=torch.float64, device=target.device)
    for step in range(_REFINEMENTS):
        residual = target if step == 0 else torch.addmm(target, found, system, alpha=-1.0)
        residual = torch.where(mask, residual, 0.0)
        if inverse is None:
            change = systems.solve(residual)
        else:
            dense = residual @ inverse
            change = torch.where(mask, dense - systems.solve(dense) @ inverse, 0.0)
        change = torch.where(going[:, None], change, 0.0)
        found += change
        # What the correction was worth, beside what the whole solution is.
        gain, energy = (change * residual).sum(dim=1), (found * target).sum(dim=1)
        settled = (gain <= tolerance * energy) & (step > 0) | (energy == 0) & (gain == 0)
        solved = solved | going & settled
        going = going & ~settled & ((gain < 0.5 * before) | (step == 0))
        before = gain
        if not bool(going.any()):
            break
    return found, solved


class _Systems:
    """Factors of ``matrix[S, S]`` for each row, ``S`` where the mask is ``wanted``."""

    def __init__(self, matrix: Tensor, mask: Tensor, side: int, *, wanted: bool) -> None:
        extension = backends.extension()
        rows, columns = mask.shape
        self._solve = extension.masked_solve_cuda
        self._mask, self._shape = mask.contiguous(), (rows, columns, side, wanted)
        size = extension.masked_factor_size(side)
        self._factors = torch.empty(rows, size, dtype=torch.float32, device=mask.device)
        status = torch.empty(rows, dtype=torch.int64, device=mask.device)
        single = matrix.float().contiguous()
        with library.cuda_stream(mask) as stream:
            extension.masked_factor_cuda(
                self._factors.data_ptr(),
                status.data_ptr(),
                single.data_ptr(),
                self._mask.data_ptr(),
                *self._shape,
                stream,
            )
        self.regular = status == 0

    def solve(self, rhs: Tensor) -> Tensor:
        """``x[S]`` with ``matrix[S, S] x[S] = rhs[S]``, zero elsewhere; float64 ``[rows, k]``."""
        out, rhs = torch.zeros_like(rhs), rhs.contiguous()
        with library.cuda_stream(rhs) as stream:
            self._solve(
                out.data_ptr(),
                rhs.data_ptr(),
                self._factors.data_ptr(),
                self._mask.data_ptr(),
                *self._shape,
                stream,
            )
        return out
