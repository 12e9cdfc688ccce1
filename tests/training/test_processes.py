# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel: two processes with half a batch each are one process with all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyprune.patterns import kept_count

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo"),
]


def _lines(script: str, folder: Path) -> list[list[str]]:
    """What a script prints."""
    command = [sys.executable, str(Path(__file__).with_name(script)), str(folder / "rendezvous")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_two_processes_are_one(tmp_path: Path) -> None:
    lines = _lines("two_processes.py", tmp_path)
    assert [kind for kind, _, _ in lines] == ["movement", "magnitude"]
    for _, gap, zeros in lines:
        assert float(gap) < 1e-12
        assert int(zeros) == 42 - kept_count(42, 0.6)


def test_units_go_alike_in_two_processes(tmp_path: Path) -> None:
    """The same masks in both after every step, those of one process with whole batches, and its weights."""
    *lines, refused = _lines("two_processes_units.py", tmp_path)
    assert [line[0] for line in lines] == ["separate", "whole", "heads", "first-order"]
    for kind, same, alike, gap, kept, measured in lines:
        assert (same, alike, measured) == ("True", "True", "True"), kind
        assert float(gap) < 1e-9, kind
        assert 0.2 < float(kept) < 0.6, kind
    assert refused == ["refused", "3", "3"]  # with two processes and with one
