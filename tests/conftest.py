# SPDX-License-Identifier: Apache-2.0
"""Fixtures every room shares."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# GNU OpenMP reads both when torch loads it. Processes that have as many threads as there are cores, each, mostly wait
# for each other (eight times the processor seconds, on two cores); the tests of threads ask for a number themselves.
if "PYTEST_XDIST_WORKER" in os.environ:
    cores, side_by_side = os.cpu_count() or 1, int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // side_by_side)))
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

from pyprune import backends

# tests/ holds helper modules (tolerances) next to test files; importlib mode does not put it on the path.
sys.path[:0] = [
    str(Path(__file__).parent / room) for room in (".", "ops", "cuda", "sparse", "structured", "bench", "attack")
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for a `backend` run on every one that the op of their file has for CPU tensors."""
    if "backend" in metafunc.fixturenames:
        op = metafunc.definition.path.stem.removeprefix("test_")
        known = backends.implementations(op) if op in backends.operations() else ("cpp", "reference")
        metafunc.parametrize("backend", [name for name in known if "cpu" in backends.DEVICES[name]], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that builds a wheel for minutes goes first, so that two workers end at about the same time."""
    items.sort(key=lambda item: "packaging" not in item.path.parts)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one backend for the test; a missing compiled extension fails, it does not skip."""
    monkeypatch.setenv(backends.FORCE, request.param)
    return str(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded random numbers that touch no global state."""
    return torch.Generator().manual_seed(20240711)


@pytest.fixture(autouse=True)
def _same_global_random_state() -> Iterator[None]:
    """Library code must not move torch's global generator; tests that use it get a fixed start."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.random.set_rng_state(state)
