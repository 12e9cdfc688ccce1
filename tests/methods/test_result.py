# SPDX-License-Identifier: Apache-2.0
"""Saving is all or nothing, destroys nothing foreign, and plain transformers loads what was saved."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import heads_of
from torch import Tensor, nn

import pyprune
from pyprune.errors import InputError
from pyprune.result import export, load_masks, load_report

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]


@pytest.fixture
def result(tiny: Tiny, batches_of: Batches) -> pyprune.PruneResult:
    return pyprune.prune(tiny("bert", layers=1), batches_of(2), sparsity=0.7)


def test_plain_transformers_loads_it(tiny: Tiny, batches_of: Batches, tmp_path: Path, family: str) -> None:
    import transformers

    auto = {
        "classification": transformers.AutoModelForSequenceClassification,
        "qa": transformers.AutoModelForQuestionAnswering,
        "none": transformers.AutoModel,
    }
    for head, loader in auto.items():
        result = pyprune.prune(tiny(family, head, layers=1), batches_of(2))
        folder = result.save(tmp_path / head)
        for loaded in (loader.from_pretrained(folder), pyprune.load(folder)):
            state = loaded.state_dict()
            assert all(torch.equal(state[name], value) for name, value in result.model.state_dict().items())
        masks = load_masks(folder)
        assert masks.keys() == result.masks.keys()
        assert all(torch.equal(masks[name], result.masks[name]) for name in masks)
        assert load_report(folder) == result.report == json.loads((folder / "pyprune.json").read_text())


def test_sparse_storage_holds_the_same(tiny: Tiny, batches_of: Batches, tmp_path: Path, family: str) -> None:
    result = pyprune.prune(tiny(family, heads_of(family)[0], layers=1), batches_of(2), method="magnitude", sparsity=0.9)
    folder, batch = result.save(tmp_path / "sparse", storage="sparse"), batches_of(1)[0]
    with torch.inference_mode():
        got, wanted = (model(**batch).logits for model in (pyprune.load(folder), result.model))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    dense = pyprune.load(folder, dense=True).state_dict()
    assert dense.keys() == result.model.state_dict().keys()
    assert all(torch.equal(dense[name], value) for name, value in result.model.state_dict().items())
    masks = load_masks(folder)
    assert list(masks) == list(result.masks)
    assert all(torch.equal(masks[name], result.masks[name]) for name in masks)
    plain = export(folder, tmp_path / "plain", storage="dense")
    assert all(torch.equal(dense[name], value) for name, value in pyprune.load(plain).state_dict().items())
    again = export(plain, tmp_path / "again", storage="sparse")
    assert (again / "pyprune.safetensors").read_bytes() == (folder / "pyprune.safetensors").read_bytes()


def test_all_weights_in_sixteen_bits(result: pyprune.PruneResult, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    wide, narrow = (result.save(tmp_path / str(kind), values=kind) for kind in (None, "float16"))
    assert (narrow / "model.safetensors").stat().st_size < 0.6 * (wide / "model.safetensors").stat().st_size
    stored = load_file(narrow / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    loaded = pyprune.load(narrow, dtype=torch.float16)
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, before[name])  # the result itself is as it was
        assert torch.equal(loaded.state_dict()[name], value.half() if value.is_floating_point() else value)
    with torch.no_grad():
        next(result.model.parameters())[0, 0] = 1e6
    with pytest.raises(InputError, match="too large for torch"):
        result.save(tmp_path / "large", values="float16")
    assert not (tmp_path / "large").exists()


def test_storage_that_does_not_exist(result: pyprune.PruneResult, tmp_path: Path) -> None:
    for options, message in (
        ({"storage": "zip"}, "unknown storage"),
        ({"values": "int8"}, "no int8 values"),
        ({"storage": "sparse", "values": "int4"}, "unknown values"),
    ):
        with pytest.raises(InputError, match=message):
            result.save(tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_whoever_may_read_one_file_may_read_all(result: pyprune.PruneResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "out")
    (tmp_path / "plain").touch()
    assert {file.stat().st_mode for file in folder.iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_tokenizer_goes_along(result: pyprune.PruneResult, tmp_path: Path) -> None:
    written = SimpleNamespace(save_pretrained=lambda folder: (Path(folder) / "tokenizer.json").write_text("{}"))
    assert (result.save(tmp_path / "out", tokenizer=written) / "tokenizer.json").exists()


def test_half_precision_is_stored_as_such(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    result = pyprune.prune(tiny("bert", layers=1).half(), batches_of(2))
    loaded = pyprune.load(result.save(tmp_path / "half"), dtype=torch.float16)
    assert loaded.get_parameter("classifier.weight").dtype == torch.float16


def test_an_earlier_result_is_replaced_and_nothing_else(result: pyprune.PruneResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "out")
    (folder / "stale.bin").write_text("of the earlier result")
    result.save(folder)
    assert not (folder / "stale.bin").exists()
    (tmp_path / "empty").mkdir()
    result.save(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"mine is not empty and was not written by pyprune"):
        result.save(tmp_path / "mine")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="is a file"):
        result.save(tmp_path / "file")
    with pytest.raises(InputError, match="could not be written"):
        result.save(tmp_path / "file" / "below")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "mine", "out"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device")]
)
def test_a_full_disk_leaves_the_old_result(
    result: pyprune.PruneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    folder = result.save(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(result.model, "save_pretrained", full)
    with pytest.raises(InputError, match=r"is full: the model could not be written"):
        result.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_room_is_seen_before_writing(
    result: pyprune.PruneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="is full"):
        result.save(tmp_path / "out")


def test_load_refuses_other_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        pyprune.load(tmp_path / "absent")
    with pytest.raises(InputError, match=r"without pyprune\.json"):
        pyprune.load(tmp_path)


def test_dry_run_changes_and_saves_nothing(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model = tiny("bert")
    result = pyprune.prune(model, batches_of(2), dry_run=True, journal=tmp_path / "journal")
    assert result.dry_run
    assert result.model is model
    assert not result.masks
    plan = result.report["plan"]
    assert plan["kept"] * 2 == plan["weights"] == 2 * (4 * 32 * 32 + 2 * 32 * 48)
    assert [layer["kept"] for layer in plan["layers"][:2]] == [512, 512]
    json.dumps(result.report)
    with pytest.raises(InputError, match="dry run"):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())
