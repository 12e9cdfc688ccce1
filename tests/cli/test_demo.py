# SPDX-License-Identifier: Apache-2.0
"""The demo's content is whole, its table and JSON say what was measured, its sentence no more than that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyprune import demo, methods
from pyprune.commands.checkpoints import open_model, open_tokenizer
from pyprune.demo import files, story
from pyprune.tasks import Evaluation, evaluate, load_texts


def judged(predictions: list[int], gold: list[int]) -> Evaluation:
    correct = sum(a == b for a, b in zip(predictions, gold, strict=True))
    share = correct / len(gold)
    return Evaluation(
        "accuracy",
        share,
        share,
        correct,
        len(gold),
        (0.0, 1.0),
        (),
        0.0,
        "x",
        "0",
        8,
        0,
        tuple(predictions),
        tuple(gold),
    )


@pytest.fixture
def small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The demo on 40 test sentences with a method of no cost; returns what prune was asked for."""
    lines = files.test_file().read_text(encoding="utf-8").splitlines()
    (tmp_path / "test.tsv").write_text("\n".join(lines[:41]) + "\n", encoding="utf-8")
    monkeypatch.setattr(files, "test_file", lambda: tmp_path / "test.tsv")
    asked: list[dict[str, Any]] = []
    real = methods.prune

    def cheap(model: Any, data: Any, **options: Any) -> Any:
        asked.append(options | {"rows": len(data), "first": data[0]})
        return real(model, data, **(options | {"method": "magnitude", "samples": 8}))

    monkeypatch.setattr(methods, "prune", cheap)
    return asked


def test_content() -> None:
    assert len(load_texts(demo.train_file())) == 2372
    test = load_texts(demo.test_file())
    assert len(test) == 600
    assert test.labels is not None
    assert sum(label == 1 for label in test.labels) == 300
    for folder in (demo.model_folder(), demo.test_file().parent):
        assert "icen" in (folder / "README.md").read_text(encoding="utf-8") or "CC BY" in (
            folder / "README.md"
        ).read_text(encoding="utf-8")
    total = sum(path.stat().st_size for path in demo.model_folder().parent.rglob("*") if path.is_file())
    assert total <= 34 * 2**20
    assert not set(load_texts(demo.train_file()).texts) & set(test.texts)


def test_the_model_is_what_its_readme_says() -> None:
    model = open_model(str(demo.model_folder()))
    found = evaluate(model, load_texts(demo.test_file(), limit=60), tokenizer=open_tokenizer(str(demo.model_folder())))
    assert found.correct >= 50


def test_run(small_demo: list[dict[str, Any]], run: Callable[..., Any], tmp_path: Path) -> None:
    output = tmp_path / "models"
    outcome = run("demo", "--quick", "--json", "--output", output)
    assert outcome.status == 0, outcome.err
    document = outcome.json
    assert [(entry["method"], entry["sparsity"]) for entry in small_demo] == [
        ("akr", 0.5),
        ("sparsegpt", 0.5),
        ("akr", 0.7),
        ("sparsegpt", 0.7),
    ]
    assert {entry["samples"] for entry in small_demo} == {story.QUICK_SAMPLES}
    assert {entry["rows"] for entry in small_demo} == {2372}
    assert isinstance(small_demo[0]["first"], str), "pruning sees texts only, no labels"
    assert document["dense"]["total"] == 40
    assert len(document["runs"]) == 4
    assert [entry["sparsity"] for entry in document["comparisons"]] == [0.5, 0.7]
    assert document["conclusion"]
    assert sorted(path.name for path in output.iterdir()) == ["akr-50", "akr-70", "sparsegpt-50", "sparsegpt-70"]
    assert run("evaluate", output / "akr-70", "--data", files.test_file(), "--json").json["total"] == 40


def test_table(small_demo: list[dict[str, Any]], run: Callable[..., Any]) -> None:
    outcome = run("demo", "--seed", 3)
    assert outcome.status == 0
    for words in ("dense", "AKR", "SparseGPT", "50 %", "70 %", "accuracy", "of 40", "With 70 % of the encoder's"):
        assert words in outcome.out
    assert {entry["samples"] for entry in small_demo} == {story.SAMPLES}
    assert {entry["seed"] for entry in small_demo} == {3}


def test_output_that_must_not_be_touched(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "akr-70").mkdir()
    (tmp_path / "akr-70" / "mine.txt").write_text("mine", encoding="utf-8")
    outcome = run("demo", "--output", tmp_path)
    assert outcome.status == 1
    assert "not written by pyprune" in outcome.err


def test_conclusion_says_no_more_than_the_numbers() -> None:
    gold = [1] * 100
    dense = judged([1] * 95 + [0] * 5, gold)

    def sentence(akr: list[int], other: list[int]) -> str:
        results = {("akr", 0.7): judged(akr, gold), ("sparsegpt", 0.7): judged(other, gold)}
        return story.conclude(dense, results, 0.7)

    clear = sentence([1] * 95 + [0] * 5, [1] * 80 + [0] * 20)
    assert "AKR keeps all of its accuracy" in clear
    assert "SparseGPT loses 15.0 points" in clear
    assert "AKR has 15" in clear
    assert "more than chance gives" in clear
    unclear = sentence([1] * 93 + [0] * 7, [1] * 91 + [0] * 9)
    assert "chance could give too" in unclear
    behind = sentence([1] * 80 + [0] * 20, [1] * 96 + [0] * 4)
    assert "SparseGPT has 16" in behind
    assert "SparseGPT gains 1.0 points" in behind
    level = sentence([0] + [1] * 99, [1] * 99 + [0])
    assert "here they are level" in level


def test_missing_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Callable[..., Any]) -> None:
    monkeypatch.setattr(files, "_ASSETS", tmp_path)
    outcome = run("demo")
    assert outcome.status == 1
    assert "not installed" in outcome.err
