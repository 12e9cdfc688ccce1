# SPDX-License-Identifier: Apache-2.0
"""The Triton exchanges: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest
from tolerances import GREEDY, GREEDY_LOSS_SINGLE

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels.swap import DEPTH, LOOK, RECORDS, WORKSPACE, rows_at_once, tile_for, warps_for
from pyprune.triton_kernels.swap_kernels import choose_kernel, pairs_kernel, turn_kernel
from pyprune.triton_kernels.tableau import width_for

INTEGERS = ("pairs", "moved", "made", "place", "start", "left", "first", "count", "inside", "outside")
OTHERS = {"key_ptr": "*i64", "least_ptr": "*fp64", "sign": "fp32"}
SIZES = ("width", "area", "line")


def cost_of(
    kernel: Any, name: str, element: str, registers: int, shared: int, warps: int = 4, **constants: Any
) -> Cost:
    names = [argument for argument in kernel.arg_names if argument not in constants]
    types = {name: f"*{element}" if name.endswith("_ptr") else "i32" for name in names}
    types |= {f"{name}_ptr": "*i32" for name in INTEGERS if f"{name}_ptr" in types}
    types |= {name: kind for name, kind in OTHERS.items() if name in types}
    grouped = constants.get("GROUPED", False)
    aligned = tuple(
        name for name in names if name.endswith("_ptr") or (name in SIZES and not (grouped and name == "line"))
    )
    contains = (
        () if kernel is not pairs_kernel or grouped else ("ld.global.v4",) if element == "fp32" else ("ld.global.v2",)
    )
    return Cost(
        f"{kernel.__name__} {name} {element}",
        kernel,
        types,
        {"DEPTH": DEPTH, **constants},
        warps=warps,
        stages=2,
        registers=registers,
        shared=shared,
        aligned=aligned,
        contains=contains,
    )


def choose_cost(tiles: int, element: str, registers: int, *, grouped: bool = False) -> Cost:
    warps = warps_for(tiles)
    constants = {"GROUPED": grouped, "BLOCK": LOOK * warps}
    return cost_of(choose_kernel, str(tiles), element, registers, 64, warps, **constants)


def turn_cost(element: str, registers: int) -> Cost:
    return cost_of(turn_kernel, "", element, registers, 0, RECORDS=RECORDS, BLOCK=128)


def pairs_cost(outside: int, element: str, registers: int, shared: int, *, of: int = 0, moved: bool = True) -> Cost:
    tile = tile_for(of or outside, int(element[2:]) // 8)
    constants = {"MOVED": moved, "GROUPED": of > 0, "HEIGHT": tile.height, "BREADTH": tile.breadth}
    name = f"{outside} {of}{'' if moved else ' first'}"
    return cost_of(pairs_kernel, name, element, registers, shared, tile.warps, **constants)


COSTS = [
    choose_cost(2048, "fp32", 56),
    choose_cost(100, "fp32", 56, grouped=True),
    choose_cost(2048, "fp64", 72),
    turn_cost("fp32", 80),
    turn_cost("fp64", 128),
    pairs_cost(2048, "fp32", 112, 8192),
    pairs_cost(2048, "fp32", 112, 8192, moved=False),
    pairs_cost(2048, "fp32", 128, 1024, of=4),
    pairs_cost(2048, "fp64", 104, 4096),
    pairs_cost(2048, "fp64", 104, 1024, of=4),
]


def test_against_float64(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        assert found.pop("error") <= (GREEDY if "float64" in name else GREEDY_LOSS_SINGLE), (name, found)
        assert all(found.values()), (name, found)


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("outside", [0, 1, 2, 4, 33, 127, 128, 2048, 11008])
def test_a_lane_holds_at_most_64_bytes_of_couplings(outside: int, itemsize: int) -> None:
    tile = tile_for(outside, itemsize)
    assert tile.height * tile.breadth * itemsize in (64 * 32 * tile.warps, 32 * 32 * tile.warps)
    assert min(outside, 128) <= tile.breadth <= 128
    assert tile.height & (tile.height - 1) == tile.breadth & (tile.breadth - 1) == 0


@pytest.mark.parametrize("columns", [0, 1, 31, 32, 33, 768, 4096])
def test_positions_hold_any_support_and_the_border(columns: int) -> None:
    width = width_for(columns)
    assert width % 32 == 0
    assert all(-(-inside // 32) * 32 + columns - inside + 1 <= width for inside in range(columns + 1))


def test_memory_is_bounded() -> None:
    assert rows_at_once(width_for(4096), 4) == 62
    assert 62 * (4128 + 2 * DEPTH) * 4128 * 4 <= WORKSPACE
    assert rows_at_once(width_for(100_000), 8) == 1
