# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped goes on with the same bits; a journal of another run is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from stopped_runs import Killed, Stopping
from torch import Tensor, nn

import pyprune
from pyprune.errors import InputError
from pyprune.methods import JournalError

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]


def _equal(one: pyprune.PruneResult, other: pyprune.PruneResult) -> None:
    a, b = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert list(one.masks) == list(other.masks)
    assert all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)
    for left, right in zip(one.report["layers"], other.report["layers"], strict=True):
        timeless = {key: value for key, value in left.items() if key != "seconds"}
        assert timeless == {key: value for key, value in right.items() if key != "seconds"}
    assert one.report["mean_error"] == other.report["mean_error"]


@pytest.mark.parametrize(("steps", "blocks"), [(3, 0), (6, 1), (8, 1), (17, 2), (18, 3)])
def test_a_killed_run_goes_on_with_the_same_bits(
    tiny: Tiny, batches_of: Batches, tmp_path: Path, steps: int, blocks: int
) -> None:
    model = tiny("bert", layers=3)
    want = pyprune.prune(model, batches_of())
    killed = Stopping(stop_after=steps)
    with pytest.raises(Killed):
        pyprune.prune(model, batches_of(), journal=tmp_path / "journal", progress=killed)
    assert killed.total == 18
    assert killed.finished
    assert len(list((tmp_path / "journal").glob("block-*"))) == blocks
    progress = Stopping()
    result = pyprune.prune(model, batches_of(), journal=tmp_path / "journal", resume=True, progress=progress)
    assert result.report["resumed_blocks"] == blocks
    assert len(progress.steps) == progress.total == 18 - 5 * blocks
    _equal(want, result)


def test_every_method_resumes(tiny: Tiny, batches_of: Batches, tmp_path: Path, family: str) -> None:
    model = tiny(family)
    methods = {"bert": "wanda", "roberta": "sparsegpt", "electra": "magnitude", "camembert": "obs"}
    method = methods.get(family, "akr")
    with pytest.raises(Killed):
        pyprune.prune(model, batches_of(), method=method, journal=tmp_path, progress=Stopping(7))
    result = pyprune.prune(model, batches_of(), method=method, journal=tmp_path, resume=True)
    assert result.report["resumed_blocks"] == 1
    _equal(pyprune.prune(model, batches_of(), method=method), result)


def test_blocks_resume(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model, pattern = tiny("bert"), pyprune.Block(4, 2, 0.5)
    with pytest.raises(Killed):
        pyprune.prune(model, batches_of(), pattern=pattern, journal=tmp_path, progress=Stopping(7))
    with pytest.raises(JournalError, match=r"pattern\.scope was 'layer', now 'row'"):
        pyprune.prune(model, batches_of(), pattern=pyprune.Block(4, 2, 0.5, "row"), journal=tmp_path, resume=True)
    result = pyprune.prune(model, batches_of(), pattern=pattern, journal=tmp_path, resume=True)
    assert result.report["resumed_blocks"] == 1
    _equal(pyprune.prune(model, batches_of(), pattern=pattern), result)


def test_resume_without_a_journal_starts_one(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    result = pyprune.prune(tiny("bert", layers=1), batches_of(2), journal=folder, resume=True)
    assert result.report["resumed_blocks"] == 0
    assert (folder / "journal.json").exists()


def test_a_foreign_journal_is_refused(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model = tiny("bert", layers=1)
    pyprune.prune(model, batches_of(2), journal=tmp_path, seed=4)
    other = tiny("bert", layers=1, seed=9)
    changes: list[tuple[nn.Module, int, dict[str, Any], str]] = [
        (other, 2, {}, "the model differs"),
        (model, 3, {}, "the data differs"),
        (model, 2, {"sparsity": 0.6}, r"pattern\.sparsity was 0\.5, now 0\.6"),
        (model, 2, {"pattern": "block:4x4:0.5"}, r"pattern\.kind was 'unstructured', now 'block'"),
        (model, 2, {"method": "sparsegpt"}, "method was 'akr', now 'sparsegpt'"),
        (model, 2, {"damping": 0.1}, r"damping was None, now 0\.1"),
        (model, 2, {"seed": 5}, "seed was 4, now 5"),
        (model, 2, {"solver_options": {"block": 64}, "solver": "sparsegpt"}, "solver_options"),
    ]
    for changed, count, options, message in changes:
        with pytest.raises(JournalError, match=r"another run[\s\S]*" + message):
            pyprune.prune(changed, batches_of(count), journal=tmp_path, resume=True, **{"seed": 4, **options})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(JournalError, match=f"threads.torch was {threads}, now {threads + 1}"):
            pyprune.prune(model, batches_of(2), journal=tmp_path, resume=True, seed=4)
    finally:
        torch.set_num_threads(threads)


def test_a_journal_is_not_overwritten(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model = tiny("bert", layers=1)
    pyprune.prune(model, batches_of(2), journal=tmp_path / "j")
    with pytest.raises(JournalError, match=r"already holds[\s\S]*1 finished blocks[\s\S]*--resume"):
        pyprune.prune(model, batches_of(2), journal=tmp_path / "j")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(JournalError, match="not empty and holds no journal"):
        pyprune.prune(model, batches_of(2), journal=tmp_path / "mine")


def test_damage_is_named(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model = tiny("bert", layers=1)
    pyprune.prune(model, batches_of(2), journal=tmp_path)
    block = tmp_path / "block-000.safetensors"
    block.write_bytes(block.read_bytes()[:200])
    with pytest.raises(JournalError, match=r"block-000\.safetensors is damaged"):
        pyprune.prune(model, batches_of(2), journal=tmp_path, resume=True)
    head = tmp_path / "journal.json"
    head.write_text(json.dumps({**json.loads(head.read_text()), "format": 99}))
    with pytest.raises(JournalError, match="another format"):
        pyprune.prune(model, batches_of(2), journal=tmp_path, resume=True)
    head.write_text("{")
    with pytest.raises(JournalError, match="cannot be read"):
        pyprune.prune(model, batches_of(2), journal=tmp_path, resume=True)


def test_a_block_that_does_not_fit_the_model(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model = tiny("bert", layers=1)
    pyprune.prune(model, batches_of(2), journal=tmp_path)
    path = tmp_path / "block-000.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    name = next(key for key in tensors if key.startswith("tensor:"))
    for bad in ({**tensors, name: tensors[name][:1]}, {**tensors, "tensor:other.weight": torch.zeros(2)}):
        save_file(bad, path, metadata)
        with pytest.raises(JournalError, match="does not fit the model"):
            pyprune.prune(model, batches_of(2), journal=tmp_path, resume=True)


def test_a_full_disk_loses_no_finished_block(
    tiny: Tiny, batches_of: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("bert")
    original = os.replace

    def full(source: Any, target: Any) -> None:
        if "block-001" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"is full: the journal could not be written"):
        pyprune.prune(model, batches_of(), journal=tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["block-000.safetensors", "journal.json"]
    result = pyprune.prune(model, batches_of(), journal=tmp_path, resume=True)
    assert result.report["resumed_blocks"] == 1
    _equal(pyprune.prune(model, batches_of()), result)
