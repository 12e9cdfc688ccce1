# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels, unchanged, on the host under the address and the thread sanitizer.

No GPU is needed: a small stand-in for the CUDA headers turns every CUDA thread into a fiber of the host. The first
sanitizer sees accesses outside the buffers, the second a missing barrier.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from emulation import CASES, CUDA, INCLUDES, compiler_or_skip

# Lines that a program prints: one for each case.
LINES = {"gram": 15, "masked_lstsq": 11, "obs": 11, "block_obs": 8, "spmm": 14}


def build(sanitizer: str, target: Path, op: str, source: Path) -> None:
    """Compile a .cu file with the emulation in front of the CUDA headers, or skip saying why."""
    compiler = compiler_or_skip()
    # fmt: off
    command = [
        compiler, "-std=c++20", "-O1", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=undefined",
        "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", *INCLUDES,
        "-x", "c++", str(source), str(CASES / f"{op}_cases.cpp"), "-o", str(target),
    ]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and ("cannot find" in done.stderr or "unsupported" in done.stderr):
        pytest.skip(f"{compiler} has no {sanitizer} sanitizer: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def execute(program: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=600, env=environment)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address randomisation is too wide for the thread sanitizer")
    return done


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("op", LINES)
def test_cases(op: str, sanitizer: str, tmp_path: Path) -> None:
    program = tmp_path / op
    build(sanitizer, program, op, CUDA / f"{op}.cu")
    done = execute(program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == LINES[op]


# What ends a panel of tokens; what parts the tiles below the diagonal from those that read them; what parts a step's
# coefficients from their readers; what parts a block's trailing columns from the next one that scales them; what parts
# values on their way to shared memory from the lanes that take them.
BARRIERS = [
    ("gram", "gram.cu", "        __syncthreads();\n        buffer ^= 1;", "        buffer ^= 1;"),
    ("masked_lstsq", "masked_lstsq.cu", "        __syncthreads();\n        const int rest", "        const int rest"),
    (
        "block_obs",
        "block_choice.h",
        "        }\n        __syncthreads();\n        if (threadIdx.x == 0) {",
        "        }\n        if (threadIdx.x == 0) {",
    ),
    ("obs", "obs_row.h", "        __syncthreads();\n        // Columns that close", "        // Columns that close"),
    (
        "spmm",
        "spmm.cu",
        "        __pipeline_wait_prior(1);\n        __syncwarp();",
        "        __pipeline_wait_prior(1);",
    ),
]


@pytest.mark.parametrize(("op", "file", "text", "without"), BARRIERS, ids=[entry[0] for entry in BARRIERS])
def test_a_missing_barrier_would_be_seen(op: str, file: str, text: str, without: str, tmp_path: Path) -> None:
    """The check has teeth: without one of its barriers, the thread sanitizer complains about a kernel."""
    for source in (*CUDA.glob("*.cu"), *CUDA.glob("*.h")):
        (tmp_path / source.name).write_text(
            source.read_text().replace("../common/", f"{CUDA.parent}/common/"), encoding="utf-8"
        )
    whole = (tmp_path / file).read_text()
    assert whole.count(text) == 1, "the barrier this test removes is no longer written that way"
    (tmp_path / file).write_text(whole.replace(text, without))
    program = tmp_path / "broken"
    build("thread", program, op, tmp_path / f"{op}.cu")
    done = execute(program)
    assert done.returncode != 0
    assert "data race" in done.stderr
