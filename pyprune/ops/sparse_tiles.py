# SPDX-License-Identifier: Apache-2.0
"""The arrangement "tiles" that the GPU kernels of :func:`pyprune.ops.spmm` multiply by, made from any stored format.

The matrix is cut into cells of 16 rows by 64 columns, numbered row of cells by row of cells; a matrix that does not
divide ends in empty places. A cell is held in the order in which the 32 lanes of a warp want it on tensor cores
(operand A of ``mma.m16n8k16``): four steps, in each step eight weights a lane.

=========  ===========================  =====================================================================
part       shape, dtype                 what it holds
=========  ===========================  =====================================================================
values     ``[n]``                      kept weights, by cell, step, lane, bit; each cell begins at 16 bytes
bits       ``[cells, 32]`` int32        of each lane, bit ``8 step + bit``: is that weight kept
starts     ``[cells + 1]`` int32        where each cell's values begin, in units of 16 bytes
=========  ===========================  =====================================================================

Lane ``4 g + t`` has in step ``2 half + part`` the columns ``32 half + 8 t + 4 part + i``, ``i < 4``, of the rows
``g`` and ``g + 8``: bit ``4 (i / 2) + 2 (row / 8) + i % 2``. So a lane's inputs are 8 neighbours of a row of ``x``.
One mask word a lane says all: counts of its four bytes, summed over the lanes below, give the place of its values.
The idea, read sparse and multiply dense, is that of Flash-LLM (Xia et al., VLDB 2024) and SpInfer (Fan et al.,
EuroSys 2025); SpInfer's bitmap tiles are 8 by 8.

``geometry`` is ``(most bytes of a cell's values, rounded up to 256, 1)``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.ops.sparse_rows import VALUE_TYPE

PARTS = ("values", "bits", "starts")
ROWS, COLUMNS = 16, 64  # of a cell
UNIT = 16  # bytes
_LINE = 256  # bytes: few different sizes of shared memory


def cells_of(shape: tuple[int, int]) -> tuple[int, int]:
    """Rows of cells, and cells in a row."""
    return -(-shape[0] // ROWS), -(-shape[1] // COLUMNS)


def arrange(mask: Tensor, stored: Tensor) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Parts and geometry of the arrangement.

    Parameters
    ----------
    mask : Tensor of bool, shape (out, in)
    stored : Tensor, shape (out, in)
        The values as they are stored, anything where the mask is not.
    """
    marks, numbers = _in_order(mask), _in_order(stored)
    each = UNIT // stored.element_size()
    counts = marks.sum(1)
    starts = torch.nn.functional.pad((-(-counts // each)).cumsum(0), (1, 0))
    cell, place = marks.nonzero(as_tuple=True)
    first = counts.cumsum(0) - counts
    index = starts[cell] * each + torch.arange(len(cell), device=mask.device) - first[cell]
    values = stored.new_zeros(int(starts[-1]) * each)
    values[index] = numbers[cell, place]
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    octets = (marks.reshape(-1, 4, 32, 8) * powers).sum(-1, dtype=torch.uint8)
    bits = octets.transpose(1, 2).reshape(len(counts), 128).view(torch.int32)
    largest = UNIT * int(starts.diff().max()) if len(counts) else 0
    parts = {"values": values, "bits": bits, "starts": starts.to(torch.int32)}
    return parts, (-(-largest // _LINE) * _LINE, 1)


def places(parts: Mapping[str, Tensor], shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and index among the values of every kept weight, int64."""
    values, bits = parts["values"], parts["bits"]
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    octets = bits[..., None].view(torch.uint8).transpose(1, 2)  # [cells, step, lane]
    marks = octets[..., None].bitwise_right_shift(shifts).bitwise_and(1).bool().flatten(1)
    cell, place = marks.nonzero(as_tuple=True)
    counts = marks.sum(1)
    rank = torch.arange(len(cell), device=bits.device) - (counts.cumsum(0) - counts)[cell]
    index = parts["starts"].long()[cell] * (UNIT // values.element_size()) + rank
    across = cells_of(shape)[1]
    numbers = torch.arange(ROWS * COLUMNS, device=bits.device).reshape(ROWS, COLUMNS)
    inside = _in_order(numbers)[0][place]
    row = cell.div(across, rounding_mode="floor") * ROWS + inside.div(COLUMNS, rounding_mode="floor")
    return row, cell % across * COLUMNS + inside % COLUMNS, index


def pointers(
    parts: Mapping[str, Tensor], shape: tuple[int, int], geometry: tuple[int, int]
) -> tuple[int, int, int, int, int, int, int, int]:
    """The arrangement as compiled kernels take it.

    Raises
    ------
    InputError
        The parts do not belong together.
    """
    values, bits, starts = [parts[name] for name in PARTS]
    down, across = cells_of(shape)
    sizes = (bits.numel(), starts.numel(), values.numel() * values.element_size() % UNIT)
    if sizes != (down * across * 32, down * across + 1, 0) or geometry[0] % UNIT:
        raise InputError("the parts of a prepared weight do not fit its shape", seen=f"{list(shape)} and {sizes}")
    return (
        *shape,
        bits.data_ptr(),
        starts.data_ptr(),
        values.data_ptr(),
        VALUE_TYPE[values.dtype],
        values.numel(),
        geometry[0],
    )


def _in_order(matrix: Tensor) -> Tensor:
    """``[out, in]`` as ``[cells, 1024]``: by cell, step, lane and bit, zero beyond the matrix."""
    down, across = cells_of((matrix.shape[0], matrix.shape[1]))
    whole = torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % COLUMNS, 0, -matrix.shape[0] % ROWS))
    # down, row / 8, g; across, half, t, part, i / 2, i % 2
    pieces = whole.reshape(down, 2, 8, across, 2, 4, 2, 2, 2)
    return pieces.permute(0, 3, 4, 6, 2, 5, 7, 1, 8).reshape(down * across, ROWS * COLUMNS)
