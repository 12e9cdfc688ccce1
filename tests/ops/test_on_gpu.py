# SPDX-License-Identifier: Apache-2.0
"""Every op on a GPU, by every backend that has it there: numerics, bits, streams, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from samples import OPS, samples
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


def on_gpu(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the tensors among them."""
    return tuple(a.to("cuda", copy=True) if isinstance(a, Tensor) else a for a in arguments)


def assert_close(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, wanted, strict=True):
        if one.dtype.is_floating_point:
            assert relative(one.cpu(), other) <= SWEEP_SINGLE
        else:
            assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("columns", [8, 132, 516])
def test_against_the_reference(way, columns, generator, monkeypatch):
    arguments = samples(generator, columns, rows=6)[way[0]]
    got = call(way[0], on_gpu(arguments))
    monkeypatch.setenv(backends.FORCE, "reference")
    assert_close(got, call(way[0], tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)))


def test_same_bits_every_time(way, generator):
    arguments = samples(generator, 132, rows=6)[way[0]]
    first, second = (call(way[0], on_gpu(arguments)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_runs_on_the_current_stream(way, generator):
    """What an op reads is written late on a stream of its own: on another stream it would come too early."""
    ready = on_gpu(samples(generator, 132, rows=6)[way[0]])
    wanted = [tensor.cpu() for tensor in call(way[0], on_gpu(ready))]  # compiles, too
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
    arguments = on_gpu(samples(generator, 8)[way[0]])
    call(way[0], arguments)
    torch.cuda.synchronize()
    before, outside = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(1000):
        call(way[0], arguments)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert outside - torch.cuda.mem_get_info()[0] < 64 << 20  # nor what a kernel may take past torch
