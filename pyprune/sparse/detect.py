# SPDX-License-Identifier: Apache-2.0
"""Which stored format fits a mask: the one with the fewest positions to write down."""

from __future__ import annotations

import math

from torch import Tensor

_GROUPS = (2, 4, 8, 16, 32, 64)  # what is looked for; a group of a whole row would be any mask with equal rows


def format_of(mask: Tensor) -> tuple[str, tuple[int, int]]:
    """Format and geometry that a mask has exactly.

    Parameters
    ----------
    mask : Tensor of bool, shape (out, in)

    Returns
    -------
    format : {"dense", "block", "nm", "bitmask"}
        "dense" where all are kept, "block" where blocks of more than one weight stay or go as a whole, "nm" where every
        group of 2, 4, … or 64 inputs keeps as many; what is none of these is a "bitmask".
    geometry : (int, int)
        Of the largest blocks, or ``(keep, of)`` of the smallest groups.

    Examples
    --------
    >>> import torch
    >>> format_of(torch.tensor([[True, False, False, True], [False, True, True, False]]))
    ('nm', (1, 2))
    """
    if bool(mask.all()):
        return "dense", (1, 1)
    for format in ("block", "nm"):
        geometry = geometry_of(mask, format)
        if geometry is not None and bool(mask.any()):
            return format, geometry
    return "bitmask", (1, 1)


def geometry_of(mask: Tensor, format: str) -> tuple[int, int] | None:
    """The geometry with which a mask has a format; None where it has not."""
    if format == "nm":
        return _groups(mask)
    if format == "block":
        blocks = _blocks(mask)
        return None if blocks == (1, 1) else blocks
    return 1, 1


def _blocks(mask: Tensor) -> tuple[int, int]:
    """Rows and columns of the largest blocks that are whole: changes lie at multiples of them only."""
    rows = (mask[1:] != mask[:-1]).any(1).nonzero().flatten() + 1
    columns = (mask[:, 1:] != mask[:, :-1]).any(0).nonzero().flatten() + 1
    return math.gcd(mask.shape[0], *rows.tolist()), math.gcd(mask.shape[1], *columns.tolist())


def _groups(mask: Tensor) -> tuple[int, int] | None:
    rows, columns = mask.shape
    kept = int(mask.sum())
    for of in _GROUPS:
        keep, rest = divmod(kept * of, rows * columns)
        if columns % of or of == columns or rest:
            continue
        if bool((mask.reshape(rows, -1, of).sum(-1) == keep).all()):
            return keep, of
    return None
