# SPDX-License-Identifier: Apache-2.0
"""K-prune that was stopped anywhere goes on with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import Killed, Stopping
from torch import Tensor, nn

import pyprune
from pyprune.methods import JournalError, KPrune

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]


def _equal(one: pyprune.PruneResult, other: pyprune.PruneResult) -> None:
    a, b = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert one.units == other.units
    for key in ("layers", "budget", "left", "mean_error", "notes", "sparsity"):
        assert one.report[key] == other.report[key], key


@pytest.mark.parametrize(
    ("family", "steps", "blocks"),
    # a step is a batch of a measurement, or a sub-layer that is done: of two batches six a block
    [("bert", 2, 0), ("bert", 5, 0), ("bert", 6, 1), ("bert", 9, 1), ("distilbert", 13, 2), ("bert", 18, 3)],
)
def test_a_killed_run_goes_on_with_the_same_bits(
    tiny: Tiny, batches_of: Batches, tmp_path: Path, family: str, steps: int, blocks: int
) -> None:
    model, batches = tiny(family, layers=3), batches_of(count=2)
    # labels are drawn at the first sub-layer only, so that nothing random is left when a run goes on
    settings: dict[str, Any] = {"method": KPrune(sample_first=True), "target_flops": 0.4, "journal": tmp_path / "j"}
    killed = Stopping(stop_after=steps)
    with pytest.raises(Killed):
        pyprune.prune(model, batches, progress=killed, **settings)
    assert killed.finished
    assert killed.total == 18
    assert len(list((tmp_path / "j").glob("block-*"))) == blocks
    progress = Stopping()
    result = pyprune.prune(model, batches, resume=True, progress=progress, **settings)
    assert result.report["resumed_blocks"] == blocks
    assert len(progress.steps) == progress.total == 18 - 5 * blocks
    _equal(pyprune.prune(model, batches, **{**settings, "journal": None}), result)


def test_a_foreign_or_damaged_journal_is_refused(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model, batches = tiny("bert", layers=1), batches_of(count=1)
    settings: dict[str, Any] = {"method": "kprune", "target_flops": 0.4, "journal": tmp_path / "j"}
    pyprune.prune(model, batches, **settings)
    for changes, message in (
        ({"method": KPrune(temperature=1.0)}, r"temperature was 2\.0, now 1\.0"),
        ({"target_flops": 0.3}, r"share was 0\.4, now 0\.3"),
        ({"target_flops": None, "target_macs": 0.4}, "measure was 'flops', now 'macs'"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"method": "akr", "target_flops": None}, "another run"),
    ):
        with pytest.raises(JournalError, match=message):
            pyprune.prune(model, batches, resume=True, **{**settings, **changes})
    block = tmp_path / "j" / "block-000.safetensors"
    whole = block.read_bytes()
    block.write_bytes(whole[:100])
    with pytest.raises(JournalError, match="is damaged"):
        pyprune.prune(model, batches, resume=True, **settings)
    # a block of weights is none of units
    pyprune.prune(model, batches, journal=tmp_path / "weights")
    block.write_bytes((tmp_path / "weights" / "block-000.safetensors").read_bytes())
    with pytest.raises(JournalError, match="does not fit the model"):
        pyprune.prune(model, batches, resume=True, **settings)
    block.write_bytes(whole)
    assert pyprune.prune(model, batches, resume=True, **settings).report["resumed_blocks"] == 1
