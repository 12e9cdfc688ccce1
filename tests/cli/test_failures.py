# SPDX-License-Identifier: Apache-2.0
"""Everything a new user gets wrong ends in a message that says so, the right exit status, and no traceback."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyprune.commands import checkpoints
from pyprune.result import PruneResult

Run = Callable[..., Any]


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that may be damaged."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


USAGE = [
    ((), "COMMAND"),
    (("frobnicate",), "invalid choice"),
    (("prune",), "MODEL"),
    (("prune", "m"), "--data FILE or --task TASK"),
    (("evaluate", "m"), "--data FILE or --task TASK"),
    (("prune", "m", "--data", "d", "--sparsity", "1.2"), "1.2 is not a sparsity"),
    (("prune", "m", "--data", "d", "--sparsity", "1"), "to below 1"),
    (("prune", "m", "--data", "d", "--sparsity", "-0.1"), "is not a sparsity"),
    (("prune", "m", "--data", "d", "--sparsity", "70"), "did you mean 0.7?"),
    (("prune", "m", "--data", "d", "--sparsity", "nan"), "is not a sparsity"),
    (("prune", "m", "--data", "d", "--sparsity", "half"), "not a number"),
    (("prune", "m", "--data", "d", "--pattern", "4:2"), "0 <= keep <= of"),
    (("prune", "m", "--data", "d", "--pattern", "two"), "not understood"),
    (("prune", "m", "--data", "d", "--pattern", "0.5"), "is not N:M"),
    (("prune", "m", "--data", "d", "--pattern", "2:4", "--sparsity", "0.5"), "not allowed with"),
    (("prune", "m", "--data", "d", "--pattern", "2:4", "--scope", "row"), "--scope goes with --sparsity"),
    (("prune", "m", "--data", "d", "--pattern", "block:4x4"), "not understood"),
    (("prune", "m", "--data", "d", "--pattern", "block:4x4:70"), "outside 0 to 1"),
    (("prune", "m", "--data", "d", "--pattern", "block:0x4:0.5"), "at least one row"),
    (("prune", "m", "--data", "d", "--pattern", "block:4x4:0.5", "--sparsity", "0.5"), "not allowed with"),
    (("prune", "m", "--data", "d", "--method", "magic"), "invalid choice"),
    (("prune", "m", "--data", "d", "--samples", "0"), "not at least 1"),
    (("prune", "m", "--data", "d", "--samples", "many"), "not a whole number"),
    (("prune", "m", "--data", "d", "--damping", "-1"), "at least 0"),
    (("prune", "m", "--data", "d", "--resume"), "--resume goes with --output"),
    (("prune", "m", "--task", "sst3"), "invalid choice"),
    (("prune", "m", "--data", "d", "--values", "int8"), "--values int8 goes with --storage sparse"),
    (("prune", "m", "--data", "d", "--streaming", "--output", "o", "--storage", "sparse"), "pyprune export OUTPUT"),
    (("export", "m"), "one of the arguments --dense --sparse --compact --modelling --onnx is required"),
    (("export", "m", "--dense", "a", "--sparse", "b"), "not allowed with"),
    (("export", "m", "--dense", "a", "--values", "int8"), "--values goes with --sparse"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_bad_usage(run: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = run(*arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.out == ""


def failed(outcome: Any, *words: str) -> None:
    assert outcome.status == 1
    for word in words:
        assert word in outcome.err
    assert outcome.out == ""


def test_wrong_paths(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    wrong = f"{model}s"
    failed(run("prune", wrong, "--data", data[0]), f"there is no folder {wrong}", "tiny")
    failed(run("evaluate", model / "config.json", "--data", data[1]), "is a file, the folder of a model is needed")
    failed(run("prune", model, "--data", tmp_path / "no.tsv"), "there is no file")
    failed(run("prune", model, "--data", data[0], "--evaluate", tmp_path / "no.tsv"), "there is no file")
    failed(run("prune", tmp_path, "--data", data[0]), "it has no config.json")


def test_errors_as_json(run: Run, model: Path, tmp_path: Path) -> None:
    outcome = run("prune", model, "--data", tmp_path / "no.tsv", "--json")
    assert outcome.status == 1
    error = outcome.json["error"]
    assert error["kind"] == "InputError"
    assert "there is no file" in error["message"]
    assert "there is no file" in outcome.err


def test_the_hub_cannot_be_reached(run: Run, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyprune.tasks.hub._reachable", lambda: False)
    failed(run("evaluate", "nobody/no-such-model", "--data", data[1]), "could not be had from the Hugging Face hub")


def test_unknown_family(run: Run, copy: Path, data: tuple[Path, Path]) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "rumpelstilzchen"}), encoding="utf-8")
    failed(run("prune", copy, "--data", data[0]), "rumpelstilzchen", "bert", "distilbert")


def test_known_to_transformers_but_not_to_us(run: Run, tmp_path: Path, data: tuple[Path, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=100, n_positions=32)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "gpt")
    failed(run("prune", tmp_path / "gpt", "--data", data[0]), "'gpt2'", "bert", "roberta")


def test_no_head_or_another_one(run: Run, tmp_path: Path, data: tuple[Path, Path], copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    for architecture in (["BertModel"], None):
        (copy / "config.json").write_text(json.dumps(config | {"architectures": architecture}), encoding="utf-8")
        failed(run("prune", copy, "--data", data[0]), "a fine-tuned model is needed")
    (copy / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertForTokenClassification"]}), encoding="utf-8"
    )
    failed(run("evaluate", copy, "--data", data[1]), "no head for sequence classification")
    (copy / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertForQuestionAnswering"]}), encoding="utf-8"
    )
    failed(run("prune", copy, "--data", data[0]), "does not hold all weights", "qa_outputs")


def test_texts_without_labels(run: Run, model: Path, data: tuple[Path, Path]) -> None:
    failed(run("evaluate", model, "--data", data[0]), "has no labels, and evaluation needs them")
    failed(run("prune", model, "--data", data[0], "--evaluate", data[0]), "has no labels")


def test_bad_data(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.tsv").write_text("", encoding="utf-8")
    failed(run("prune", model, "--data", tmp_path / "empty.tsv"), "empty.tsv is empty")
    (tmp_path / "odd.tsv").write_text("a\tb\nx\ty\n", encoding="utf-8")
    failed(run("evaluate", model, "--data", tmp_path / "odd.tsv"), "which column holds the text?", "--text COLUMN")
    (tmp_path / "wrong.tsv").write_text("text\tlabel\nba\t7\n", encoding="utf-8")
    failed(run("evaluate", model, "--data", tmp_path / "wrong.tsv"), "line 2: label 7 is not one of the model's")
    failed(run("prune", model, "--data", data[0], "--split", "dev"), "has no splits")


def test_pickles_are_refused(run: Run, copy: Path, data: tuple[Path, Path]) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    failed(run("prune", copy, "--data", data[0]), "not in safetensors", "a pickle can run any code", "save_pretrained")


def test_damaged_weights(run: Run, copy: Path, data: tuple[Path, Path]) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    failed(run("prune", copy, "--data", data[0]), "the model cannot be opened", "damaged or cut short")
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 31215076\n", encoding="utf-8")
    failed(run("prune", copy, "--data", data[0]), "the model cannot be opened", "Git LFS")
    weights.unlink()
    failed(run("prune", copy, "--data", data[0]), "no weights")
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    failed(run("prune", copy, "--data", data[0]), "part of the weights is missing", "model-00001-of-00002.safetensors")


def test_damaged_config(run: Run, copy: Path, data: tuple[Path, Path]) -> None:
    (copy / "config.json").write_text("{", encoding="utf-8")
    failed(run("prune", copy, "--data", data[0]), "cannot be read as JSON")
    (copy / "config.json").write_text("{}", encoding="utf-8")
    failed(run("prune", copy, "--data", data[0]), "model_type")


def test_unreadable_tokenizer(run: Run, copy: Path, data: tuple[Path, Path]) -> None:
    (copy / "tokenizer.json").write_text('{"version": "1.0", "model": 3}', encoding="utf-8")
    failed(run("prune", copy, "--data", data[0]), "the tokenizer cannot be opened", "copy it again")
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.txt").unlink(missing_ok=True)  # a second copy, by transformers 4
    failed(run("evaluate", copy, "--data", data[1]), "has no tokenizer")


def test_code_of_a_checkpoint_is_never_run(run: Run, copy: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    config["auto_map"]["AutoModelForSequenceClassification"] = "evil.Model"
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    assert run("prune", copy, "--data", data[0]).status == 1
    assert not (tmp_path / "ran").exists()


def test_output_that_must_not_be_touched(run: Run, copy: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    before = (copy / "model.safetensors").read_bytes()
    failed(run("prune", copy, "--data", data[0], "--output", copy), "the folder of the model itself")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years", encoding="utf-8")
    failed(run("prune", copy, "--data", data[0], "--output", tmp_path / "thesis"), "was not written by pyprune")
    failed(run("prune", copy, "--data", data[0], "--output", tmp_path / "thesis/chapter.txt"), "is a file")
    failed(run("prune", copy, "--data", data[0], "--output", tmp_path / "thesis/chapter.txt/x"), "is a file")
    assert (tmp_path / "thesis" / "chapter.txt").read_text(encoding="utf-8") == "years"
    assert (copy / "model.safetensors").read_bytes() == before


def test_pattern_that_does_not_fit(run: Run, model: Path, data: tuple[Path, Path]) -> None:
    failed(run("prune", model, "--data", data[0], "--pattern", "2:5"), "2:5 does not fit", "bert.encoder.layer.0")


def test_full_disk(
    run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "pruned"
    arguments = ("prune", model, "--data", data[0], "--output", output, "--quiet")
    assert run(*arguments).status == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(output))

    with monkeypatch.context() as patch:
        patch.setattr(PruneResult, "_write", full)
        failed(run(*arguments, "--sparsity", 0.25), "full")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    # all blocks are in the journal: with room again, saving is all that is left
    assert run(*arguments, "--sparsity", 0.25).status == 1
    resumed = run(*arguments, "--sparsity", 0.25, "--resume", "--json").json
    assert resumed["resumed_blocks"] == 2
    assert not list(tmp_path.glob("*.journal"))


def test_journal_of_another_run(
    run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("prune", model, "--data", data[0], "--output", tmp_path / "pruned", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(PruneResult, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*arguments).status == 1
    failed(run(*arguments), "--resume", "already holds the journal")
    failed(run(*arguments, "--resume", "--sparsity", 0.25), "journal of another run", "pattern")
    failed(run(*arguments, "--resume", "--seed", 5), "journal of another run")
    assert run(*arguments, "--resume").status == 0


def test_no_memory(run: Run, model: Path, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("pyprune.methods.prune", starve)
    failed(run("prune", model, "--data", data[0]), "not enough memory", "--spill")


def test_what_should_not_happen(
    run: Run, model: Path, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: Any, **__: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(checkpoints, "open_tokenizer", break_down)
    failed(run("prune", model, "--data", data[0]), "should not happen: KeyError", "--debug")


def test_debug_shows_the_traceback(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyprune.cli import main

    assert main(["prune", str(model), "--data", str(tmp_path / "no.tsv"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
