# SPDX-License-Identifier: Apache-2.0
"""The Triton removals: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest
from tolerances import GREEDY, GREEDY_LOSS_SINGLE

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels.obs import FACTORS, line_for, rows_at_once, warps_for
from pyprune.triton_kernels.obs_kernels import remove_kernel, substitute_kernel

INTEGERS = ("order_ptr", "done_ptr", "room_ptr", "count_ptr")
SIZES = ("columns", "steps", "groups")


def cost_of(kernel: Any, name: str, element: str, registers: int, warps: int, **constants: Any) -> Cost:
    pointers = tuple(argument for argument in kernel.arg_names if argument.endswith("_ptr"))
    return Cost(
        f"{kernel.__name__} {name} {element}",
        kernel,
        {
            **dict.fromkeys(pointers, f"*{element}"),
            **dict.fromkeys(INTEGERS, "*i32"),
            **dict.fromkeys(SIZES, "i32"),
            "sure_ptr": "*u8",
        },
        constants,
        warps=warps,
        stages=2,
        registers=registers,
        shared=2048,
        aligned=(*pointers, "columns"),
        contains=(f"fma.rn.f{element[2:]}",),
    )


def remove_cost(columns: int, element: str, registers: int, of: int = 0) -> Cost:
    line = line_for(columns, int(element[2:]) // 8)
    constants = {"OF": of, "GROUP": max(of, 1), "BLOCK": line.block, "DEPTH": line.depth}
    return cost_of(remove_kernel, f"{columns} {of}", element, registers, line.warps, **constants)


def substitute_cost(size: int, element: str, registers: int) -> Cost:
    constants = {"FORWARD": True, "BACKWARD": True, "SIZE": size}
    return cost_of(substitute_kernel, str(size), element, registers, warps_for(size), **constants)


COSTS = [
    remove_cost(100, "fp32", 80),
    remove_cost(768, "fp32", 88),
    remove_cost(3072, "fp32", 128),
    remove_cost(3072, "fp32", 128, of=4),
    remove_cost(768, "fp64", 112),
    remove_cost(3072, "fp64", 128, of=4),
    substitute_cost(512, "fp32", 112),
    substitute_cost(2048, "fp32", 112),
    substitute_cost(2048, "fp64", 128),
]


def test_against_float64(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        double = "float64" in name
        held = 1e-5 if name == "buffers" else GREEDY  # there nothing is refined
        assert found.pop("error") <= held, (name, found)
        assert found.pop("loss") <= (GREEDY if double else GREEDY_LOSS_SINGLE), (name, found)
        assert all(found.values()), (name, found)


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("columns", [1, 128, 129, 768, 1024, 1025, 3072, 11008])
def test_a_lane_holds_at_most_256_bytes_of_the_factor(columns: int, itemsize: int) -> None:
    line = line_for(columns, itemsize)
    assert line.block * line.depth * itemsize <= 256 * 32 * line.warps
    assert line.block >= min(columns, 1024)
    assert 1 <= line.warps <= 8


def test_memory_is_bounded() -> None:
    assert rows_at_once(1536, 3072, 4) == 227
    assert rows_at_once(1536, 3072, 4) * 1536 * 3072 * 4 <= FACTORS
    assert rows_at_once(10**6, 10**6, 8) == 1
    assert rows_at_once(0, 0, 4) >= 1
