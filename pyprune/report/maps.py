# SPDX-License-Identifier: Apache-2.0
"""Masks as small grids of densities: a row of squares for each kind of matrix, a square for each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyprune.report.document import Model
from pyprune.report.sections import shortened

_SIDE = 24  # cells along a matrix
_GAP = 2  # cells between matrices
_BLOCKS = 48  # more would be too small to see


@dataclass(frozen=True)
class Grid:
    """Matrices of one kind side by side.

    Attributes
    ----------
    kind : str
        What their names have in common.
    values : ndarray of float
        ``[side, blocks · (side + gap) - gap]``, the share kept; NaN between matrices and where there is none.
    blocks, centres : list
        Name and middle column of each block.
    """

    kind: str
    values: Any
    blocks: list[str]
    centres: list[float]


def grids(model: Model) -> list[Grid]:
    """Grids of a model's masks, one for each kind of matrix; none if it has no masks."""
    cells: dict[str, dict[str, Any]] = {}
    for name, short in shortened(list(model.densities)).items():
        block, kind = block_of(short)
        cells.setdefault(kind, {})[block] = model.densities[name]
    blocks = list(dict.fromkeys(block for row in cells.values() for block in row))[:_BLOCKS]
    return [_grid(kind, row, blocks) for kind, row in cells.items()]


def density(mask: torch.Tensor) -> Any:
    """Share of True in each cell of a grid over a mask, cells as equal as the shape allows; few rows are repeated."""
    return torch.nn.functional.adaptive_avg_pool2d(mask[None].float(), (_SIDE, _SIDE))[0].numpy()


def block_of(name: str) -> tuple[str, str]:
    """The number of a block and what stands beside it in a name.

    >>> block_of("layer.3.attention.query")
    ('3', 'attention.query')
    >>> block_of("head")
    ('', 'head')
    """
    parts = name.split(".")
    place = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if place is None or place == len(parts) - 1:
        return "", name
    return parts[place], ".".join(parts[place + 1 :])


def _grid(kind: str, row: dict[str, Any], blocks: list[str]) -> Grid:
    width = _SIDE + _GAP
    values = np.full((_SIDE, max(1, len(blocks)) * width - _GAP), np.nan, dtype=np.float32)
    for index, block in enumerate(blocks):
        if block in row:
            values[:, index * width : index * width + _SIDE] = row[block]
    return Grid(kind, values, blocks, [index * width + (_SIDE - 1) / 2 for index in range(len(blocks))])
