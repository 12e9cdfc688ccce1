# SPDX-License-Identifier: Apache-2.0
"""Question answering on the command line: evaluated, pruned with and without training, compared, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import WORDS, build_checkpoint

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("reader") / "tiny", head="qa")


@pytest.fixture(scope="module")
def squad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each word of a passage asks for itself; one question has no place, one no answer."""
    passage = " ".join(WORDS[:12])
    asked = [
        {"question": word, "answers": [{"text": word, "answer_start": passage.index(word)}]} for word in WORDS[:10]
    ]
    asked += [{"question": "x", "answers": [{"text": "x", "answer_start": -1}]}, {"question": "y", "answers": []}]
    path = tmp_path_factory.mktemp("squad") / "dev.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": passage, "qas": asked}]}]}))
    return path


def test_evaluated(run: Run, reader: Path, squad: Path) -> None:
    outcome = run("evaluate", reader, "--data", squad, "--against", reader)
    assert outcome.status == 0, outcome.err
    assert "exact match" in outcome.out
    assert "1 questions without an answer left out" in outcome.out
    assert "same answer on 100.0 % of the rows" in outcome.out
    assert "predicted" not in outcome.out  # there is no table of classes
    found = run("evaluate", reader, "--data", squad, "--json").json
    assert (found["metric"], found["total"], found["unanswered"]) == ("f1", 11, 1)
    assert 0 <= found["accuracy"] <= found["value"] <= 1
    failed = run("evaluate", reader, "--data", squad, "--metric", "matthews")
    assert failed.status == 1
    assert "not judged by matthews" in failed.err


@pytest.mark.parametrize("method", ["kprune", "wanda"])
def test_pruned_without_training(run: Run, reader: Path, squad: Path, method: str, tmp_path: Path) -> None:
    target = ("--target-macs", "0.6") if method == "kprune" else ("--sparsity", "0.5")
    common = ("prune", reader, "--method", method, "--data", squad, *target, "--evaluate", squad, "--json")
    outcome = run(*common, "--output", tmp_path / "pruned")
    assert outcome.status == 0, outcome.err
    judged = outcome.json["evaluation"]
    assert judged["dense"]["metric"] == judged["pruned"]["metric"] == "f1"
    again = run("evaluate", tmp_path / "pruned", "--data", squad, "--json").json
    assert again["value"] == pytest.approx(judged["pruned"]["value"], abs=1e-6)


def test_pruned_while_trained(run: Run, reader: Path, squad: Path, tmp_path: Path) -> None:
    common = ("prune", reader, "--method", "grain", "--train", squad, "--teacher", reader, "--sparsity", "0.6")
    common += ("--epochs", "2", "--batch-size", "4", "--evaluate", squad, "--contrast")
    outcome = run(*common, "--output", tmp_path / "small")
    assert outcome.status == 0, outcome.err
    assert "10; 2 left out, as nobody says where" in outcome.out
    report = json.loads((tmp_path / "small" / "pyprune.json").read_text(encoding="utf-8"))
    assert report["data"]["left_out"] == 2
    assert report["evaluation"]["pruned"]["metric"] == "f1"
    again = run("evaluate", tmp_path / "small", "--data", squad, "--json").json
    assert again["correct"] == report["evaluation"]["pruned"]["correct"]
    assert "exact match" in outcome.out
    reported = run("report", tmp_path / "small", "--output", tmp_path / "page.html")
    assert reported.status == 0, reported.err
    assert "exact match" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_data_of_another_kind(run: Run, reader: Path, model: Path, squad: Path, data: tuple[Path, Path]) -> None:
    for arguments, message in (
        (("evaluate", reader, "--data", data[1]), "has no answers"),
        (("evaluate", model, "--data", squad), "has no labels"),
        (("prune", reader, "--method", "imp", "--train", data[1]), "has no answers"),
        (("prune", model, "--method", "imp", "--train", squad), "has no labels"),
        (("prune", reader, "--method", "imp", "--train", squad, "--teacher", model), "no head for question answering"),
        (("prune", reader, "--data", squad, "--evaluate", data[1]), "has no answers"),
    ):
        outcome = run(*arguments)
        assert outcome.status == 1, arguments
        assert message in outcome.err, arguments
