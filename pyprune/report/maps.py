# SPDX-License-Identifier: Apache-2.0
"""Masks as small grids of densities: a row of squares for each kind of matrix, a square for each block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyprune.errors import InputError
from pyprune.report.document import Model
from pyprune.report.parts import printable
from pyprune.report.sections import shortened
from pyprune.result import load_masks

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


def density(model: Model) -> list[Grid]:
    """Grids of a model's masks, one for each kind of matrix; none if it has no masks.

    Raises
    ------
    InputError
        There are masks, but they cannot be read.
    """
    if model.kind != "pruned":
        return []
    try:
        masks = load_masks(Path(model.path))
    except Exception as error:  # damaged in whatever way: the report says so and goes on
        raise InputError("the masks cannot be read", seen=printable(error, 160)) from error
    cells: dict[str, dict[str, Any]] = {}
    for name, short in shortened(list(masks)).items():
        block, kind = block_of(short)
        cells.setdefault(printable(kind, 40), {})[printable(block, 12)] = _shrunk(masks[name])
    blocks = list(dict.fromkeys(block for row in cells.values() for block in row))[:_BLOCKS]
    return [_grid(kind, row, blocks) for kind, row in cells.items()]


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


def _shrunk(mask: torch.Tensor) -> Any:
    """Mean of the cells of a grid, of equal size as far as the shape allows; a small matrix is repeated."""
    side = torch.nn.functional.adaptive_avg_pool2d(mask[None].float(), (_SIDE, _SIDE))
    return side[0].numpy()


def _grid(kind: str, row: dict[str, Any], blocks: list[str]) -> Grid:
    width = _SIDE + _GAP
    values = np.full((_SIDE, max(1, len(blocks)) * width - _GAP), np.nan, dtype=np.float32)
    for index, block in enumerate(blocks):
        if block in row:
            values[:, index * width : index * width + _SIDE] = row[block]
    return Grid(kind, values, blocks, [index * width + (_SIDE - 1) / 2 for index in range(len(blocks))])
