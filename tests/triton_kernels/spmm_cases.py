# SPDX-License-Identifier: Apache-2.0
"""The Triton products with compressed matrices, in tiles and in blocks, against float64; and the way back to zeros."""

from __future__ import annotations

import functools
from typing import Any

import torch
from buffers import Guarded, refused
from token_cases import DTYPES, features
from tolerances import SPMM
from torch import Tensor

from pyprune import backends
from pyprune.ops import sparse_tiles
from pyprune.ops.sparse_weight import SparseWeight, compress, restore
from pyprune.ops.spmm import PARTS
from pyprune.ops.spmm_gpu import lines_of_blocks
from pyprune.triton_kernels.spmm import Cut, spmm_tiles, spread_tiles
from pyprune.triton_kernels.spmm_blocks import BlockCut, spmm_blocks

VALUES = {**DTYPES, "int8": torch.int8}
CUT_OFF = 2.0**-7  # what bfloat16 loses where Triton's interpreter does not round
SPLIT = Cut(tokens=16, cells=2, splits=3, warps=4)


def plain(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7919 * rows + columns))


def sparse(rows: int, columns: int, values: str, density: float, device: str) -> SparseWeight:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(rows + columns)) < density
    return compress(plain(rows, columns).to(device), mask, dtype=VALUES[values])


def in_blocks(
    rows: int, columns: int, sides: tuple[int, int], values: str, density: float, device: str
) -> SparseWeight:
    lines, across = rows // sides[0], columns // sides[1]
    chosen = torch.rand(lines, across, generator=torch.Generator().manual_seed(rows)) < density
    mask = chosen.repeat_interleave(sides[0], 0).repeat_interleave(sides[1], 1)
    return compress(plain(rows, columns).to(device), mask, format="block", geometry=sides, dtype=VALUES[values])


def guarded(tensor: Tensor) -> Tensor:
    """The same between guards: what is read around it makes NaN, or another number."""
    flat = tensor.reshape(1, -1)
    return Guarded(1, flat.shape[1], tensor.dtype, str(tensor.device)).view.copy_(flat).reshape(tensor.shape)


def arranged(weight: SparseWeight) -> dict[str, Tensor]:
    """As the kernel takes it."""
    if weight.format == "block":
        return {name: guarded(part) for name, part in lines_of_blocks(weight).items()}
    parts, _ = sparse_tiles.arrange(weight.mask(), restore(weight, "dense").values)
    # Cells begin at 16 bytes, which guards of 512 elements keep.
    return {name: guarded(part) for name, part in parts.items()}


def limit(dtype: torch.dtype, device: str) -> float:
    cut_off = dtype == torch.bfloat16 and device == "cpu"
    return SPMM[dtype] + (CUT_OFF if cut_off else 0.0)


def error(y: Tensor, x: Tensor, weight: SparseWeight, bias: Tensor | None, activation: str) -> float:
    """Largest deviation from float64, relative to the magnitudes that went into an entry."""
    dense, b = weight.to_dense(torch.float64), torch.zeros(1) if bias is None else bias
    exact = x.double() @ dense.T + b.to(dense)
    size = x.double().abs() @ dense.abs().T + b.to(dense).abs()
    exact = {"none": lambda t: t, "gelu": torch.nn.functional.gelu, "relu": torch.relu}[activation](exact)
    return float(((y.double() - exact).abs() / size.clamp(min=1e-3)).max()) if y.numel() else 0.0


def run(
    weight: SparseWeight,
    tokens: int,
    dtype: str = "float32",
    *,
    out: str | None = None,
    bias: str | None = None,
    activation: str = "none",
    cut: Cut | BlockCut | None = None,
) -> dict[str, Any]:
    (rows, columns), device = weight.shape, str(weight.device)
    x = features(tokens, columns, dtype, device)
    b = None if bias is None else guarded(plain(1, rows)[0].to(device, DTYPES[bias]))
    scale = None if weight.scale is None else guarded(weight.scale)
    parts, out = arranged(weight), out or dtype
    buffer = Guarded(tokens, rows, DTYPES[out], device)
    multiply: Any = spmm_blocks if weight.format == "block" else spmm_tiles
    returned = multiply(buffer.view, x, parts, scale, b, activation, cut=cut)
    again = multiply(torch.empty_like(buffer.view), x, parts, scale, b, activation, cut=cut)
    return {
        "error": error(buffer.view, x, weight, b, activation),
        "limit": limit(DTYPES[out], device),
        "in_place": returned is buffer.view,
        "repeatable": torch.equal(returned, again),
        "intact": buffer.intact(),
    }


