# SPDX-License-Identifier: Apache-2.0
"""Every op on a GPU, by every backend that has it there: numerics, bits, streams, memory, and what sanitizers see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import OPS, copied, samples
from tolerances import SWEEP_SINGLE, relative
from torch import Tensor

from pyprune import backends

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

WAYS = [
    (op, backend) for op in OPS for backend in backends.implementations(op) if backend in ("cuda", "triton", "torch")
]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0]}-{way[1]}")
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """An op and the backend that is forced."""
    op, backend = request.param
    if (reason := backends.unavailable(backend)) is not None:
        pytest.skip(reason)
    monkeypatch.setenv(backends.FORCE, backend)
    assert backends.choose(op, "cuda").backend == backend
    return op, backend


def call(op: str, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """What an op returns, or else what it changed."""
    result = getattr(torch.ops.pyprune, op).default(*arguments)
    if result is None:
        return tuple(a for a in arguments if isinstance(a, Tensor))
    return result if isinstance(result, tuple) else (result,)


def assert_close(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, wanted, strict=True):
        if one.dtype.is_floating_point:
            assert relative(one.cpu(), other) <= SWEEP_SINGLE
        else:
            assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("columns", [8, 132, 516])
def test_against_the_reference(way, columns, generator, monkeypatch):
    arguments = samples(generator, columns, rows=6)[way[0]]
    got = call(way[0], copied(arguments, "cuda"))
    monkeypatch.setenv(backends.FORCE, "reference")
    assert_close(got, call(way[0], copied(arguments, "cpu")))


def test_same_bits_every_time(way, generator):
    arguments = samples(generator, 132, rows=6)[way[0]]
    first, second = (call(way[0], copied(arguments, "cuda")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_runs_on_the_current_stream(way, generator):
    """What an op reads is written late on a stream of its own: on another stream it would come too early."""
    ready = copied(samples(generator, 132, rows=6)[way[0]], "cuda")
    wanted = [tensor.cpu() for tensor in call(way[0], copied(ready, "cuda"))]  # compiles, too
    late = tuple(torch.ones_like(a) if isinstance(a, Tensor) else a for a in ready)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles
        for target, source in zip(late, ready, strict=True):
            if isinstance(target, Tensor):
                target.copy_(source)
        got = call(way[0], late)
    stream.synchronize()
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, wanted, strict=True))


def test_no_leak(way, generator):
    arguments = copied(samples(generator, 8)[way[0]], "cuda")
    call(way[0], arguments)
    torch.cuda.synchronize()
    before, outside = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(1000):
        call(way[0], arguments)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert outside - torch.cuda.mem_get_info()[0] < 64 << 20  # nor what a kernel may take past torch


def sanitizer() -> str:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(home / "bin"))
    if found is None:
        pytest.skip("no compute-sanitizer found (PATH or CUDA_HOME)")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_nothing_a_sanitizer_would_report(name, tool):
    if (reason := backends.unavailable(name)) is not None:
        pytest.skip(reason)
    program = str(Path(__file__).with_name("each_once.py"))
    watch = [sanitizer(), "--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only"]
    # torch's caching allocator would hide a read past a tensor that stays within its block.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [*watch, sys.executable, program, name, "36"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "gram" in done.stdout.split()


def test_the_extension_shares_the_context_of_torch(generator):
    """Its static CUDA runtime must not make a context of its own: that would take hundreds of megabytes."""
    if (reason := backends.unavailable("cuda")) is not None:
        pytest.skip(reason)
    x = torch.randn(64, 32, generator=generator).cuda()
    out = torch.zeros(32, 32, dtype=torch.float64, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backends.FORCE, "cuda")
        torch.ops.pyprune.gram.default(out, x, None)
    torch.cuda.synchronize()
    assert before - torch.cuda.mem_get_info()[0] < 64 << 20
    assert relative(out.cpu(), x.cpu().double().T @ x.cpu().double()) <= SWEEP_SINGLE
