# SPDX-License-Identifier: Apache-2.0
"""Compile Triton kernels ahead of time, without a GPU, and read what they use.

`compile_kernel` hides what differs between Triton versions (3.6 to 3.9); `resources` reads registers,
spills and shared memory with the tools inside Triton's own wheel. Ahead-of-time compilation proves
that a kernel compiles and what it costs, not that it is right.

    types = {"x_ptr": "*fp32", "n": "i32"}
    resources(compile_kernel(kernel, types, {"BLOCK": 64}, arch=90, warps=4, stages=3))
    # Resources(registers=71, spill=0, shared=16384)
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses."""

    registers: int  # per thread
    spill: int  # bytes of stack per thread
    shared: int  # bytes per program


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    arch: int,
    warps: int,
    stages: int,
    aligned: tuple[str, ...] = (),
    fp_fusion: bool = True,
) -> Any:
    """Compile a `triton.jit` function for one architecture.

    Parameters
    ----------
    kernel
        The decorated function; not one decorated under `TRITON_INTERPRET=1`.
    signature : mapping of str to str
        Triton type of every run-time argument, such as "*fp32" or "i64". An argument given "constexpr"
        or left out must be in `constants`.
    constants : mapping of str to value
        Compile-time arguments, also run-time ones to be specialised (a stride of 1).
    arch : int
        Compute capability as two digits, such as 80 or 90.
    aligned : tuple of str
        Run-time arguments known to be divisible by 16, as the launcher finds them to be.

    Returns
    -------
    triton.compiler.CompiledKernel
        With `.asm["ptx"]`, `.asm["cubin"]` and `.metadata.shared`.
    """
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise ValueError(f"cannot compile {kernel!r}: Triton was imported with TRITON_INTERPRET=1")
    names = list(kernel.arg_names)
    types = {name: "constexpr" if name in constants else signature[name] for name in names}
    # Both are indexed over all arguments, compile-time ones included.
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": fp_fusion}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(compiled: Any) -> Resources:
    """Read registers, spilled bytes and shared memory of a compiled kernel from its cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers = re.search(r"REG:(\d+)", text)
    stack = re.search(r"STACK:(\d+)", text)
    local = re.search(r"LOCAL:(\d+)", text)
    if registers is None or stack is None:
        raise RuntimeError(f"cuobjdump said nothing about registers:\n{text}")
    return Resources(
        registers=int(registers[1]),
        spill=int(stack[1]) + (int(local[1]) if local else 0),
        shared=int(compiled.metadata.shared),
    )
