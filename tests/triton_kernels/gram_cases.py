# SPDX-License-Identifier: Apache-2.0
"""The Triton gram against a float64 sum."""

from __future__ import annotations

from typing import Any

import torch
from buffers import Guarded, refused
from token_cases import deviation, features, padding

from pyprune.triton_kernels import gram
from pyprune.triton_kernels.gram import gram_accumulate
from pyprune.triton_kernels.token_sums import Tile

SMALL = Tile(block=32, depth=16, warps=4, stages=3)
WIDE = Tile(block=64, depth=32, warps=8, stages=3)
WIDEST = Tile(block=128, depth=64, warps=8, stages=3)
F32, F64 = torch.float32, torch.float64


def run(
    device: str,
    tokens: int,
    columns: int,
    out_dtype: torch.dtype = F64,
    *,
    dtype: str = "float32",
    keep: bool = False,
    precision: str = "ieee",
    tile: Tile | None = None,
) -> dict[str, float | bool]:
    x = features(tokens, columns, dtype, device)
    mask = padding(tokens, device) if keep else None
    if mask is not None:
        x[~mask] = torch.nan
    buffer = Guarded(columns, columns, out_dtype, device)
    out = buffer.view.fill_(0.25)  # accumulation, not assignment

    returned = gram_accumulate(out, x, mask, precision=precision, tile=tile)
    again = gram_accumulate(torch.full_like(out, 0.25), x, mask, precision=precision, tile=tile)

    real = x if mask is None else x[mask]
    return {
        **deviation(out, 0.25, real, real),
        "in_place": returned is out,
        "symmetric": bool((out == out.T).all()),
        "repeatable": bool((out == again).all()),
        "intact": buffer.intact(),
    }


def in_slabs(device: str, out_dtype: torch.dtype) -> dict[str, float | bool]:
    """Several launches of few tokens."""
    slab, gram.SLAB = gram.SLAB, 48
    try:
        return run(device, 131, 41, out_dtype, keep=True)
    finally:
        gram.SLAB = slab


def transposed(device: str) -> dict[str, float]:
    """Columns apart: x as the transpose of a contiguous tensor."""
    x = torch.randn(33, 40, generator=torch.Generator().manual_seed(7)).to(device).T
    return deviation(gram_accumulate(torch.zeros(33, 33, dtype=F64, device=device), x), 0.0, x, x)


def findings(device: str) -> dict[str, Any]:
    x = torch.zeros(4, 3, device=device)
    out = torch.zeros(3, 3, device=device)
    wide = torch.zeros(3, 6, device=device)
    return {
        "cases": {
            "no tokens": run(device, 0, 5),
            "no columns": run(device, 3, 0),
            "one": run(device, 1, 1),
            "one token": run(device, 1, 37, F32, tile=SMALL),
            "one column": run(device, 37, 1, keep=True, tile=SMALL),
            "whole tiles": run(device, 64, 128, tile=WIDE),
            "primes": run(device, 131, 97, keep=True, tile=SMALL),
            "two chains": run(device, 257, 65, F32, keep=True, tile=WIDE),
            "widest tile": run(device, 70, 131, dtype="float16", tile=WIDEST),
            "bfloat16": run(device, 61, 67, dtype="bfloat16", keep=True, tile=WIDE),
            "float16": run(device, 61, 67, F32, dtype="float16", keep=True),
            "tf32x3": run(device, 61, 67, keep=True, precision="tf32x3"),
            "slabs": in_slabs(device, F64),
            "slabs, float32": in_slabs(device, F32),
            "transposed": transposed(device),
        },
        "refusals": refused(
            {
                "float64 x": lambda: gram_accumulate(out, x.double()),
                "3-D x": lambda: gram_accumulate(out, x[None]),
                "out of a wrong shape": lambda: gram_accumulate(torch.zeros(3, 4, device=device), x),
                "out not contiguous": lambda: gram_accumulate(wide[:, ::2], x),
                "integer out": lambda: gram_accumulate(out.long(), x),
                "keep too short": lambda: gram_accumulate(out, x, torch.ones(3, dtype=torch.bool, device=device)),
                "keep of floats": lambda: gram_accumulate(out, x, torch.ones(4, device=device)),
                "keep elsewhere": lambda: gram_accumulate(out, x, torch.ones(4, dtype=torch.bool, device="meta")),
                "single TF32": lambda: gram_accumulate(out, x, precision="tf32"),
            }
        ),
    }
