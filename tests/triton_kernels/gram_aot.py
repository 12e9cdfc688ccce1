# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton gram for several architectures and prints, as JSON, what it uses on each."""

from __future__ import annotations

import dataclasses
import json
import sys

from pyprune.triton_kernels.aot import compile_kernel, resources
from pyprune.triton_kernels.gram import CHAIN, gram_kernel, tile_for

TYPES = {
    "out_ptr": "*fp64",
    "x_stride_token": "i32",
    "keep_ptr": "*u8",
    "tokens": "i32",
    "columns": "i32",
}
ALIGNED = ("out_ptr", "x_ptr", "keep_ptr", "x_stride_token", "columns")


def main() -> None:
    found = {}
    for arch in (80, 90):
        for element, itemsize in (("fp32", 4), ("bf16", 2), ("fp16", 2)):
            for columns in (384, 3072):
                tile = tile_for(columns, 4096, arch, itemsize=itemsize)
                constants = {
                    "x_stride_column": 1,
                    "HAS_KEEP": True,
                    "BLOCK": tile.block,
                    "DEPTH": tile.depth,
                    "CHAIN": CHAIN,
                }
                compiled = compile_kernel(
                    gram_kernel,
                    {**TYPES, "x_ptr": f"*{element}"},
                    constants,
                    arch=arch,
                    warps=tile.warps,
                    stages=tile.stages,
                    aligned=ALIGNED,
                )
                ptx = compiled.asm["ptx"]
                found[f"{arch} {element} {tile.block}"] = {
                    **dataclasses.asdict(resources(compiled)),
                    "fused": ptx.count("fma.rn.f32"),
                    "tf32": ptx.count("tf32"),
                }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
