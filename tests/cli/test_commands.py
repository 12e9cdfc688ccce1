# SPDX-License-Identifier: Apache-2.0
"""Each command does its work, prints what a person needs, and one JSON document for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import build_checkpoint, build_sentences

import pyprune
from pyprune.result import load_masks

COMMANDS = ("prune", "evaluate", "export", "soup", "bench", "report", "info", "demo")
Run = Callable[..., Any]


@pytest.mark.parametrize("arguments", [(), *((command,) for command in COMMANDS)])
def test_help_has_examples(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments, "--help")
    assert outcome.status == 0
    assert "examples:" in outcome.out
    assert f"pyprune {arguments[0] if arguments else 'demo'}" in outcome.out
    assert outcome.err == ""


def test_version(run: Run) -> None:
    outcome = run("--version")
    assert (outcome.status, outcome.out.strip()) == (0, f"pyprune {pyprune.__version__}")


def test_info(run: Run) -> None:
    document = run("info", "--json").json
    assert {"pyprune", "torch", "extension", "threads", "ops", "methods", "families", "solvers"} <= document.keys()
    assert "akr" in document["methods"]
    assert "bert" in document["families"]
    for devices in document["ops"].values():
        assert devices["cpu"]["chosen"] in ("cpp", "reference")
    text = run("info").out
    for op in document["ops"]:
        assert op in text
    assert "not reference: cpp comes first" in text or "reference" in text


def test_info_with_the_peak(run: Run) -> None:
    peak = run("info", "--peak", "--json").json["peak_gflops"]
    assert peak.keys() == {"float32", "float64"}
    assert "peak_gflops.float32" in run("info", "--peak").out


def test_info_with_a_forced_backend(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYPRUNE_BACKEND", "reference")
    assert {op["cpu"]["chosen"] for op in run("info", "--json").json["ops"].values()} == {"reference"}
    monkeypatch.setenv("PYPRUNE_BACKEND", "abacus")
    assert "abacus" in run("info").out


def test_evaluate(run: Run, model: Path, data: tuple[Path, Path]) -> None:
    outcome = run("evaluate", model, "--data", data[1], "--json")
    assert outcome.status == 0
    document = outcome.json
    assert document["total"] == 30
    assert document["metric"] == "accuracy"
    assert document["correct"] / 30 == document["accuracy"] == document["value"]
    assert len(document["interval"]) == 2
    assert [entry["name"] for entry in document["classes"]] == ["negative", "positive"]
    assert len(document["sha256"]) == 64
    text = run("evaluate", model, "--data", data[1]).out
    assert f"({document['correct']} of 30" in text
    assert "negative" in text


def test_evaluate_against_another_model(run: Run, model: Path, data: tuple[Path, Path]) -> None:
    document = run("evaluate", model, "--data", data[1], "--against", model, "--json").json
    assert document["against"]["correct"] == document["correct"]
    assert document["comparison"]["same_answer"] == 1.0
    assert "same answer on 100.0 %" in run("evaluate", model, "--data", data[1], "--against", model).out


def test_evaluate_options(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "named.csv"
    path.write_text("id,words,answer\n" + "".join(f"{i},ba be,positive\n" for i in range(9)), encoding="utf-8")
    common = ("evaluate", model, "--data", path, "--text", "words", "--label", "answer", "--json")
    assert run(*common).json["classes"][1]["total"] == 9
    assert run(*common, "--limit", 4, "--batch-size", 1, "--max-length", 3, "--metric", "f1").json["total"] == 4
    cola = run("evaluate", model, "--data", data[1], "--task", "cola", "--json").json
    assert cola["metric"] == "matthews"


@pytest.mark.parametrize("method", ["akr", "magnitude", "wanda", "sparsegpt", "obs"])
def test_prune(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    output = tmp_path / "pruned"
    common = ("prune", model, "--data", data[0], "--method", method, "--evaluate", data[1], "--output", output)
    outcome = run(*common, "--sparsity", 0.75, "--json")
    assert outcome.status == 0, outcome.err
    document = outcome.json
    assert document["method"] == method
    assert document["sparsity"]["linear_weights"] == pytest.approx(0.75, abs=0.01)
    assert document["evaluation"]["dense"]["total"] == document["evaluation"]["pruned"]["total"] == 30
    assert document["output"] == str(output)
    assert not list(tmp_path.glob("*.journal*"))
    stored = json.loads((output / "pyprune.json").read_text(encoding="utf-8"))
    assert stored == {key: value for key, value in document.items() if key != "output"}
    # the saved model is the one that was evaluated, and plain transformers loads it
    evaluated = run("evaluate", output, "--data", data[1], "--json").json
    assert evaluated["correct"] == document["evaluation"]["pruned"]["correct"]
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(output).state_dict()
    for name, mask in load_masks(output).items():
        assert not bool(loaded[f"{name}.weight"][~mask].any())
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    assert any(not torch.equal(loaded[key], dense[key]) for key in dense)


def test_prune_prints_a_table(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ("prune", model, "--data", data[0], "--evaluate", data[1], "--output", tmp_path / "pruned")
    outcome = run(*arguments)
    assert outcome.status == 0
    for words in ("50.00 % of the weights", "all parameters", "in the worst, bert.encoder.layer", "peak memory"):
        assert words in outcome.out
    assert "dense ->" in outcome.out
    assert f"saved in     {tmp_path / 'pruned'}" in outcome.out
    assert "memory: about" in outcome.err, "memory is stated before the run"
    again = run(*arguments, "--quiet")
    assert again.status == 0, "an earlier result of pyprune is replaced"
    assert again.err == ""


def test_prune_without_output(run: Run, model: Path, data: tuple[Path, Path]) -> None:
    outcome = run("prune", model, "--data", data[0], "--method", "magnitude")
    assert outcome.status == 0
    assert "nowhere" in outcome.out


def test_patterns(run: Run, model: Path, data: tuple[Path, Path]) -> None:
    common = ("prune", model, "--data", data[0], "--json", "--quiet", "--method", "wanda")
    document = run(*common, "--pattern", "1:4").json
    assert document["pattern"] == "1:4"
    assert document["sparsity"]["linear_weights"] == 0.75
    assert "layer" in run(*common, "--scope", "layer").json["pattern"]
    options = ("--solver", "obs", "--rectify", "--damping", "0.01", "--samples", 20, "--max-length", 8, "--seed", 3)
    document = run(*common, *options, "--batch-size", 4, "--threads", 1).json
    assert document["solver"] == "obs"
    assert document["settings"]["rectify"] is True
    assert document["data"]["sentences"] == 20
    plain = run("prune", model, "--data", data[0], "--json", "--no-rectify").json
    assert plain["settings"]["rectify"] is False


def test_blocks(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    common = ("prune", model, "--data", data[0], "--json", "--quiet", "--pattern", "block:4x2:0.75")
    document = run(*common, "--output", tmp_path / "pruned").json
    assert document["pattern"] == "75 % of the 4x2 blocks"
    assert document["sparsity"]["linear_weights"] == 0.75
    assert document["settings"]["pattern"] == pyprune.Block(4, 2, 0.75).to_dict()
    masks = load_masks(tmp_path / "pruned")
    assert all(pyprune.Block(4, 2, 0.75).holds(mask) for mask in masks.values())
    weights = pyprune.load(tmp_path / "pruned").state_dict()
    assert not any(bool(weights[f"{name}.weight"][~mask].any()) for name, mask in masks.items())
    by_row = run(*common, "--scope", "row", "--method", "magnitude").json
    assert by_row["pattern"] == "75 % of each row of 4x2 blocks"
    assert run(*common, "--dry-run").json["plan"]["kept"] * 4 == run(*common, "--dry-run").json["plan"]["weights"]
    assert "block:4x4:0.5" in run("prune", "--help").out
    refused = run("prune", model, "--data", data[0], "--pattern", "block:4x5:0.5")
    assert refused.status == 1
    assert "blocks of 4x5 do not fit an input dimension" in refused.err


def test_dry_run(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    common = ("prune", model, "--data", data[0], "--dry-run", "--output", tmp_path / "pruned")
    document = run(*common, "--json").json
    assert document["dry_run"] is True
    assert document["plan"]["memory"]["total"] > 0
    text = run(*common).out
    assert "dry run: nothing was changed" in text
    assert "memory" in text
    assert list(tmp_path.iterdir()) == []


def test_spill_changes_nothing(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    common = ("prune", model, "--data", data[0], "--quiet", "--output")
    (tmp_path / "spill").mkdir()
    assert run(*common, tmp_path / "a").status == 0
    assert run(*common, tmp_path / "b", "--spill", tmp_path / "spill").status == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
    assert list((tmp_path / "spill").iterdir()) == []


def test_task_with_a_folder_of_splits(run: Run, model: Path, tmp_path: Path) -> None:
    rows = "".join(f"{text}\t1\n" for text in build_sentences(20))
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\n" + rows, encoding="utf-8")
    common = ("prune", model, "--task", "sst2", "--data", tmp_path, "--method", "magnitude", "--json")
    assert run(*common).json["evaluation"]["source"].endswith("dev.tsv")
    assert "evaluation" not in run(*common, "--no-evaluate").json


def test_question_answering_models_are_pruned(run: Run, tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "qa", head="qa", family="distilbert")
    sentences = build_sentences(40)
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            json.dumps({"question": a, "context": b}) + "\n"
            for a, b in zip(sentences[::2], sentences[1::2], strict=True)
        ),
        encoding="utf-8",
    )
    outcome = run("prune", folder, "--data", tmp_path / "pairs.jsonl", "--output", tmp_path / "pruned")
    assert outcome.status == 0, outcome.err
    refused = run("prune", folder, "--data", tmp_path / "pairs.jsonl", "--evaluate", tmp_path / "pairs.jsonl")
    assert refused.status == 1
    assert "has no answers" in refused.err
