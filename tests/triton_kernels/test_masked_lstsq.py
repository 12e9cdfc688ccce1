# SPDX-License-Identifier: Apache-2.0
"""The Triton least squares: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import SOLVE

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels.masked_lstsq import MOST, invert_kernel, iteration_pays, supports, tile_for


def cost_of(largest: int, registers: int) -> Cost:
    tile = tile_for(largest)
    pointers = ("inverse_ptr", "system_ptr", "index_ptr", "count_ptr")
    return Cost(
        f"invert {tile.size}",
        invert_kernel,
        {
            **dict.fromkeys(("inverse_ptr", "system_ptr"), "*fp32"),
            **dict.fromkeys(("index_ptr", "count_ptr"), "*i32"),
            "columns": "i32",
            "floor": "fp32",
        },
        {"N": tile.size},
        warps=tile.warps,
        stages=1,
        registers=registers,
        shared=8192,
        aligned=(*pointers, "columns"),
        contains=("fma.rn.f32",),
    )


COSTS = [cost_of(16, 48), cost_of(32, 120), cost_of(64, 120), cost_of(128, 120)]


def test_against_float64(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        assert found.pop("error") <= (1e-5 if name.startswith("invert") else SOLVE), (name, found)
        assert all(found.values()), (name, found)


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


@pytest.mark.parametrize(
    ("largest", "size", "warps"), [(0, 16, 1), (16, 16, 1), (17, 32, 1), (64, 64, 4), (128, 128, 16)]
)
def test_a_thread_holds_at_most_32_numbers(largest: int, size: int, warps: int) -> None:
    tile = tile_for(largest)
    assert (tile.size, tile.warps) == (size, warps)
    assert size * size <= 32 * 32 * warps


@pytest.mark.parametrize(
    ("rows", "columns", "kept", "pays"),
    [
        (768, 3072, MOST, False),  # on chip
        (4096, 4096, 2048, True),
        (4096, 4096, 300, False),
        (3072, 768, 384, True),
        (3072, 768, 200, False),
        (1, 4096, 2048, False),  # the preconditioner alone costs more than one factor
    ],
)
def test_the_way_follows_the_shape(rows: int, columns: int, kept: int, pays: bool) -> None:
    assert iteration_pays(torch.full((rows,), kept), columns) is pays


def test_supports() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
    index, count = supports(mask, 3)
    assert index.tolist() == [[1, 2, 4], [4, 4, 4], [0, 1, 3]]
    assert count.tolist() == [2, 0, 3]
