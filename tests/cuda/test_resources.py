# SPDX-License-Identifier: Apache-2.0
"""Registers, spills and shared memory of every CUDA kernel, from the compiler: no GPU needed.

A kernel that starts to spill, or loses a resident block to a few more registers, fails here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
ARCHS = (80, 90)


@dataclass(frozen=True)
class Limit:
    """What a kernel may use; threads and blocks say why: registers <= 65536 / (threads * blocks)."""

    registers: int
    shared: int  # bytes, static
    threads: int
    blocks: int  # resident on one multiprocessor


TILE_64 = Limit(registers=168, shared=16384, threads=128, blocks=3)
TILE_32 = Limit(registers=72, shared=8192, threads=128, blocks=7)
LIMITS: dict[str, dict[str, Limit]] = {
    "gram.cu": {
        f"gram_kernel<{element}, {shape}>": limit
        for element in ("float", "__nv_bfloat16", "__half")
        for shape, limit in (("64, 8, 4", TILE_64), ("32, 4, 2", TILE_32))
    },
    # Dynamic shared memory comes on top: tests/cuda/test_masked_lstsq.py has what fits.
    "masked_lstsq.cu": {
        "factor_on_chip": Limit(registers=128, shared=64, threads=256, blocks=2),
        "factor_by_tiles": Limit(registers=128, shared=36912, threads=256, blocks=2),
        "solve_by_tiles": Limit(registers=64, shared=32, threads=256, blocks=4),
    },
    "obs.cu": {
        "obs_kernel<float>": Limit(registers=112, shared=640, threads=256, blocks=2),
        "obs_kernel<double>": Limit(registers=128, shared=1024, threads=256, blocks=2),
    },
    "block_obs.cu": {
        "choose_kernel": Limit(registers=64, shared=36864, threads=256, blocks=4),
        "extend_kernel<1>": Limit(registers=64, shared=256, threads=128, blocks=8),
        "extend_kernel<4>": Limit(registers=64, shared=1024, threads=128, blocks=8),
        "extend_kernel<8>": Limit(registers=72, shared=2048, threads=128, blocks=7),
        "score_kernel<0>": Limit(registers=64, shared=0, threads=128, blocks=8),
        "score_kernel<1>": Limit(registers=64, shared=0, threads=128, blocks=8),
    },
    # Dynamic shared memory comes on top: tests/ops/test_tile_products.py has what fits.
    "spmm.cu": {
        **{
            f"spmm_kernel<OnTensorCores, {element}, {stored}, {groups}>": Limit(128, shared=0, threads=256, blocks=2)
            for element in ("Bfloat16", "Half")
            for stored in ("int8", "uint16")
            for groups in (1, 2, 4)
        },
        **{
            f"spmm_kernel<OnLanes, {element}, {stored}, {tokens}>": limit
            for element, stored in (
                ("float", "float"),
                ("float", "int8"),
                ("Bfloat16", "uint16"),
                ("Half", "uint16"),
            )
            for tokens, limit in (
                (2, Limit(registers=64, shared=0, threads=256, blocks=4)),
                (8, Limit(registers=104, shared=0, threads=256, blocks=2)),
            )
        },
        "finish_kernel": Limit(registers=32, shared=0, threads=256, blocks=8),
    },
    "device_info.cu": {"probe": Limit(registers=16, shared=0, threads=1, blocks=1)},
}


@dataclass(frozen=True)
class Usage:
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


BUILT_IN = {"f": "float", "d": "double", "a": "int8", "t": "uint16"}


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    beside = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
    return os.environ.get("CUDACXX") or beside or shutil.which("nvcc")


def demangle(name: str) -> str:
    """`gram_kernel<float, 64, 8, 4>` from the mangled name of one of our own kernels; nested types come flat."""
    match = re.search(r"(?:\d+_GLOBAL__N_.*?)(\d+)([a-z_]+?)(I.*?E)?Ev?[vPN]", name)
    assert match is not None, name
    stem, rest = match[2], match[3]
    if rest is None:
        return stem
    words = []
    while rest:
        if found := re.match(r"\d+", rest):  # a name after its length
            begin = len(found[0])
            end = begin + int(found[0])
            words.append(rest[begin:end])
        elif found := re.match(r"L[ib](\d+)E", rest):
            words.append(found[1])
            end = len(found[0])
        else:  # a built-in type, the name of a room, or punctuation
            words += [BUILT_IN[rest[0]]] if rest[0] in BUILT_IN else []
            end = len(re.match(r"S\d*_|.", rest)[0])  # type: ignore[index]
        rest = rest[end:]
    return f"{stem}<{', '.join(words)}>"


@cache
def usage_of(source: str, arch: int) -> dict[str, Usage]:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc found (CUDACXX, CUDA_HOME or PATH)")
    # fmt: off
    command = [
        nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v",
        "-o", os.devnull, str(CUDA / source),
    ]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Usage] = {}
    for entry in done.stderr.split("Compiling entry function")[1:]:
        mangled = re.search(r"'(\S+)'", entry)
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        if mangled is None or spills is None or registers is None:
            pytest.fail(f"ptxas output not understood:\n{entry}")
        stack, stores, loads = (int(part) for part in spills.groups())
        found[demangle(mangled[1])] = Usage(
            registers=int(registers[1]),
            shared=int(shared[1]) if shared else 0,
            stack=stack,
            spill_stores=stores,
            spill_loads=loads,
        )
    return found


def test_every_source_has_limits() -> None:
    assert {path.name for path in CUDA.glob("*.cu")} == set(LIMITS)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", sorted(LIMITS))
def test_resources(source: str, arch: int) -> None:
    found = usage_of(source, arch)
    assert set(found) == set(LIMITS[source])
    for kernel, limit in LIMITS[source].items():
        usage = found[kernel]
        context = f"{kernel} on sm_{arch}: {usage}, allowed {limit}"
        assert usage.spill_stores == usage.spill_loads == usage.stack == 0, context
        assert usage.registers <= limit.registers, context
        assert usage.shared <= limit.shared, context


def test_limits_keep_their_blocks_resident() -> None:
    """The table's own arithmetic: registers are handed out to a warp in units of 256."""
    for limits in LIMITS.values():
        for kernel, limit in limits.items():
            per_warp = -(-limit.registers * 32 // 256) * 256
            warps = -(-limit.threads // 32)
            assert per_warp * warps * limit.blocks <= 65536, kernel