def spread(weight: SparseWeight, dtype: str = "float32") -> dict[str, Any]:
    """With its zeros, to the bit."""
    buffer = Guarded(*weight.shape, DTYPES[dtype], str(weight.device))
    wanted = weight.to_dense(DTYPES[dtype])
    if dtype == "bfloat16" and weight.device.type == "cpu":
        wanted = (weight.to_dense(torch.float32).view(torch.int32) & -65536).view(torch.float32).bfloat16()
    scale = None if weight.scale is None else guarded(weight.scale)
    returned = spread_tiles(buffer.view, arranged(weight), scale)
    return {
        "error": 0.0,
        "limit": 0.0,
        "in_place": returned is buffer.view,
        "equal": torch.equal(returned, wanted),
        "intact": buffer.intact(),
    }


def through_the_op(weight: SparseWeight, dtype: str = "float32", bias: str | None = None) -> dict[str, Any]:
    """By the entry of the table, any format, x in three dimensions and not contiguous."""
    (rows, columns), device = weight.shape, weight.device
    x = plain(6, columns + 1).to(device, DTYPES.get(dtype, torch.float64))[:, 1:].reshape(2, 3, columns).transpose(0, 1)
    b = None if bias is None else plain(1, 2 * rows)[0, ::2].to(device, DTYPES[bias])
    multiply = backends._TABLE["spmm"]["triton"]
    parts = [weight.parts[name] for name in PARTS[weight.format]]
    y = multiply(x, parts, weight.scale, b, weight.format, rows, list(weight.geometry), "gelu")
    return {
        "error": error(y.reshape(-1, rows), x.reshape(-1, columns), weight, b, "gelu"),
        "limit": limit(x.dtype, device.type),
        "shape": list(y.shape) == [3, 2, rows],
        "dtype": y.dtype == x.dtype,
    }


def tile_cases(device: str) -> dict[str, Any]:
    make = functools.partial(sparse, device=device)
    cases = {
        "one": run(make(1, 1, "float32", 1.0), 1),
        "no tokens": run(make(3, 70, "float32", 0.5), 0),
        "no rows": run(make(0, 70, "float32", 0.5), 2),
        "no columns": run(make(5, 0, "float32", 0.5), 2, bias="float32", activation="gelu"),
        "none kept": run(make(17, 70, "float32", 0.0), 2, bias="float32"),
        "all kept": run(make(17, 70, "float32", 1.0), 2),
        "whole cells": run(make(64, 256, "float32", 0.5), 16),
        "one row": run(make(1, 131, "float32", 0.3), 3),
        "primes, some tokens": run(make(37, 191, "float32", 0.3), 19, bias="bfloat16", activation="relu"),
        "two blocks of tokens": run(make(37, 67, "float32", 0.3), 37),
        "splits": run(make(37, 461, "float32", 0.3), 5, cut=SPLIT),
        "splits, bias, gelu": run(make(37, 461, "int8", 0.3), 19, bias="float16", activation="gelu", cut=SPLIT),
        "splits, bias, relu": run(
            make(19, 461, "float16", 0.3), 3, "float16", bias="float16", activation="relu", cut=SPLIT
        ),
        "more splits than steps": run(make(19, 131, "float32", 0.3), 3, cut=SPLIT),
        "bfloat16 by float32 to bfloat16": run(make(19, 131, "bfloat16", 0.3), 3, out="bfloat16"),
    }
    for values in VALUES:
        for dtype in DTYPES:
            cases[f"{values} by {dtype}"] = run(make(29, 131, values, 0.4), 5, dtype, bias="float32", activation="gelu")
        cases[f"spread {values}"] = spread(make(37, 191, values, 0.3))
    cases["spread to bfloat16"] = spread(make(17, 65, "int8", 0.3), "bfloat16")
    cases["spread to float16"] = spread(make(17, 65, "float16", 0.3), "float16")
    cases["spread nothing"] = spread(make(0, 65, "float32", 0.3))
    cases["spread zeros"] = spread(make(33, 129, "float32", 0.0))
    return cases


def block_cases(device: str) -> dict[str, Any]:
    make = functools.partial(in_blocks, density=0.5, device=device)
    cases = {
        "blocks, no tokens": run(make(32, 48, (16, 16), "float32"), 0),
        "blocks, none kept": run(in_blocks(32, 48, (16, 16), "float32", 0.0, device), 3, bias="float32"),
        "blocks, all kept": run(in_blocks(32, 48, (16, 16), "float32", 1.0, device), 3),
        "blocks, no rows": run(make(0, 48, (16, 16), "float32"), 3),
        "blocks, no columns": run(make(32, 0, (16, 16), "float32"), 3, bias="float32"),
        "blocks of 16 by 64": run(make(48, 192, (16, 64), "float32"), 19, bias="float32", activation="relu"),
        "blocks of 128 by 32": run(make(256, 96, (128, 32), "float32"), 5, bias="bfloat16", activation="gelu"),
        "blocks in parts": run(
            make(128, 96, (64, 32), "float32"), 37, bias="float32", cut=BlockCut(tokens=16, rows=16, warps=4)
        ),
        "blocks of 32, wide": run(make(64, 96, (32, 32), "int8"), 37, cut=BlockCut(tokens=64, rows=32, warps=4)),
    }
    for values in VALUES:
        for dtype in DTYPES:
            cases[f"blocks, {values} by {dtype}"] = run(make(64, 96, (32, 16), values), 5, dtype, bias="float32")
    return cases


