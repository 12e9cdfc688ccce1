# SPDX-License-Identifier: Apache-2.0
"""The Triton cross_gram against a float64 sum."""

from __future__ import annotations

from typing import Any

import torch
from buffers import Guarded, refused
from token_cases import deviation, features, padding

from pyprune.triton_kernels import cross_gram
from pyprune.triton_kernels.cross_gram import cross_gram_accumulate
from pyprune.triton_kernels.token_sums import Tile

SMALL = Tile(block=32, depth=16, warps=4, stages=3)
WIDE = Tile(block=64, depth=32, warps=8, stages=3)
F32, F64 = torch.float32, torch.float64


def run(
    device: str,
    tokens: int,
    targets: int,
    columns: int,
    out_dtype: torch.dtype = F64,
    *,
    dtype: str = "float32",
    keep: bool = False,
    precision: str = "ieee",
    tile: Tile | None = None,
) -> dict[str, float | bool]:
    y, x = features(tokens, targets, dtype, device), features(tokens, columns, dtype, device)
    mask = padding(tokens, device) if keep else None
    if mask is not None:
        x[~mask], y[~mask] = torch.nan, torch.nan
    buffer = Guarded(targets, columns, out_dtype, device)
    out = buffer.view.fill_(0.25)

    returned = cross_gram_accumulate(out, y, x, mask, precision=precision, tile=tile)
    again = cross_gram_accumulate(torch.full_like(out, 0.25), y, x, mask, precision=precision, tile=tile)

    if mask is not None:
        y, x = y[mask], x[mask]
    return {
        **deviation(out, 0.25, y, x),
        "in_place": returned is out,
        "repeatable": bool((out == again).all()),
        "intact": buffer.intact(),
    }


def in_slabs(device: str, out_dtype: torch.dtype) -> dict[str, float | bool]:
    """Several launches of few tokens."""
    slab, cross_gram.SLAB = cross_gram.SLAB, 48
    try:
        return run(device, 131, 7, 41, out_dtype, keep=True)
    finally:
        cross_gram.SLAB = slab


def findings(device: str) -> dict[str, Any]:
    y, x = torch.zeros(4, 2, device=device), torch.zeros(4, 3, device=device)
    out = torch.zeros(2, 3, device=device)
    return {
        "cases": {
            "no tokens": run(device, 0, 2, 5),
            "no targets": run(device, 3, 0, 4),
            "one": run(device, 1, 1, 1),
            "one target": run(device, 29, 1, 37, F32, tile=SMALL),
            "one column": run(device, 37, 43, 1, keep=True, tile=SMALL),
            "whole tiles": run(device, 64, 128, 64, tile=WIDE),
            "primes": run(device, 131, 37, 97, keep=True, tile=SMALL),
            "two chains": run(device, 257, 67, 31, F32, keep=True, tile=WIDE),
            "bfloat16": run(device, 61, 35, 67, dtype="bfloat16", keep=True),
            "float16": run(device, 61, 67, 35, F32, dtype="float16", keep=True),
            "tf32x3": run(device, 61, 67, 35, precision="tf32x3"),
            "slabs": in_slabs(device, F64),
            "slabs, float32": in_slabs(device, F32),
        },
        "refusals": refused(
            {
                "float64": lambda: cross_gram_accumulate(out, y.double(), x.double()),
                "two dtypes": lambda: cross_gram_accumulate(out, y.half(), x),
                "other tokens": lambda: cross_gram_accumulate(out, y[:3], x),
                "out of a wrong shape": lambda: cross_gram_accumulate(out.T.contiguous(), y, x),
                "out elsewhere": lambda: cross_gram_accumulate(out.to("meta"), y, x),
                "keep too short": lambda: cross_gram_accumulate(
                    out, y, x, torch.ones(3, dtype=torch.bool, device=device)
                ),
            }
        ),
    }
