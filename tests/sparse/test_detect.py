# SPDX-License-Identifier: Apache-2.0
"""The format of a mask is that of its pattern, and nothing else is taken for a pattern."""

from __future__ import annotations

import pytest
import torch

from pyprune.patterns import NM, Block, Unstructured
from pyprune.sparse.detect import format_of, geometry_of


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        (Unstructured(0.5), ("bitmask", (1, 1))),
        (Unstructured(0.9, "layer"), ("bitmask", (1, 1))),
        (NM(2, 4), ("nm", (2, 4))),
        (NM(1, 2), ("nm", (1, 2))),
        (NM(4, 8), ("nm", (4, 8))),
        (NM(1, 16), ("nm", (1, 16))),
        (NM(0, 4), ("bitmask", (1, 1))),
        (NM(4, 4), ("dense", (1, 1))),
        (Block(4, 4, 0.5), ("block", (4, 4))),
        (Block(1, 6, 0.75), ("block", (1, 6))),
        (Block(3, 1, 0.5), ("block", (3, 1))),
    ],
    ids=str,
)
def test_patterns(pattern: object, wanted: tuple[str, tuple[int, int]], generator: torch.Generator) -> None:
    scores = torch.rand(24, 48, generator=generator)
    assert format_of(pattern.select(scores)) == wanted  # type: ignore[attr-defined]


def test_one_weight_out_of_place(generator: torch.Generator) -> None:
    for pattern in (NM(2, 4), Block(4, 4, 0.5)):
        mask = pattern.select(torch.rand(24, 48, generator=generator))
        mask[5, 7] = ~mask[5, 7]
        assert format_of(mask) == ("bitmask", (1, 1))
        assert geometry_of(mask, "nm") is geometry_of(mask, "block") is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (0, 4), (4, 0)])
def test_small_matrices(shape: tuple[int, int]) -> None:
    assert format_of(torch.ones(shape, dtype=torch.bool))[0] == "dense"
