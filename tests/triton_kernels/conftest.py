# SPDX-License-Identifier: Apache-2.0
"""The cases of every Triton kernel, interpreted on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from worker import Worker


@pytest.fixture(scope="session")
def workers() -> Iterator[dict[str, Worker]]:
    """One process that interprets, one that does not; each starts with its first case."""
    both = {"cpu": Worker(interpret=True), "cuda": Worker(interpret=False)}
    yield both
    for worker in both.values():
        worker.close()


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def findings(request: pytest.FixtureRequest, workers: dict[str, Worker]) -> dict[str, Any]:
    """What `<op>_cases.py` finds, for the `test_<op>.py` that asks."""
    device: str = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: the kernel is run by Triton's interpreter only")
    return workers[device].run(request.path.stem.removeprefix("test_"), device)
