# SPDX-License-Identifier: Apache-2.0
"""``pyprune report``: three outputs of one command, and what it says when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def pruned(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> Path:
    common = ("prune", model, "--data", data[0], "--method", "magnitude", "--evaluate", data[1], "--quiet")
    assert run(*common, "--output", tmp_path / "pruned").status == 0
    return tmp_path / "pruned"


def test_three_outputs(run: Run, pruned: Path, tmp_path: Path) -> None:
    page, text = tmp_path / "new" / "report.html", tmp_path / "report.md"
    outcome = run("report", pruned, "--output", page, "--markdown", text)
    assert outcome.status == 0
    assert outcome.out.splitlines()[0].split() == ["models", "2"]
    assert str(page) in outcome.out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert text.read_text(encoding="utf-8").startswith("# Pruning report")
    document = run("report", pruned, "--json").json
    assert [model["kind"] for model in document["models"]] == ["dense", "pruned"]
    assert document["models"][1]["sparsity"]["linear_weights"] == 0.5
    assert "densities" not in document["models"][1]


def test_damage_is_counted(run: Run, pruned: Path, tmp_path: Path) -> None:
    (pruned / "attack.json").write_text("{", encoding="utf-8")
    outcome = run("report", pruned, "--output", tmp_path / "report.html")
    assert outcome.status == 0
    assert "1, listed in the report" in outcome.out


def test_without_matplotlib(run: Run, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = run("report", pruned, "--output", tmp_path / "report.html")
    assert outcome.status == 0
    assert "no pictures: pictures need matplotlib (pip install 'pyprune[report]')" in outcome.err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "There are no pictures" in page
    assert "<svg" not in page


def test_usage(run: Run, pruned: Path, tmp_path: Path) -> None:
    assert run("report", pruned).status == 2
    assert run("report", "--json").status == 2
    for arguments, message in (
        ((tmp_path / "nowhere", "--json"), "there is no folder"),
        ((pruned, "--json", "--bench", tmp_path / "nowhere"), "there is no file"),
        ((pruned, "--output", tmp_path), "is a folder"),
        ((pruned, "--output", pruned / "config.json" / "x.html"), "is a file"),
    ):
        outcome = run("report", *arguments)
        assert outcome.status == 1, arguments
        assert message in outcome.err
