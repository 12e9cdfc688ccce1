# SPDX-License-Identifier: Apache-2.0
"""The Triton cross_gram: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost
from token_costs import TYPES, cost_of, held

from pyprune.triton_kernels.cross_gram import cross_gram_kernel, cross_gram_tile

ALIGNED = ("out_ptr", "y_ptr", "x_ptr", "keep_ptr", "y_stride_token", "x_stride_token", "targets", "columns")
COSTS = [
    cost_of(cross_gram_kernel, TYPES, ALIGNED, cross_gram_tile(shape, shape, 90, **kind), **kind, **limits)
    for shape, kind, limits in (
        (384, {"itemsize": 4}, {"registers": 56, "shared": 8192}),
        (3072, {"itemsize": 4}, {"registers": 88, "shared": 32768}),
        (3072, {"itemsize": 2}, {"registers": 254, "shared": 98304}),
    )
]


def test_against_float64(findings: dict[str, Any]) -> None:
    held(findings["cases"])


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


@pytest.mark.parametrize(
    ("targets", "columns", "arch", "itemsize", "block"),
    [
        (384, 384, 90, 4, 32),  # 36 programs of 64
        (1536, 384, 90, 4, 64),  # 144
        (1, 100_000, 90, 2, 128),  # 782 of 128
        (1024, 1024, 90, 2, 64),  # 64 of 128, 256 of 64
    ],
)
def test_block_fills_the_device(targets: int, columns: int, arch: int, itemsize: int, block: int) -> None:
    assert cross_gram_tile(targets, columns, arch, itemsize=itemsize).block == block
