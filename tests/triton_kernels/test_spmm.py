# SPDX-License-Identifier: Apache-2.0
"""The Triton spmm: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
from costs import Cost

from pyprune import backends, ops
from pyprune.ops.sparse_weight import compress
from pyprune.ops.spmm_gpu import BLOCK_SIDES, arrange
from pyprune.triton_kernels import spmm, spmm_blocks
from pyprune.triton_kernels.spmm import STRIPS, UNIT, Cut, spmm_cut
from pyprune.triton_kernels.spmm_blocks import SIDES, BlockCut, block_cut

SIZES = dict.fromkeys(("tokens", "rows", "columns", "strips", "cells", "size", "x_stride"), "i32")
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "i8": 1}
COMMON = {"bits_ptr": "*i32", "starts_ptr": "*i32", "scale_ptr": "*fp32", "bias_ptr": "*fp32", "parts_ptr": "*fp32"}


def cost_of(
    name: str,
    kernel: Any,
    element: str,
    values: str,
    warps: int,
    registers: int,
    shared: int,
    archs: tuple[int, ...] = (80, 90),
    **constants: Any,
) -> Cost:
    """A kernel as it is launched for x of type `element`; sizes divide by 16."""
    written = "fp32" if constants.get("SPLITS", 1) > 1 and kernel is spmm.spmm_kernel else element
    types = {**SIZES, **COMMON, "columns_ptr": "*i32", "values_ptr": f"*{values}"}
    types |= {"x_ptr": f"*{element}", "y_ptr": f"*{written}", "out_ptr": f"*{element}"}
    rounded = (f"cvt.rn.{written}",) if written != "fp32" else ()
    product = f"f32.{element}.{element}" if constants.get("AS_IS") else "fma.rn.f32"
    return Cost(
        f"{name} {values} by {element}, {constants.get('TOKENS', 'no')} tokens",
        kernel,
        types,
        constants,
        warps=warps,
        registers=registers,
        shared=shared,
        stages=3 if kernel is spmm_blocks.spmm_blocks_kernel else 2,
        aligned=tuple(name for name in kernel.arg_names if name.endswith("_ptr")),
        archs=archs,
        contains=(*rounded, product) if "AS_IS" in constants else rounded,
    )


def tiles(element: str, values: str, tokens: int, registers: int, shared: int, splits: int = 1) -> Cost:
    cut = spmm_cut(4096, 4096, tokens, 90)
    return cost_of(
        "tiles",
        spmm.spmm_kernel,
        element,
        values,
        cut.warps,
        registers,
        shared,
        HAS_SCALE=values == "i8",
        HAS_BIAS=True,
        ACTIVATION=1,
        AS_IS=element != "fp32",
        EACH=UNIT // BYTES[values],
        SPLITS=splits,
        STRIPS=STRIPS,
        CELLS=cut.cells,
        TOKENS=cut.tokens,
    )


def blocks(element: str, values: str, side: int, tokens: int, registers: int, shared: int) -> Cost:
    cut = block_cut(16384, side, side, tokens, 90, itemsize=BYTES[element])
    return cost_of(
        f"blocks of {side}",
        spmm_blocks.spmm_blocks_kernel,
        element,
        values,
        cut.warps,
        registers,
        shared,
        # On compute capability 10 Triton multiplies float32 as TF32 where a tile is 64 rows high.
        (80, 90, 100) if element == "fp32" else (80, 90),
        HAS_SCALE=values == "i8",
        HAS_BIAS=True,
        ACTIVATION=1,
        AS_IS=element != "fp32",
        HEIGHT=side,
        WIDTH=side,
        ROWS=cut.rows,
        TOKENS=cut.tokens,
    )


COSTS = [
    tiles("bf16", "bf16", 1, 216, 8192),
    tiles("bf16", "i8", 32, 255, 8192, splits=2),
    tiles("fp32", "fp32", 32, 232, 49152),
    cost_of("spread", spmm.dense_kernel, "bf16", "i8", 4, 168, 8192, HAS_SCALE=True, EACH=UNIT, STRIPS=STRIPS, CELLS=2),
    cost_of("finish", spmm.finish_kernel, "bf16", "bf16", 4, 72, 0, HAS_BIAS=True, ACTIVATION=1, SPLITS=4, BLOCK=1024),
    blocks("bf16", "bf16", 64, 1024, 240, 40960),
    blocks("bf16", "i8", 128, 16, 120, 20480),
    blocks("fp32", "fp32", 32, 1024, 160, 16384),
]


def test_against_float64(findings: dict[str, Any]) -> None:
    for name, found in findings["cases"].items():
        assert found.pop("error") <= found.pop("limit"), name
        assert all(found.values()), (name, found)


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_resources(cost: Cost) -> None:
    cost.hold()


@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "block", "splits"),
    [
        (4096, 4096, 1, 16, 1),  # 128 programs, more than half of what fits
        (384, 4096, 1, 16, 8),  # 12 programs, 32 steps
        (1536, 4096, 1, 16, 4),  # 48 programs
        (768, 768, 1, 16, 1),  # 6 steps are too few
        (384, 4096, 17, 32, 8),
        (384, 4096, 5000, 32, 1),  # tokens fill the device
    ],
)
def test_columns_are_split_where_rows_are_few(rows: int, columns: int, tokens: int, block: int, splits: int) -> None:
    assert spmm_cut(rows, columns, tokens, 90) == Cut(tokens=block, cells=2, splits=splits, warps=4)


@pytest.mark.parametrize(
    ("rows", "sides", "tokens", "itemsize", "cut"),
    [
        (16384, (64, 64), 1024, 2, BlockCut(tokens=128, rows=64, warps=8)),
        (16384, (64, 64), 1024, 4, BlockCut(tokens=64, rows=32, warps=4)),
        (4096, (16, 128), 64, 2, BlockCut(tokens=64, rows=16, warps=4)),
        (768, (32, 32), 1, 2, BlockCut(tokens=16, rows=16, warps=4)),  # 48 programs are all there are
        (4096, (64, 64), 32, 2, BlockCut(tokens=16, rows=64, warps=4)),  # 128 programs: fewer tokens before fewer rows
    ],
)
def test_blocks_fill_the_device(rows: int, sides: tuple[int, int], tokens: int, itemsize: int, cut: BlockCut) -> None:
    assert block_cut(rows, *sides, tokens, 90, itemsize=itemsize) == cut


@pytest.mark.parametrize("height", SIDES)
def test_parts_divide_blocks_and_float32_stays_below_64_rows(height: int) -> None:
    for tokens in (1, 17, 300, 5000):
        for itemsize in (2, 4):
            cut = block_cut(8192, height, 64, tokens, 90, itemsize=itemsize)
            assert height % cut.rows == 0
            assert cut.rows <= (32 if itemsize == 4 else 64)


@pytest.mark.parametrize(
    ("format", "geometry", "wanted"),
    [
        ("bitmask", (1, 1), "tiles"),
        ("nm", (4, 4), "tiles"),
        ("dense", (1, 1), "dense"),
        ("block", (16, 32), "block"),
        ("block", (8, 16), "tiles"),
        ("block", (16, 1), "tiles"),
    ],
)
def test_arrangement(format: str, geometry: tuple[int, int], wanted: str) -> None:
    weight = compress(torch.ones(32, 64), format=format, geometry=geometry)
    arranged = arrange(weight, "triton")
    assert BLOCK_SIDES == SIDES
    assert arranged.format == wanted
    assert arrange(arranged, "triton") is arranged
    assert torch.equal(arranged.to_dense(), weight.to_dense())


def test_prepare_asks_which_backend_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "choose", lambda op, device: backends.Choice("triton", arrange, ()))
    assert ops.prepare(compress(torch.ones(3, 5))).format == "tiles"
