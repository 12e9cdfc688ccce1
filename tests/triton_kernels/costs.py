# SPDX-License-Identifier: Apache-2.0
"""What a compiled kernel may use, held by compiling it ahead of time: no GPU needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyprune.triton_kernels.aot import compile_kernel, resources


@dataclass(frozen=True)
class Cost:
    """A kernel as it is launched, and what it may use; spills are never allowed.

    Attributes
    ----------
    name : str
        Of the test.
    kernel, types, constants, aligned, warps, stages, fusion
        As `compile_kernel` takes them.
    registers, shared : int
        Allowed for a thread, and bytes for a program.
    contains, lacks : tuple of str
        What the PTX must and must not hold.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    registers: int
    shared: int
    stages: int = 3
    aligned: tuple[str, ...] = ()
    fusion: bool = True
    archs: tuple[int, ...] = (80, 90)
    contains: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ("tf32",)  # it would keep 10 bits of each product

    def __str__(self) -> str:
        return self.name

    def hold(self) -> None:
        """Compile for every architecture and compare."""
        for arch in self.archs:
            compiled = compile_kernel(
                self.kernel,
                self.types,
                self.constants,
                arch=arch,
                warps=self.warps,
                stages=self.stages,
                aligned=self.aligned,
                fp_fusion=self.fusion,
            )
            used = resources(compiled)
            context = f"{self.name} on sm_{arch}: {used}"
            print(context)
            assert used.spill == 0, context
            assert used.registers <= self.registers, f"{context}, allowed {self.registers}"
            assert used.shared <= self.shared, f"{context}, allowed {self.shared}"
            ptx = compiled.asm["ptx"]
            for text in self.contains:
                assert text in ptx, f"{context}: its PTX has no {text}"
            for text in self.lacks:
                assert text not in ptx, f"{context}: its PTX has {text}"
