# SPDX-License-Identifier: Apache-2.0
"""The Triton gram: logic by Triton's interpreter (or on a GPU), cost by ahead-of-time compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from pyprune.triton_kernels.gram import CHAIN, tile_for

HERE = Path(__file__).resolve().parent
U = 2.0**-24  # unit roundoff of float32

CASES = (
    "no tokens", "no columns", "one", "one token", "one column",
    "whole tiles", "primes", "two chains", "bfloat16", "float16",
)  # fmt: skip


def run_program(name: str, *arguments: str, interpret: bool) -> dict[str, Any]:
    """Run a program of this folder in its own process and parse the JSON it prints."""
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    command = [sys.executable, str(HERE / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if interpret and "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter does not run with this NumPy (Triton 3.6 needs NumPy < 2.4)")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def findings(request: pytest.FixtureRequest) -> dict[str, Any]:
    device: str = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: the kernel is run by Triton's interpreter only")
    return run_program("gram_cases.py", device, interpret=device == "cpu")


@pytest.mark.parametrize("name", CASES)
def test_against_float64(findings: dict[str, Any], name: str) -> None:
    found = findings["cases"][name]
    for property_ in ("in_place", "symmetric", "repeatable", "guards_intact"):
        assert found[property_], property_
    assert found["max"] <= 16 * U, found
    assert found["rms"] <= 4 * U, found


def test_every_case_is_held(findings: dict[str, Any]) -> None:
    assert set(findings["cases"]) == set(CASES)


def test_columns_apart(findings: dict[str, Any]) -> None:
    assert findings["transposed"] < 1e-4


def test_refusals(findings: dict[str, Any]) -> None:
    assert all(findings["refusals"].values()), findings["refusals"]


# --- cost, from the compiler ---------------------------------------------------------------------

# (arch, element, block) -> registers allowed a thread; spills must be 0, shared memory 32 KiB at most.
REGISTERS = {
    (80, "fp32", 32): 64, (80, "bf16", 32): 128, (80, "fp16", 32): 128,
    (80, "fp32", 64): 120, (80, "bf16", 64): 168, (80, "fp16", 64): 168,
    (90, "fp32", 32): 64, (90, "bf16", 32): 128, (90, "fp16", 32): 128,
    (90, "fp32", 64): 120, (90, "bf16", 64): 168, (90, "fp16", 64): 168,
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return run_program("gram_aot.py", interpret=False)


@pytest.mark.parametrize(("arch", "element", "block"), list(REGISTERS))
def test_resources(compiled: dict[str, Any], arch: int, element: str, block: int) -> None:
    found = compiled[f"{arch} {element} {block}"]
    assert found["spill"] == 0, found
    assert found["registers"] <= REGISTERS[arch, element, block], found
    assert found["shared"] <= 32768, found
    assert found["fused"] > 0, "float32 products and sums must be fused multiply-adds"
    assert found["tf32"] == 0, "no TF32: it would keep 10 bits of each product"


def test_every_compilation_is_held(compiled: dict[str, Any]) -> None:
    assert set(compiled) == {f"{arch} {element} {block}" for arch, element, block in REGISTERS}


# --- the choice of tiles, a pure function --------------------------------------------------------


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100, 103, 120])
def test_tiles_fit_the_kernel(arch: int, itemsize: int) -> None:
    for columns in (1, 384, 3072, 100_000):
        for tokens in (1, 16, 17, 10**7):
            tile = tile_for(columns, tokens, arch, itemsize=itemsize)
            assert tile.block in (32, 64)
            assert tile.depth in (16, 32)  # tl.dot takes no less than 16
            assert CHAIN % tile.depth == 0
            assert tile.block**2 % (32 * tile.warps) == 0


@pytest.mark.parametrize(
    ("columns", "arch", "block"),
    [
        (384, 90, 32),  # 21 programs of 64 would leave most of 114 multiprocessors idle
        (768, 90, 32),  # 78
        (1024, 90, 64),  # 136
        (3072, 80, 64),
        (768, 86, 64),  # 78 fill 28
        (768, 75, 64),  # unknown: as the smallest known
        (1024, 103, 32),  # unknown: as the nearest below, which has 148
    ],
)
def test_block_fills_the_device(columns: int, arch: int, block: int) -> None:
    assert tile_for(columns, 4096, arch).block == block


def test_few_tokens_take_the_smallest_step() -> None:
    assert tile_for(3072, 16, 90).depth == 16
    assert tile_for(3072, 17, 90).depth == 32
    assert tile_for(3072, 17, 90, itemsize=2).depth == 16
