# SPDX-License-Identifier: Apache-2.0
"""The protocol of the AKR scripts, whole, on a tiny model and with an attacker that takes no time."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_attacker import Breaking, FakeAttacker
from tiny_checkpoint import build_checkpoint, build_data
from tiny_models import one_thread

import pyprune.attack
from pyprune import tasks
from pyprune.attack import library

__all__ = ["one_thread"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Protocol = Callable[..., int]


@pytest.fixture
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Protocol:
    """Run it for SST-2 on two tiny checkpoints, with more arguments."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from akr import paper, protocol

    monkeypatch.setattr(library, "missing", list)
    run = pyprune.attack.run
    train, dev = build_data(tmp_path)
    rows = dev.read_text(encoding="utf-8").splitlines()
    select = tmp_path / "select.tsv"
    select.write_text("\n".join([rows[0], *rows[20:], "da de\t0", "fa fe\t1"]) + "\n", encoding="utf-8")
    models = [str(build_checkpoint(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]

    def call(*more: str, attacker: Any = FakeAttacker) -> int:
        monkeypatch.setattr(pyprune.attack, "run", functools.partial(run, attacker=attacker))
        given = ["--models", *models, "--train", str(train), "--test", str(dev), "--select", str(select)]
        given += [
            "--samples",
            "16",
            "--select-rows",
            "8",
            "--max-length",
            "64",
            "--output",
            str(tmp_path / "out"),
            *more,
        ]
        return int(protocol.main(paper.SST2, "x", given))

    return call


def test_every_step_once(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Breaking.left = 45  # in the attack on the average
    with pytest.raises(KeyboardInterrupt):
        protocol("--sparsities", "0.5", attacker=Breaking)
    assert protocol("--sparsities", "0.5", "--methods", "akr", "magnitude") == 0
    out = tmp_path / "out"
    assert not list(out.glob("*.journal"))
    names = ["fine-tuned", "averaged", "akr-50", "magnitude-50"]
    found = {name: json.loads((out / name / "attack.json").read_text(encoding="utf-8")) for name in names}
    assert len({summary["attack"] for summary in found.values()}) == 1, "not attacked alike"
    assert {summary["total"] for summary in found.values()} == {30}
    # the average is chosen under attack, on rows that are not those reported
    soup = json.loads((out / "averaged" / "soup.json").read_text(encoding="utf-8"))
    assert soup["selection"]["by"] == "aua"
    dev = tasks.load_texts(tmp_path / "dev.tsv", purpose="evaluation")
    drawn = tasks.load_texts(tmp_path / "select.tsv", limit=8, seed=0, purpose="evaluation")
    assert 0 < soup["selection"]["rows"] == 8 - len(tasks.shared_rows(drawn, dev)) < 8
    # AKR starts from it
    for name in ("akr-50", "magnitude-50"):
        report = json.loads((out / name / "pyprune.json").read_text(encoding="utf-8"))
        assert report["model"]["sha256"] == found["averaged"]["model_sha256"]
        assert report["method"] == name.removesuffix("-50")
        assert (report["settings"]["samples"], report["sparsity"]["linear_weights"]) == (16, 0.5)
    table = (out / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    aua = {name: summary["aua"] for name, summary in found.items()}
    for name, paper in {"fine-tuned": "12.7", "akr-50": "43.1", "magnitude-50": "–"}.items():
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2] == paper
        assert cells[5].startswith(f"{100 * aua[name]:.1f} (")
    html = (out / "report.html").read_text(encoding="utf-8")
    assert all(f"{100 * value:.2f} %" in html for value in aua.values())
    # again: nothing is left to do
    monkeypatch.setattr(pyprune, "prune", None)
    monkeypatch.setattr(pyprune, "soup", None)
    assert protocol("--sparsities", "0.5", "--methods", "akr", "magnitude", attacker=None) == 0
    assert (out / "table.md").read_text(encoding="utf-8") == table
    # with other settings these folders would say what they are not
    assert protocol("--sparsities", "0.5", "--seed", "1") == 1
    assert "was made with other seed" in capsys.readouterr().err


def test_without_textattack(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "missing", lambda: ["textattack"])
    assert protocol() == 1
    assert library.install_line() in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_numbers_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its success rates follow from its accuracies to the digits it prints."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from akr import paper

    for protocol in (paper.SST2, paper.AG_NEWS, paper.IMDB):
        assert tasks.find_task(protocol.task).name == protocol.task
        for rates in (protocol.fine_tuned, protocol.averaged, *protocol.pruned.values()):
            assert abs(100 * (1 - rates.aua / rates.accuracy) - rates.asr) < 0.2, rates
