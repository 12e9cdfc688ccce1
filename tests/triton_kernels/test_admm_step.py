# SPDX-License-Identifier: Apache-2.0
"""The elementwise halves of an ADMM iteration: logic by Triton's interpreter (or on a GPU), cost by the compiler."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels.admm_step import BLOCK, WARPS, fold_kernel, input_kernel

TYPES = {
    **dict.fromkeys(("out_ptr", "state_ptr", "previous_ptr", "start_ptr", "product_ptr"), "*fp32"),
    "mask_ptr": "*u8",
    "relax": "fp32",
    "momentum": "fp32",
    "elements": "i32",
}
COSTS = [
    Cost(
        kernel.__name__,
        kernel,
        TYPES,
        {"BLOCK": BLOCK},
        warps=WARPS,
        registers=64,
        shared=4096,
        aligned=tuple(name for name in kernel.arg_names if name.endswith("_ptr") or name == "elements"),
        contains=("ld.global.v4.b32", "st.global.v4.b32"),  # whole vectors: it is all about memory
    )
    for kernel in (input_kernel, fold_kernel)
]


def test_against_float64(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        assert found["error"] <= 1e-5, (name, found)
        assert found["previous"], name
        assert found["intact"], name


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()
