# SPDX-License-Identifier: Apache-2.0
"""The Triton N:M selection: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels.nm import MOST, TILE, WARPS, nm_kernel, nm_tile

TYPES = {"mask_ptr": "*u8", "groups": "i32", "keep": "i32", "of": "i32"}


def cost_of(of: int, element: str, registers: int) -> Cost:
    height, width = nm_tile(of)
    return Cost(
        f"{element}, groups of {of}",
        nm_kernel,
        {**TYPES, "scores_ptr": f"*{element}"},
        {"GROUPS": height, "WIDTH": width},
        warps=WARPS,
        registers=registers,
        shared=4096,
        aligned=("mask_ptr", "scores_ptr"),
    )


COSTS = [cost_of(4, "fp32", 104), cost_of(64, "fp32", 136), cost_of(4, "fp64", 120)]


def test_against_a_sort(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        assert all(found.values()), (name, found)


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


def test_tiles_hold_whole_groups() -> None:
    for of in range(1, MOST + 1):
        height, width = nm_tile(of)
        assert of <= width < 2 * of
        assert height * width == TILE
