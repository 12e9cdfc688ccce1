# SPDX-License-Identifier: Apache-2.0
"""Gaps in nibbles: there and back, the bytes that docs/format.md shows, and streams that end where they should not."""

from __future__ import annotations

import math

import pytest
import torch

from pyprune.errors import InputError
from pyprune.sparse.positions import decode_gaps, encode_gaps, gaps_bytes


@pytest.mark.parametrize("shape", [(1, 1), (1, 15), (3, 5), (7, 31), (64, 96), (0, 4), (4, 0)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_there_and_back(shape: tuple[int, int], density: float, generator: torch.Generator) -> None:
    mask = torch.rand(shape, generator=generator) < density
    stream = encode_gaps(mask)
    assert stream.dtype == torch.uint8
    assert len(stream) == gaps_bytes(mask)
    assert torch.equal(decode_gaps(stream, *shape), mask)


def test_bytes_as_documented() -> None:
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[0, [0, 3]] = True
    mask[1, 2] = True  # 18 positions behind the last one
    # 0; 2; 15 and 3; 17 are left: 15, 15; a last one fills nothing
    assert encode_gaps(mask).tolist() == [0x20, 0x3F, 0xFF]


def test_one_in_ten_takes_half_a_bit(generator: torch.Generator) -> None:
    mask = torch.rand(256, 512, generator=generator) < 0.1
    assert 8 * gaps_bytes(mask) / mask.numel() == pytest.approx(4 * 0.1 / (1 - 0.9**15), rel=0.02)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([], "do not end where"),
        ([0xF0], "do not end where"),  # 16 of 20
        ([0xFF, 0xFF], "do not end where"),  # 60: 30 more than may be
        ([0x5F, 0xFF], "do not end where"),
        ([0x6F, 0xF6], "behind the end"),  # 15, then keeps 21
    ],
)
def test_streams_that_are_not_of_the_matrix(stream: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_gaps(torch.tensor(stream, dtype=torch.uint8), 4, 5)


def test_a_huge_matrix_is_never_made() -> None:
    with pytest.raises(InputError, match="do not end where"):
        decode_gaps(torch.full((10,), 255, dtype=torch.uint8), 2**30, 2**30)
    assert math.prod(decode_gaps(torch.full((10,), 255, dtype=torch.uint8), 30, 10).shape) == 300