def findings(device: str) -> dict[str, Any]:
    mask = torch.zeros(20, 64, dtype=torch.bool)
    mask.view(20, 16, 4)[..., [1, 2]] = True
    pairs = compress(plain(20, 64).to(device), mask, format="nm", geometry=(2, 4))
    small = in_blocks(24, 48, (8, 16), "int8", 0.5, device)
    tall = in_blocks(32, 48, (16, 16), "bfloat16", 0.5, device)
    flat = sparse(19, 70, "float32", 0.3, device)
    tiles_parts, tiles_geometry = sparse_tiles.arrange(flat.mask(), restore(flat, "dense").values)
    tiled = SparseWeight(flat.shape, "tiles", tiles_parts, None, tiles_geometry)
    through = {
        "op, bitmask": through_the_op(flat),
        "op, bitmask, float64": through_the_op(flat, "float64", "float32"),
        "op, tiles": through_the_op(tiled, "float16", "float32"),
        "op, nm": through_the_op(pairs, "bfloat16", "bfloat16"),
        "op, small blocks": through_the_op(small, bias="float16"),
        "op, blocks": through_the_op(tall, bias="float32"),
        "op, dense": through_the_op(restore(flat, "dense"), bias="float32"),
    }
    y, x = torch.zeros(2, 19, device=device), torch.zeros(2, 70, device=device)
    parts, bias = dict(tiles_parts), torch.zeros(19, device=device)
    yb, xb, blocks = torch.zeros(2, 32, device=device), torch.zeros(2, 48, device=device), lines_of_blocks(tall)
    return {
        "cases": {**tile_cases(device), **block_cases(device), **through},
        "refusals": refused(
            {
                "x in float64": lambda: spmm_tiles(y, x.double(), parts),
                "y in float64": lambda: spmm_tiles(y.double(), x, parts),
                "other tokens": lambda: spmm_tiles(y, x[:1], parts),
                "x in one dimension": lambda: spmm_tiles(y, x[0], parts),
                "y apart": lambda: spmm_tiles(torch.zeros(19, 2, device=device).T, x, parts),
                "x apart": lambda: spmm_tiles(y, torch.zeros(70, 2, device=device).T, parts),
                "an activation unknown": lambda: spmm_tiles(y, x, parts, activation="tanh"),
                "tiles of another matrix": lambda: spmm_tiles(y[:, :16].contiguous(), x, parts),
                "starts in int64": lambda: spmm_tiles(y, x, {**parts, "starts": parts["starts"].long()}),
                "values in float64": lambda: spmm_tiles(y, x, {**parts, "values": parts["values"].double()}),
                "a short bias": lambda: spmm_tiles(y, x, parts, bias=bias[1:]),
                "a short scale": lambda: spmm_tiles(y, x, parts, bias[1:]),
                "bits elsewhere": lambda: spmm_tiles(y, x, {**parts, "bits": parts["bits"].to("meta")}),
                "spread into float64": lambda: spread_tiles(torch.zeros(19, 70, device=device).double(), parts),
                "spread apart": lambda: spread_tiles(torch.zeros(70, 19, device=device).T, parts),
                "spread another matrix": lambda: spread_tiles(torch.zeros(19, 64, device=device), parts),
                "blocks too small": lambda: spmm_blocks(yb, xb, lines_of_blocks(small)),
                "blocks that do not divide": lambda: spmm_blocks(yb[:, :24].contiguous(), xb, blocks),
                "blocks that do not divide x": lambda: spmm_blocks(yb, xb[:, :40].contiguous(), blocks),
                "blocks, starts too short": lambda: spmm_blocks(yb, xb, {**blocks, "starts": blocks["starts"][1:]}),
                "blocks, columns in int64": lambda: spmm_blocks(
                    yb, xb, {**blocks, "columns": blocks["columns"].long()}
                ),
                "blocks, x in float64": lambda: spmm_blocks(yb, xb.double(), blocks),
                "blocks, an activation unknown": lambda: spmm_blocks(yb, xb, blocks, activation="tanh"),
                "blocks, a short bias": lambda: spmm_blocks(yb, xb, blocks, bias=bias),
                "blocks elsewhere": lambda: spmm_blocks(yb, xb, {**blocks, "columns": blocks["columns"].to("meta")}),
            }
        ),
    }
