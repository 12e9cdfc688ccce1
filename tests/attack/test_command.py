# SPDX-License-Identifier: Apache-2.0
"""The command line: usage, what is missing, the summary on disk and on stdout."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from fake_attacker import FakeAttacker
from tiny_checkpoint import build_checkpoint, build_data

import pyprune.attack
from pyprune.attack import library
from pyprune.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_data(tmp_path_factory.mktemp("data"))[1])


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missing", list)
    monkeypatch.setattr(pyprune.attack, "run", functools.partial(pyprune.attack.run, attacker=FakeAttacker))


def test_without_textattack_it_says_what_to_install(
    model: str, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "missing", lambda: ["textattack", "lru"])
    assert main(["attack", model, "--data", data, "--recipe", "pwws", "--json"]) == 1
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert error["seen"] == "no module textattack, lru"
    assert error["try"] == library.install_line()
    assert library.install_line() in printed.err
    assert main(["attack", "--install-line"]) == 0
    assert capsys.readouterr().out == library.install_line() + "\n"


@pytest.mark.parametrize(
    "arguments", [["--data", "x"], ["m"], ["m", "--data", "x", "--resume"], ["m", "--recipe", "x"]]
)
def test_bad_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["attack", *arguments])
    assert caught.value.code == 2


@pytest.mark.usefixtures("_fake")
def test_two_models_and_an_earlier_run(
    model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[Any] = ["attack", model, "--data", data, "--recipe", "pwws", "--limit", "20", "--json", "--quiet"]
    assert main([*arguments, "--output", str(tmp_path / "both"), "--against", model]) == 0
    document = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "both" / "attack.json").read_text()) == document
    assert (document["total"], document["against"]["total"]) == (20, 20)
    assert document["comparison"]["aua"] == {"difference": 0.0, "interval": [0.0, 0.0]}
    assert len((tmp_path / "both" / "against.jsonl").read_text().splitlines()) == 20

    earlier = str(tmp_path / "both" / "attack.jsonl")
    assert main([*arguments, "--against", earlier]) == 0
    assert json.loads(capsys.readouterr().out)["against"]["aua"] == document["aua"]
    assert main([*arguments, "--seed", "1", "--against", earlier]) == 1
    assert "not attacked alike" in capsys.readouterr().err

    assert main([*arguments, "--output", str(tmp_path / "both")]) == 1
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments[:-2], "--quiet", "--output", str(tmp_path / "both"), "--resume", "--against", model]) == 0
    table = capsys.readouterr().out
    assert f"{100 * document['aua']:.2f} %" in table
    assert "words: stand-in" in table
