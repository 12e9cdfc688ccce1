# SPDX-License-Identifier: Apache-2.0
"""What the tests of `gram` and `cross_gram` hold alike."""

from __future__ import annotations

from typing import Any

from costs import Cost

from pyprune.triton_kernels.token_sums import CHAIN, Tile

U = 2.0**-24  # unit roundoff of float32

TYPES = {
    "out_ptr": "*fp64",
    "y_stride_token": "i32",
    "x_stride_token": "i32",
    "keep_ptr": "*u8",
    "tokens": "i32",
    "targets": "i32",
    "columns": "i32",
}


def held(cases: dict[str, Any]) -> None:
    """Sums are as accurate as float32 products allow, in place, repeatable, and touch nothing else."""
    for name, found in cases.items():
        assert found.pop("max") <= 16 * U, name
        assert found.pop("rms") <= 4 * U, name
        assert all(found.values()), (name, found)


def cost_of(
    kernel: Any,
    types: dict[str, str],
    aligned: tuple[str, ...],
    tile: Tile,
    *,
    itemsize: int,
    registers: int,
    shared: int,
    precision: str = "ieee",
    archs: tuple[int, ...] = (80, 90),
) -> Cost:
    """A sum over tokens as it is launched."""
    element = "bf16" if itemsize == 2 else "fp32"
    products = {"bf16": ("f32.bf16.bf16",), "fp32": ("fma.rn.f32",) if precision == "ieee" else ("tf32",)}
    strides = {name: 1 for name in ("y_stride_column", "x_stride_column") if name in kernel.arg_names}
    return Cost(
        f"{element} {precision} {tile.block}, sm_{archs[0]}",
        kernel,
        {**types, "y_ptr": f"*{element}", "x_ptr": f"*{element}"},
        {
            **strides,
            "HAS_KEEP": True,
            "AS_IS": itemsize == 2,
            "PRECISION": precision,
            "BLOCK": tile.block,
            "DEPTH": tile.depth,
            "CHAIN": CHAIN,
        },
        warps=tile.warps,
        stages=tile.stages,
        aligned=aligned,
        registers=registers,
        shared=shared,
        archs=archs,
        contains=products[element],
        lacks=() if precision == "tf32x3" else ("tf32",),
    )
