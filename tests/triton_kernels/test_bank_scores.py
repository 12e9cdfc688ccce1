# SPDX-License-Identifier: Apache-2.0
"""Triton's sums over a bank: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from costs import Cost

from pyprune.triton_kernels.bank_scores import bank_tile, chunks_of
from pyprune.triton_kernels.bank_scores_kernels import gradient_kernel, sums_kernel

FLOATS = ("largest", "total", "positives", "best", "parts", "log_sum", "to_log_sum", "to_positives")
TYPES = {
    **{f"{name}_ptr": "*fp32" for name in FLOATS},
    **{f"{name}_ptr": "*i64" for name in ("keys", "bank_keys", "rows")},
    **dict.fromkeys(("batch", "features", "kinds", "length", "entries", "stride", "chunk"), "i32"),
    "counts_ptr": "*i32",
    "scale": "fp32",
}
ALIGNED = ("queries_ptr", "bank_ptr", "features", "stride", "chunk", "batch")


def cost_of(
    elements: tuple[str, str], registers: int, shared: int, *, gradient: bool = False, own: bool = False
) -> Cost:
    tile = bank_tile(64, itemsize=2 if elements[0] == elements[1] != "fp32" else 4, gradient=gradient)
    constants = {"HAS_ROWS": not own, "OWN": own, "AS_IS": elements[0] == elements[1] != "fp32"}
    constants |= {"QUERIES": tile.queries, "CANDIDATES": tile.candidates, "DEPTH": tile.depth}
    return Cost(
        f"{'gradient' if gradient else 'sums'}, {elements[0]} against {'itself' if own else elements[1]}",
        gradient_kernel if gradient else sums_kernel,
        {**TYPES, "queries_ptr": f"*{elements[0]}", "bank_ptr": f"*{elements[1]}"},
        constants | ({"rows_ptr": None} if own else {}) | ({} if gradient else {"KINDS": 2}),
        warps=tile.warps,
        stages=tile.stages,
        registers=registers,
        shared=shared,
        aligned=(*ALIGNED, *(("parts_ptr",) if gradient else ())),
        contains=("mma",) if constants["AS_IS"] else (),
        lacks=("tf32", "atom.global", " red.", "\tred."),
    )


COSTS = [
    cost_of(("fp32", "fp32"), 112, 6144),
    cost_of(("fp32", "fp32"), 112, 6144, own=True),
    cost_of(("fp32", "bf16"), 176, 8192),
    cost_of(("bf16", "bf16"), 144, 24576),
    cost_of(("fp16", "fp16"), 152, 24576, own=True),
    cost_of(("fp32", "fp32"), 112, 14336, gradient=True),
    cost_of(("fp32", "fp32"), 112, 14336, gradient=True, own=True),
    cost_of(("bf16", "bf16"), 104, 18432, gradient=True),
    cost_of(("fp32", "fp16"), 176, 16384, gradient=True),
]


def test_against_float64(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        assert all(found.values()), (name, found)


@pytest.mark.parametrize("name", ["certain", "not numbers", "refusals"])
def test_findings(findings: dict[str, Any], name: str) -> None:
    assert all(findings[name].values()), findings[name]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


def test_float32_is_multiplied_in_less_than_64_rows() -> None:
    for batch in (0, 1, 17, 64, 4096):
        assert 16 <= bank_tile(batch, itemsize=4).queries <= 32
        assert 16 <= bank_tile(batch, itemsize=2, gradient=True).queries <= 32


@pytest.mark.parametrize(("batch", "entries"), [(1, 1), (32, 67_349), (4096, 1_000_000), (100_000, 40)])
def test_chunks_are_whole_tiles_for_every_multiprocessor(batch: int, entries: int) -> None:
    tile = bank_tile(batch, itemsize=4)
    chunk, chunks = chunks_of(entries, batch, tile, 90)
    assert chunk % tile.candidates == 0
    assert (chunks - 1) * chunk < entries <= chunks * chunk
    blocks = -(-batch // tile.queries)
    assert chunks == 1 or chunks * blocks >= 114 or chunk == tile.candidates
    assert chunks == 1 or (chunks - 1) * blocks <= 2 * 114  # what gradients by chunk take is bounded
