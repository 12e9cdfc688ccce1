# SPDX-License-Identifier: Apache-2.0
"""The memory stated before a run is an upper bound of what it takes, and not a wild one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

import pyprune
from pyprune.methods.accounting import resident_bytes

# In a process of its own, because the peak of a process cannot be reset.
_RUN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tiny_models import build_batches, build_model
import pyprune
sizes = dict(hidden=192, inner=768, layers=2, max_position_embeddings=130)
warm = pyprune.prune(build_model(layers=1), build_batches(1))
model = build_model(**sizes)
batches = build_batches(20, rows=16, tokens=128)
spill = sys.argv[2] or None
report = pyprune.prune(model, batches, method="akr", spill=spill).report
print(json.dumps(report["memory"]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("spilled", [False, True])
def test_planned_memory_bounds_what_is_used(tmp_path: Path, spilled: bool) -> None:
    folder = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(folder), str(tmp_path) if spilled else ""],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout.splitlines()[-1])
    used = memory["peak"] - memory["resident_before"]
    assert used <= memory["planned"] * 1.1
    assert used >= memory["planned"] * 0.3
    assert (memory["planned_disk"] > 0) == spilled


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_peak_is_of_this_process_alone() -> None:
    held = b"x" * (400 << 20)  # by the process that starts the other
    program = "from pyprune.methods.accounting import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = resident_bytes()
    assert here is not None
    assert 0 < int(done.stdout) < here - len(held) // 2


def test_plan_is_told_before_the_run(
    tiny: Callable[..., nn.Module], batches_of: Callable[..., list[dict[str, Tensor]]]
) -> None:
    notes: list[str] = []

    class Progress:
        def start(self, total: int, description: str) -> None:
            notes.append("start")

        def advance(self, description: str) -> None: ...

        def note(self, text: str) -> None:
            notes.append(text)

        def finish(self) -> None: ...

    pyprune.prune(tiny("bert"), batches_of(1, rows=3), pattern="2:4", progress=Progress())
    told = "\n".join(notes[: notes.index("start")])
    assert "akr: 2:4, solver obs, 12 linear layers" in told
    assert "memory: about" in told
    assert "fewer than the 48 inputs" in told
