# SPDX-License-Identifier: Apache-2.0
"""One case of the GPU benchmark: its candidates, what they compute, and the card's ceilings beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from common import Timing, interleaved
from torch import Tensor

from pyprune import backends

_SECONDS = 4.0  # a case aims at so much, and never runs fewer than three rounds
_MOST = 50  # rounds


@dataclass(frozen=True)
class Case:
    """One op on one shape.

    Attributes
    ----------
    op : str
    what : mapping
        Shape, dtype and so on.
    candidates : mapping of name to callable
        Each does the whole work once; those named `pyprune.<backend>` are ours (see `ways`).
    operations, bytes : float
        That the work needs at least: additions and multiplications, and memory read and written.
    peak : str
        The ceiling of the operations: a name in `ceilings`.
    error : callable, optional
        Of what a candidate returns, against float64.
    """

    op: str
    what: Mapping[str, Any]
    candidates: Mapping[str, Callable[[], Any]]
    operations: float
    bytes: float
    peak: str = "float32"
    error: Callable[[Any], float] | None = None


def ways(op: str, call: Callable[[], Any], device: str) -> dict[str, Callable[[], Any]]:
    """The same call by every backend of an op that runs on a device here, the preferred one first.

    The float64 reference is among them only where nothing else serves.
    """
    chosen = backends.choose(op, device).backend
    names = [chosen]
    for name in backends.implementations(op):
        fits = device in backends.DEVICES[name] and name not in (chosen, "reference")
        if fits and backends.unavailable(name) is None:
            names.append(name)
    return {f"pyprune.{name}": _forced(name, call) for name in names}


def _forced(backend: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        before = os.environ.get(backends.FORCE)
        os.environ[backends.FORCE] = backend
        try:
            return call()
        finally:
            if before is None:
                del os.environ[backends.FORCE]
            else:
                os.environ[backends.FORCE] = before

    return run


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def timings_of(case: Case, device: str, rounds: int | None = None) -> dict[str, Timing]:
    """Seconds of every candidate, in turns; as many rounds as fit into a few seconds unless they are given."""
    if rounds is None:
        start = time.perf_counter()
        for call in case.candidates.values():  # compiles as well, so that a second look is taken below
            call()
        wait(device)
        start = time.perf_counter()
        for call in case.candidates.values():
            call()
        wait(device)
        rounds = min(_MOST, max(3, round(_SECONDS / (time.perf_counter() - start))))
    return interleaved(case.candidates, rounds=rounds, device=device)


def ceilings(device: str, *, quick: bool) -> dict[str, float]:
    """What the card reaches: bytes a second of a copy, operations a second of large products by the vendor."""
    size, elements = (256, 1 << 16) if quick else (8192, 1 << 28)
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    found = {"bandwidth": 8.0 * elements / _best(lambda: target.copy_(source), device)}
    for name, dtype, tf32 in (
        ("float64", torch.float64, False),
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        a = torch.randn(size, size, device=device).to(dtype)
        product = torch.empty_like(a)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            found[name] = 2.0 * size**3 / _best(lambda a=a, product=product: torch.mm(a, a, out=product), device)
        finally:
            torch.set_float32_matmul_precision(before)
    return found


def _best(call: Callable[[], Tensor], device: str) -> float:
    seconds = []
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def reached(case: Case, timings: Mapping[str, Timing], limits: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Rates of every candidate, counting the work of the case, and the part of the ceiling that binds it."""
    return {
        name: {
            "tflops": case.operations / timing.median * 1e-12,
            "gbytes": case.bytes / timing.median * 1e-9,
            "of_ceiling": max(case.operations / limits[case.peak], case.bytes / limits["bandwidth"]) / timing.median,
        }
        for name, timing in timings.items()
    }


def relative(got: Tensor, exact: Tensor) -> float:
    """Largest deviation, relative to the largest magnitude."""
    return float((got.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-300))
