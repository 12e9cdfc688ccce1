# SPDX-License-Identifier: Apache-2.0
"""``pyprune soup``: chosen on held-out rows only, evaluated, saved, and taken by ``pyprune prune``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_attacker import FakeAttacker
from tiny_checkpoint import build_checkpoint, build_sentences

import pyprune.attack
from pyprune.attack import library

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("members")
    return [build_checkpoint(folder / name, seed=seed) for seed, name in enumerate("abc")]


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """Forty rows that the reported file does not have."""
    path = tmp_path / "held-out.tsv"
    rows = "".join(f"{text} extra\t{row % 2}\n" for row, text in enumerate(build_sentences(40, seed=5)))
    path.write_text("sentence\tlabel\n" + rows, encoding="utf-8")
    return path


def test_chosen_reported_and_pruned(
    run: Run, members: list[Path], held_out: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "average"
    outcome = run("soup", *members, "--select", held_out, "--evaluate", data[1], "--output", output, "--json")
    assert outcome.status == 0, outcome.err
    document = outcome.json
    stored = json.loads((output / "soup.json").read_text(encoding="utf-8"))
    assert stored == {key: value for key, value in document.items() if key != "output"}
    assert document["selection"]["rows"] == 40
    assert document["selection"]["by"] == "accuracy"
    own = {Path(entry["path"]).name: entry["score"] for entry in document["members"]}
    for folder in members:
        judged = run("evaluate", folder, "--data", held_out, "--json").json
        assert own[folder.name] == judged["accuracy"]
    # the scores of the result are those of the folder that was written
    assert document["score"] == run("evaluate", output, "--data", held_out, "--json").json["accuracy"]
    judged = run("evaluate", output, "--data", data[1], "--json").json
    assert document["evaluation"]["correct"] == judged["correct"]
    assert document["evaluation"]["sha256"] == judged["sha256"] != document["selection"]["sha256"]
    pruned = run("prune", output, "--data", data[0], "--output", tmp_path / "pruned", "--quiet", "--json")
    assert pruned.status == 0, pruned.err
    assert pruned.json["method"] == "akr"


def test_text(run: Run, members: list[Path], held_out: Path, tmp_path: Path) -> None:
    text = run("soup", *members, "--select", held_out, "--select-by", "f1", "--output", tmp_path / "average").out
    assert "average with it" in text
    assert f"{held_out}, 40 rows, f1" in text
    text = run("soup", *members, "--uniform", "--select", held_out, "--output", tmp_path / "average").out
    assert "average of all" in text
    assert "3 of 3 checkpoints" in text
    text = run("soup", *members, "--uniform", "--output", tmp_path / "average").out
    assert "3 of 3 checkpoints" in text


class ByWeights(FakeAttacker):
    """Its outcomes depend on the model, too."""

    def __init__(self, recipe: str, model: Any, *rest: Any, **options: Any) -> None:
        super().__init__(recipe, model, *rest, **options)
        self._number = round(1e6 * float(model.classifier.weight.double().abs().sum()))

    def outcome(self, texts: Any, gold: Any, seeds: Any, place: int) -> Any:
        return super().outcome(texts, gold, [seed + self._number for seed in seeds], place)


def test_chosen_under_attack(
    run: Run, members: list[Path], held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every score is what ``pyprune attack`` says of that model on the same rows."""
    choose = ("soup", *members, "--select", held_out, "--limit", 30, "--seed", 4, "--select-by", "aua")
    choose = (*choose, "--recipe", "pwws", "--output", tmp_path / "average")
    monkeypatch.setattr(library, "missing", lambda: ["textattack"])
    outcome = run(*choose)
    assert outcome.status == 1
    assert library.install_line() in outcome.err
    assert not (tmp_path / "average").exists()
    monkeypatch.setattr(library, "missing", list)
    monkeypatch.setattr(pyprune.attack, "run", functools.partial(pyprune.attack.run, attacker=ByWeights))
    document = run(*choose, "--json").json
    assert document["selection"].items() >= {"by": "aua", "recipe": "pwws", "rows": 30}.items()
    own = {Path(entry["path"]).name: entry["score"] for entry in document["members"]}
    assert len(set(own.values())) > 1
    same = ("--data", held_out, "--limit", 30, "--seed", 4, "--recipe", "pwws", "--json")
    assert own == {folder.name: run("attack", folder, *same).json["aua"] for folder in members}
    assert document["score"] == run("attack", tmp_path / "average", *same).json["aua"] >= max(own.values())
    assert "held-out.tsv, 30 rows, aua (pwws)" in run(*choose).out


def test_rows_in_both_files(
    run: Run, members: list[Path], held_out: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    shared = data[1].read_text(encoding="utf-8").splitlines()[1:4]
    # case, white space and the label do not hide a row
    disguised = [f"  {row.split(chr(9))[0].upper()}\t{1 - int(row.split(chr(9))[1])}\n" for row in shared]
    held_out.write_text(held_out.read_text(encoding="utf-8") + "".join(disguised), encoding="utf-8")
    common = ("soup", *members, "--select", held_out, "--evaluate", data[1], "--output", tmp_path / "average")
    outcome = run(*common)
    assert outcome.status == 1
    assert "3 of 43 rows to choose on are also in the rows that are reported" in outcome.err
    assert "--drop-shared" in outcome.err
    assert not (tmp_path / "average").exists()
    assert run(*common, "--drop-shared", "--json").json["selection"]["rows"] == 40
    outcome = run(
        "soup", *members, "--select", data[1], "--evaluate", data[1], "--drop-shared", "--output", tmp_path / "x"
    )
    assert outcome.status == 1
    assert "no row would be left" in outcome.err


def test_usage(run: Run, members: list[Path], held_out: Path, tmp_path: Path) -> None:
    assert run("soup", *members, "--output", tmp_path / "average").status == 2
    assert run("soup", members[0], "--uniform", "--output", tmp_path / "average").status == 2
    assert run("soup", *members, "--uniform").status == 2
    outcome = run("soup", *members, "--uniform", "--output", members[0])
    assert outcome.status == 1
    assert "was not written by pyprune" in outcome.err
