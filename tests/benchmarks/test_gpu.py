# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark: every case runs (on the CPU, where there is no GPU), and without one it says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from common import Report
from gpu import measure, run

from pyprune import backends

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu" / "run.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "no CUDA device\n"), done.stderr


def test_every_case_runs(capsys: Any) -> None:
    limits = measure.ceilings(DEVICE, quick=True)
    assert all(rate > 0 for rate in limits.values())
    report = Report("gpu", write_file=False)
    for case in run.cases(DEVICE, quick=True):
        run.measure(report, case, DEVICE, limits, 1)
    assert {case["op"] for case in report.cases} <= set(backends.operations())
    for case in json.loads(json.dumps(report.cases)):
        assert len(case["seconds"]) > 1, case
        assert max(case["errors"].values(), default=0.0) < 0.01, case
        assert all(rates["of_ceiling"] > 0 for rates in case["reached"].values()), case


def test_ways_leave_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.FORCE, raising=False)
    seen = measure.ways("matmul", lambda: backends.choose("matmul", "cpu").backend, "cpu")
    assert {name: call() for name, call in seen.items()} == {"pyprune.cpp": "cpp", "pyprune.torch": "torch"}
    assert backends.choose("matmul", "cpu").backend == "cpp"
