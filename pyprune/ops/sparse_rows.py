# SPDX-License-Identifier: Apache-2.0
"""The arrangement "rows" that the CPU kernel of :func:`pyprune.ops.spmm` multiplies by, made from any stored format.

``csrc/common/sparse_rows_view.h`` describes it. Its ``geometry`` is ``(columns of a tile, rows of a panel)``;
``columns`` and ``lengths`` are uint16 numbers below 32768, held as int16; kernels read ``columns`` some places past the
last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError

# The numbers of ValueType in csrc/common/sparse_rows_view.h.
VALUE_TYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
PARTS = ("values", "columns", "rows", "lengths", "starts")


def arrange(mask: Tensor, kept: Tensor, pairs: bool = False) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Parts and geometry of the arrangement.

    Parameters
    ----------
    mask : Tensor of bool, shape (out, in)
    kept : Tensor, shape (number of kept weights,)
        Their values, row by row.
    pairs : bool
        They will meet x in bfloat16, as bfloat16 themselves: the tiles are twice as wide where these are multiplied in
        pairs. Both arrangements take every x.
    """
    extension = backends.extension()
    out, columns = mask.shape
    tile = extension.spmm_tile(columns, kept.numel() / max(1, mask.numel()), pairs)
    panel: int = extension.panel_rows
    cells = -(-out // panel) * max(1, -(-columns // tile))
    marks, kept = mask.contiguous(), kept.contiguous()
    rows = torch.empty(cells * panel, dtype=torch.uint8)
    lengths = torch.empty(cells * panel, dtype=torch.int16)
    starts = torch.empty(cells + 1, dtype=torch.int64)
    index = (rows.data_ptr(), lengths.data_ptr(), starts.data_ptr(), marks.data_ptr())
    count = extension.order_rows(*index, out, columns, tile)
    places = torch.zeros(count + extension.columns_ahead, dtype=torch.int16)
    values = torch.empty(count, dtype=kept.dtype)
    extension.fill_rows(
        places.data_ptr(),
        values.data_ptr(),
        count,
        *index,
        kept.data_ptr(),
        kept.numel(),
        kept.element_size(),
        out,
        columns,
        tile,
    )
    return dict(zip(PARTS, (values, places, rows, lengths, starts), strict=True)), (tile, panel)


def places(
    parts: Mapping[str, Tensor], shape: tuple[int, int], geometry: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and index among the values of every kept weight, int64; padding is left out."""
    tile, panel = geometry
    device = parts["values"].device
    lengths = parts["lengths"].long()
    longer = lengths.reshape(-1, panel // 2, 2)[..., 0]
    stored = (longer + 1).div(2, rounding_mode="floor") * 4  # in quads: two of one row, two of the other
    pairs = parts["starts"][:-1, None] + stored.cumsum(1) - stored
    first = (pairs[..., None] + torch.tensor([0, 2], device=device)).flatten()
    segment = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    step = torch.arange(len(segment), device=device) - (lengths.cumsum(0) - lengths)[segment]
    index = first[segment] + step.div(2, rounding_mode="floor") * 4 + step % 2
    cell = segment.div(panel, rounding_mode="floor")
    tiles = max(1, -(-shape[1] // tile))
    row = cell.div(tiles, rounding_mode="floor") * panel + parts["rows"].long()[segment]
    return row, cell % tiles * tile + parts["columns"].long()[index], index


def pointers(
    parts: Mapping[str, Tensor], shape: tuple[int, int], geometry: tuple[int, int]
) -> tuple[int, int, int, int, int, int, int, int, int, int]:
    """The arrangement as compiled kernels take it.

    Raises
    ------
    InputError
        The parts do not belong together.
    """
    out, columns = shape
    values, places, rows, lengths, starts = [parts[name] for name in PARTS]
    tile, panel = geometry
    count, cells = values.numel(), -(-out // panel) * max(1, -(-columns // max(1, tile)))
    ahead: int = backends.extension().columns_ahead
    sizes = (places.numel() - ahead, rows.numel(), lengths.numel(), starts.numel())
    if sizes != (count, cells * panel, cells * panel, cells + 1):
        raise InputError("the parts of a prepared weight do not fit its shape", seen=f"{list(shape)} and {sizes}")
    return (
        out,
        columns,
        tile,
        values.data_ptr(),
        VALUE_TYPE[values.dtype],
        count,
        places.data_ptr(),
        rows.data_ptr(),
        lengths.data_ptr(),
        starts.data_ptr(),
    )


def view(parts: Mapping[str, Tensor], shape: tuple[int, int], geometry: tuple[int, int]) -> Any:
    """``SparseRows`` of the extension, checked once: it holds addresses, so that the parts must outlive its use."""
    return backends.extension().SparseRows(pointers(parts, shape, geometry))
