# SPDX-License-Identifier: Apache-2.0
"""The CUDA gram kernel, unchanged, on host threads under the address and the thread sanitizer.

No GPU is needed: a small stand-in for the CUDA headers turns every CUDA thread into a thread of the
host. The first sanitizer sees accesses outside the buffers, the second a missing barrier.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def build(compiler: str, sanitizer: str, target: Path, source: Path) -> None:
    """Compile a .cu file with the emulation in front of the CUDA headers, or skip saying why."""
    # fmt: off
    command = [
        compiler, "-std=c++20", "-O1", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=undefined",
        "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread",
        "-I", str(HERE / "emulated"), "-I", str(ROOT / "csrc" / "cuda"),
        "-x", "c++", str(source), str(HERE / "emulated" / "gram_cases.cpp"), "-o", str(target),
    ]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and ("cannot find" in done.stderr or "unsupported" in done.stderr):
        pytest.skip(f"{compiler} has no {sanitizer} sanitizer: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def compiler_or_skip() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        pytest.skip("no C++ compiler found (g++ or clang++)")
    return compiler


def execute(program: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=120, env=environment)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address randomisation is too wide for the thread sanitizer")
    return done


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_cases(sanitizer: str, tmp_path: Path) -> None:
    program = tmp_path / "gram_cases"
    build(compiler_or_skip(), sanitizer, program, ROOT / "csrc" / "cuda" / "gram.cu")
    done = execute(program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 15


def test_a_missing_barrier_would_be_seen(tmp_path: Path) -> None:
    """The check has teeth: without the barrier that ends a panel, the thread sanitizer complains."""
    text = (ROOT / "csrc" / "cuda" / "gram.cu").read_text()
    broken = text.replace("        __syncthreads();\n        buffer ^= 1;", "        buffer ^= 1;")
    assert broken != text, "the barrier this test removes is no longer written that way"
    source = tmp_path / "broken.cu"
    source.write_text(broken)
    program = tmp_path / "broken"
    build(compiler_or_skip(), "thread", program, source)
    done = execute(program)
    assert done.returncode != 0
    assert "data race" in done.stderr
