# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel: two processes with half a batch each are one process with all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyprune.patterns import kept_count


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_are_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(script), str(tmp_path / "rendezvous")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [kind for kind, _, _ in lines] == ["movement", "magnitude"]
    for _, gap, zeros in lines:
        assert float(gap) < 1e-12
        assert int(zeros) == 42 - kept_count(42, 0.6)
