# SPDX-License-Identifier: Apache-2.0
"""The Triton conjugate gradients: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels.masked_cg import INVERSE, PLAIN, RANKED, line_for
from pyprune.triton_kernels.masked_cg_kernels import advance_kernel, start_kernel, turn_kernel


def cost_of(kernel: Any, kind: int, registers: int, *, columns: int = 4096, dense: bool = False) -> Cost:
    line = line_for(columns)
    constants: dict[str, Any] = {"KIND": kind, "BLOCK": line.block}
    constants |= {"FIRST": False} if kernel is turn_kernel else {"HAS_DENSE": dense}
    pointers = tuple(name for name in kernel.arg_names if name.endswith("_ptr"))
    doubles = ("angle_ptr", "loss_ptr", "worth_ptr")
    return Cost(
        f"{kernel.__name__} {kind} {columns} {'error' if dense else 'energy'}",
        kernel,
        {
            **dict.fromkeys(pointers, "*fp32"),
            **dict.fromkeys(doubles, "*fp64"),
            **dict.fromkeys(("going_ptr", "mask_ptr"), "*u8"),
            "columns": "i32",
            "tolerance": "fp32",
        },
        constants,
        warps=line.warps,
        stages=2,
        registers=registers,
        shared=8192,
        aligned=(*pointers, "columns"),
        contains=("ld.global.v4.b32",),  # whole vectors: it is all about memory
    )


COSTS = [
    cost_of(start_kernel, PLAIN, 64),
    cost_of(start_kernel, RANKED, 64),
    cost_of(start_kernel, PLAIN, 64, dense=True),
    cost_of(advance_kernel, PLAIN, 96),
    cost_of(advance_kernel, PLAIN, 96, dense=True),
    cost_of(advance_kernel, INVERSE, 96),
    cost_of(advance_kernel, RANKED, 96),
    cost_of(advance_kernel, PLAIN, 96, columns=384),
    cost_of(turn_kernel, INVERSE, 64),
    cost_of(turn_kernel, RANKED, 64),
]


def test_against_float64(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        assert found.pop("error") <= 1e-4, (name, found)
        assert all(found.values()), (name, found)


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


@pytest.mark.parametrize(("columns", "block", "warps"), [(1, 128, 1), (384, 512, 4), (1024, 1024, 8), (4096, 1024, 8)])
def test_a_lane_walks_by_four(columns: int, block: int, warps: int) -> None:
    line = line_for(columns)
    assert (line.block, line.warps) == (block, warps)
    assert line.block == 128 * line.warps
