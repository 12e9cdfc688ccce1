# SPDX-License-Identifier: Apache-2.0
"""Runs the Triton gram against a float64 sum and prints one JSON object, case name to findings.

A program of its own because Triton reads TRITON_INTERPRET when a kernel is decorated: test_gram.py
starts it once per device, as `python gram_cases.py cpu` (interpreted) or `cuda`.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

from pyprune.triton_kernels.gram import Tile, gram_accumulate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GUARD = 512  # NaN elements before and after every buffer
SMALL = Tile(block=32, depth=16, warps=4, stages=3)
WIDE = Tile(block=64, depth=32, warps=8, stages=3)


def guarded(rows: int, columns: int, pitch: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Make a NaN-filled buffer and a [rows, columns] view in its middle, rows `pitch` apart."""
    whole = torch.full((2 * GUARD + rows * pitch,), torch.nan, dtype=dtype, device=device)
    view = torch.as_strided(whole, (rows, columns), (pitch, 1), GUARD)
    return whole, view


def run(
    device: str,
    tokens: int,
    columns: int,
    *,
    x_dtype: str,
    out_dtype: torch.dtype,
    keep: bool,
    tile: Tile | None,
) -> dict[str, float | bool]:
    generator = torch.Generator().manual_seed(tokens * 1009 + columns)
    _, x = guarded(tokens, columns, columns + 5, DTYPES[x_dtype], device)
    x.copy_(torch.randn(tokens, columns, generator=generator))
    mask = None
    if keep:
        mask = (torch.rand(tokens, generator=generator) < 0.6).to(device)
        x[~mask] = torch.nan
    whole, out = guarded(columns, columns, columns, out_dtype, device)
    out.fill_(0.25)  # accumulation, not assignment

    returned = gram_accumulate(out, x, mask, tile=tile)
    again = gram_accumulate(torch.full_like(out, 0.25), x, mask, tile=tile)

    real = x.double() if mask is None else x[mask].double()
    scale = (real.abs().T @ real.abs()).clamp_min(1e-3)
    if out_dtype == torch.float32:
        scale += 0.25  # a float32 out rounds what it already held as well
    error = (out.double() - 0.25 - real.T @ real).abs() / scale
    guards = torch.cat([whole[:GUARD], whole[GUARD + columns * columns :]])
    return {
        "max": error.max().item() if columns else 0.0,
        "rms": error.square().mean().sqrt().item() if columns else 0.0,
        "in_place": returned is out,
        "symmetric": bool((out == out.T).all()),
        "repeatable": bool((out == again).all()),
        "guards_intact": bool(guards.isnan().all()),
    }


def refusals(device: str) -> dict[str, bool]:
    """Try calls that must raise ValueError; whether each did, by name."""
    x = torch.zeros(4, 3, device=device)
    out = torch.zeros(3, 3, device=device)
    calls = {
        "float64 x": (out, x.double(), None),
        "3-D x": (out, x[None], None),
        "out of a wrong shape": (torch.zeros(3, 4, device=device), x, None),
        "out not contiguous": (torch.zeros(3, 6, device=device)[:, ::2], x, None),
        "integer out": (out.long(), x, None),
        "keep too short": (out, x, torch.ones(3, dtype=torch.bool, device=device)),
        "keep of floats": (out, x, torch.ones(4, device=device)),
        "keep elsewhere": (out, x, torch.ones(4, dtype=torch.bool, device="meta")),
    }
    found = {}
    for name, arguments in calls.items():
        try:
            gram_accumulate(*arguments)
            found[name] = False
        except ValueError:
            found[name] = True
    return found


def main(device: str) -> None:
    f64, f32 = torch.float64, torch.float32
    cases = {
        "no tokens": run(device, 0, 5, x_dtype="float32", out_dtype=f64, keep=False, tile=None),
        "no columns": run(device, 3, 0, x_dtype="float32", out_dtype=f64, keep=False, tile=None),
        "one": run(device, 1, 1, x_dtype="float32", out_dtype=f64, keep=False, tile=None),
        "one token": run(device, 1, 37, x_dtype="float32", out_dtype=f32, keep=False, tile=SMALL),
        "one column": run(device, 37, 1, x_dtype="float32", out_dtype=f64, keep=True, tile=SMALL),
        "whole tiles": run(device, 64, 128, x_dtype="float32", out_dtype=f64, keep=False, tile=WIDE),
        "primes": run(device, 131, 97, x_dtype="float32", out_dtype=f64, keep=True, tile=SMALL),
        "two chains": run(device, 257, 65, x_dtype="float32", out_dtype=f32, keep=True, tile=WIDE),
        "bfloat16": run(device, 61, 67, x_dtype="bfloat16", out_dtype=f64, keep=True, tile=WIDE),
        "float16": run(device, 61, 67, x_dtype="float16", out_dtype=f64, keep=True, tile=None),
    }
    # Columns apart: x as the transpose of a contiguous tensor.
    turned = torch.randn(33, 40, generator=torch.Generator().manual_seed(7)).to(device)
    out = gram_accumulate(torch.zeros(33, 33, dtype=f64, device=device), turned.T)
    strided = (out - turned.double() @ turned.double().T).abs().max().item()
    json.dump({"cases": cases, "refusals": refusals(device), "transposed": strided}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
