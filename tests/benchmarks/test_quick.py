# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs: small shapes, one round, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyprune.attack import library

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("bench_*.py")))
def test_quick(name: str) -> None:
    results = set((BENCHMARKS / "results").glob("*"))
    command = [sys.executable, str(BENCHMARKS / name), "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if name == "bench_attack.py" and library.missing():
        assert done.returncode == 1
        assert library.install_line() in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "pyprune" in done.stdout
    assert set((BENCHMARKS / "results").glob("*")) == results
