# SPDX-License-Identifier: Apache-2.0
"""The Triton sweep: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest
from tolerances import GREEDY, SWEEP_SINGLE

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels.sparsegpt import ROWS, run_for, score_kernel, sweep_kernel


def cost_of(name: str, element: str, registers: int, *, of: int = 0, per_row: bool = False) -> Cost:
    kernel = score_kernel if name == "score" else sweep_kernel
    run = run_for(of, int(element[2:]) // 8)
    constants: dict[str, Any] = {"COLUMNS": run.columns, "RUN": run.size, "ROWS": ROWS}
    if kernel is sweep_kernel:
        constants |= {"PER_ROW": per_row, "OF": of, "BITS": int(element[2:])}
    sizes = ("score_row", "score_column", "stride", "width", "rows", "remove", "keep")
    pointers = tuple(argument for argument in kernel.arg_names if argument.endswith("_ptr"))
    return Cost(
        f"{name} {element}",
        kernel,
        {**dict.fromkeys(pointers, f"*{element}"), "kept_ptr": "*u8", **dict.fromkeys(sizes, "i32")},
        constants,
        warps=run.warps,
        stages=2,
        registers=registers,
        shared=2048,
        aligned=(*pointers, "stride", "width", "rows"),
        contains=(f"fma.rn.f{element[2:]}",),
    )


COSTS = [
    cost_of("mask", "fp32", 72),
    cost_of("rows", "fp32", 112, per_row=True),
    cost_of("2:4", "fp32", 104, of=4),
    cost_of("32:64", "fp32", 128, of=64),
    cost_of("128:256", "fp32", 208, of=256),
    cost_of("score", "fp32", 72),
    cost_of("2:4", "fp64", 136, of=4),
    cost_of("32:64", "fp64", 136, of=64),
    cost_of("score", "fp64", 80),
]


def test_against_float64(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        tolerance = GREEDY if "float64" in name else SWEEP_SINGLE
        assert found.pop("error", 0.0) <= tolerance, (name, found)
        assert all(found.values()), (name, found)


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("of", [0, 1, 2, 3, 4, 8, 16, 17, 40, 64, 256])
def test_a_run_is_whole_groups(of: int, itemsize: int) -> None:
    run = run_for(of, itemsize)
    assert run.columns >= max(of, 9)
    assert run.columns % max(of, 1) == 0
    assert run.columns <= run.size < 2 * max(run.columns, 9)
    assert run.size & (run.size - 1) == 0
    assert 1 <= run.warps <= 8
