# SPDX-License-Identifier: Apache-2.0
"""Which positions of a bit matrix are set, in two codings: a bit for each, or the gaps between them in nibbles.

A bit for each position costs 1 bit. Of the gaps, a nibble ``n < 15`` says: skip ``n`` positions and take the next;
15 says: skip 15 positions. With one position in ten set, as by chance, that is 0.50 bits a position: at 90 % sparsity
the difference between 0.16 and 0.13 of the dense bytes of bfloat16. From about 75 % sparsity on it is the shorter one;
the writer counts (:func:`gaps_bytes`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.errors import InputError

_SKIP = 15  # the nibble that takes no position
_SLACK = 2 * _SKIP  # positions behind the end that a stream may skip: its last skip, and one that fills the last byte


def gaps_bytes(mask: Tensor) -> int:
    """Bytes of :func:`encode_gaps`, counted without making them."""
    gaps, rest = _gaps(mask)
    nibbles = gaps.numel() + int((gaps // _SKIP).sum()) + -(-rest // _SKIP)
    return -(-nibbles // 2)


def encode_gaps(mask: Tensor) -> Tensor:
    """The set positions of a bool matrix, row by row, as uint8 ``[bytes]``; the low nibble of a byte comes first."""
    gaps, rest = _gaps(mask)
    places = torch.cumsum(gaps // _SKIP + 1, 0) - 1  # where each position's own nibble lies
    taken = int(places[-1]) + 1 if len(places) else 0
    nibbles = torch.full((taken + -(-rest // _SKIP),), _SKIP, dtype=torch.uint8, device=mask.device)
    nibbles[places] = (gaps % _SKIP).to(torch.uint8)
    nibbles = torch.nn.functional.pad(nibbles, (0, len(nibbles) % 2), value=_SKIP)
    return nibbles[0::2] | nibbles[1::2] << 4


def decode_gaps(stream: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of :func:`encode_gaps`: bool ``[rows, columns]``.

    A stream must reach the end of the matrix, so that the matrix cannot be larger than 30 times the stream's bytes;
    nothing of its size is made before that is known.

    Raises
    ------
    InputError
        The stream ends early, runs past the end, or takes a position there.
    """
    nibbles = torch.stack((stream & 15, stream >> 4), dim=1).flatten()
    takes = nibbles < _SKIP
    ends = torch.cumsum(nibbles.long() + takes, 0)
    seen, total = int(ends[-1]) if len(ends) else 0, rows * columns
    if not total <= seen < total + _SLACK:
        raise InputError("the gaps do not end where the matrix does", asked=f"{total}", seen=f"{seen} positions")
    positions = ends[takes] - 1
    if len(positions) and int(positions[-1]) >= total:
        raise InputError("the gaps keep a position behind the end", asked=f"{total}", seen=f"{int(positions[-1])}")
    mask = torch.zeros(total, dtype=torch.bool, device=stream.device)
    mask[positions] = True
    return mask.reshape(rows, columns)


def _gaps(mask: Tensor) -> tuple[Tensor, int]:
    """Positions passed over before each set one, and after the last."""
    positions = mask.flatten().nonzero().squeeze(1)
    before = torch.cat((positions.new_full((1,), -1), positions))
    return positions - before[:-1] - 1, mask.numel() - 1 - int(before[-1])
