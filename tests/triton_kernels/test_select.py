# SPDX-License-Identifier: Apache-2.0
"""The Triton selection: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels import select
from pyprune.triton_kernels.select import CHUNK, DIGIT, ON_CHIP, WARPS, warps_for

TYPES = {
    "mask_ptr": "*u8",
    "bins_ptr": "*i32",
    "threshold_ptr": "*i64",
    "places_ptr": "*i64",
    "upto_ptr": "*i64",
    "equals_ptr": "*i32",
    "columns": "i32",
    "chunks": "i32",
    "count": "i32",
}


def cost_of(kernel: str, element: str, warps: int, registers: int, **constants: int) -> Cost:
    function = getattr(select, kernel)
    reads_scores = "scores_ptr" in function.arg_names
    return Cost(
        f"{kernel} {element} {next(iter(constants.values()))}",
        function,
        {**TYPES, "scores_ptr": f"*{element}"},
        constants,
        warps=warps,
        registers=registers,
        shared=8192,
        aligned=tuple(name for name in ("mask_ptr", "scores_ptr", "bins_ptr") if name in function.arg_names),
        # Adding nothing makes -0 the same as 0; a flush to zero would make others the same too.
        contains=(f"add.f{element[2:]}",) if reads_scores else (),
        lacks=("ftz",),
    )


COSTS = [
    cost_of("row_kernel", "fp32", warps_for(ON_CHIP), 112, WIDTH=ON_CHIP, BITS=32),
    cost_of("row_kernel", "fp32", warps_for(512), 88, WIDTH=512, BITS=32),
    cost_of("row_kernel", "fp64", warps_for(ON_CHIP), 72, WIDTH=ON_CHIP, BITS=64),
    cost_of("histogram_kernel", "fp32", WARPS, 72, SHIFT=16, DIGIT=DIGIT, BITS=32, CHUNK=CHUNK),
    cost_of("digit_kernel", "fp32", 1, 64, SHIFT=16, DIGIT=DIGIT),
    cost_of("equals_kernel", "fp32", WARPS, 48, CHUNK=CHUNK),
    cost_of("mark_kernel", "fp32", WARPS, 104, CHUNK=CHUNK),
]


def test_against_a_sort(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        assert all(found.values()), (name, found)


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


@pytest.mark.parametrize(("width", "warps"), [(1, 1), (512, 1), (1024, 2), (4096, 8), (8192, 16)])
def test_a_thread_holds_a_few_scores(width: int, warps: int) -> None:
    assert warps_for(width) == warps
    assert width / (32 * warps) <= 16
