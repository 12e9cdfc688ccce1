# SPDX-License-Identifier: Apache-2.0
"""Triton's votes: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels.draw_counts import BLOCK, KEYS, WARPS, key_kernel, vote_kernel

TYPES = {
    "counts_ptr": "*i32",
    "before_ptr": "*i16",
    "after_ptr": "*i16",
    "arrived_ptr": "*i32",
    "listed_ptr": "*i32",
    "lists_ptr": "*i64",
    "keys_ptr": "*fp64",
    "entries_ptr": "*i64",
    "rates_ptr": "*fp64",
    **dict.fromkeys(("n", "room", "draws", "draw", "group", "groups", "chunks", "seed_low", "seed_high"), "i32"),
}
COSTS = [
    Cost("votes", vote_kernel, TYPES, {"BLOCK": BLOCK}, warps=WARPS, registers=104, shared=64, lacks=("div",)),
    Cost(
        "keys",
        key_kernel,
        TYPES,
        {"KEYS": KEYS},
        warps=WARPS,
        registers=64,
        shared=0,
        fusion=False,
        # 1/3 in float64, a division that is rounded; nothing fused or in float32.
        contains=("0d3FD5555555555555", "div.rn.f64"),
        lacks=("fma.rn.f64", "f32", "ftz"),
    ),
]


def test_the_same_draws(findings: dict[str, Any]) -> None:
    for name, found in findings["draws"].items():
        assert found["equal"], name
        assert found["again"] == (3 if name == "made again" else 0), (name, found)


@pytest.mark.parametrize("name", ["one", "primes", "no room"])
def test_votes(findings: dict[str, Any], name: str) -> None:
    assert all(findings["votes"][name].values()), findings["votes"][name]


def test_keys_have_the_same_bits(findings: dict[str, Any]) -> None:
    assert all(findings["keys"].values()), findings["keys"]


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()
