# SPDX-License-Identifier: Apache-2.0
"""The Triton gram: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost
from token_costs import TYPES, cost_of, held

from pyprune.triton_kernels.gram import gram_kernel, gram_tile
from pyprune.triton_kernels.token_sums import CHAIN

ALIGNED = ("out_ptr", "x_ptr", "keep_ptr", "x_stride_token", "columns")
COSTS = [
    cost_of(gram_kernel, TYPES, ALIGNED, gram_tile(columns, 90, **kind), **kind, **limits)
    for columns, kind, limits in (
        (384, {"itemsize": 4}, {"registers": 56, "shared": 8192}),
        (3072, {"itemsize": 4}, {"registers": 88, "shared": 32768}),
        (3072, {"itemsize": 4, "precision": "tf32x3"}, {"registers": 168, "shared": 24576}),
        (384, {"itemsize": 2}, {"registers": 168, "shared": 49152}),
        (3072, {"itemsize": 2}, {"registers": 254, "shared": 98304}),
    )
]
# There, wide tiles would be multiplied as TF32.
COSTS.append(
    cost_of(
        gram_kernel,
        TYPES,
        ALIGNED,
        gram_tile(3072, 100, itemsize=4),
        itemsize=4,
        archs=(100,),
        registers=56,
        shared=8192,
    )
)


def test_against_float64(findings: dict[str, Any]) -> None:
    held(findings["cases"])


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


@pytest.mark.parametrize("kind", [{"itemsize": 2}, {"itemsize": 4}, {"itemsize": 4, "precision": "tf32x3"}], ids=str)
@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100, 103, 120])
def test_tiles_fit_the_kernel(arch: int, kind: dict[str, Any]) -> None:
    for columns in (1, 384, 3072, 100_000):
        tile = gram_tile(columns, arch, **kind)
        assert tile.block in (32, 64, 128)
        assert tile.depth in (16, 32, 64)  # tl.dot takes no less than 16
        assert CHAIN % tile.depth == 0
        assert tile.block**2 % (32 * tile.warps) == 0


@pytest.mark.parametrize(
    ("columns", "arch", "itemsize", "block"),
    [
        (384, 90, 4, 32),  # 21 programs of 64 would leave most of 114 multiprocessors idle
        (768, 90, 4, 32),  # 78
        (1024, 90, 4, 64),  # 136
        (3072, 80, 4, 64),
        (768, 86, 4, 64),  # 78 fill 28
        (768, 75, 4, 64),  # unknown: as the smallest known
        (1024, 105, 2, 64),  # unknown: as the nearest below, which has 148
        (1024, 120, 4, 64),
        (3072, 100, 4, 32),  # wide tiles would be multiplied as TF32
        (3072, 103, 4, 32),
        (1024, 90, 2, 64),  # 36 programs of 128
        (2048, 90, 2, 128),  # 136
    ],
)
def test_block_fills_the_device(columns: int, arch: int, itemsize: int, block: int) -> None:
    assert gram_tile(columns, arch, itemsize=itemsize).block == block
