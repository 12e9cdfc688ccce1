# SPDX-License-Identifier: Apache-2.0
"""``pyprune prune`` with methods that train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import build_checkpoint

from pyprune.result import load_masks

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("teacher") / "tiny", seed=4)


def test_trained_evaluated_and_saved(
    run: Run, model: Path, teacher: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    common = ("prune", model, "--method", "movement", "--train", data[1], "--teacher", teacher, "--sparsity", "0.7")
    common += ("--epochs", "1", "--batch-size", "8", "--evaluate", data[1], "--hidden", "1")
    common += ("--start-scores", "size")
    outcome = run(*common, "--output", tmp_path / "pruned", "--json")
    assert outcome.status == 0, outcome.err
    report = outcome.json
    assert report["method"] == "movement"
    assert report["training"]["steps"] == 4
    assert report["settings"]["training"]["batch_size"] == 8
    assert report["settings"]["loss"]["hidden"] == 1.0
    assert report["evaluation"]["pruned"]["total"] == 30
    stored = json.loads((tmp_path / "pruned" / "pyprune.json").read_text(encoding="utf-8"))
    assert stored["evaluation"] == report["evaluation"]
    assert {layer["name"]: layer["kept"] for layer in report["layers"]} == {
        name: int(mask.sum()) for name, mask in load_masks(tmp_path / "pruned").items()
    }
    assert not list(tmp_path.glob("*.training"))
    judged = run("evaluate", tmp_path / "pruned", "--data", data[1], "--json").json
    assert judged["correct"] == report["evaluation"]["pruned"]["correct"]
    assert report["settings"]["pruner"]["start"] == "size"
    text = run(*common[:-2])
    assert "movement, 4 steps" in text.out
    assert "same answer as the dense model" in text.out


def test_resumed(
    run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyprune.training import loop

    common = ("prune", model, "--method", "imp", "--train", data[1], "--epochs", "1", "--batch-size", "8", "--json")
    whole = run(*common, "--output", tmp_path / "whole").json
    step = loop._Run.step

    def stopped(self: Any, number: int) -> float:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(loop._Run, "step", stopped)
    options = (*common, "--output", tmp_path / "pruned", "--checkpoint-every", "2")
    outcome = run(*options)
    assert outcome.status != 0
    assert "2 steps are saved" in outcome.err
    monkeypatch.undo()
    assert run(*options).status == 1
    resumed = run(*options, "--resume").json
    assert resumed["training"]["resumed"] == 2
    assert resumed["training"]["losses"] == whole["training"]["losses"]
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "pruned"))
    assert first == second


def test_randomized(
    run: Run, teacher: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyprune.training import loop

    common = ("prune", teacher, "--method", "randomized", "--train", data[1], "--teacher", teacher, "--epochs", "1")
    common += ("--sparsity", "0.8", "--levels", "0.5,0.8", "--candidates", "2", "--short-epochs", "0.5", "--pool", "2")
    common += ("--batch-size", "8", "--held-out", "0.2", "--evaluate", data[1])
    whole = run(*common, "--output", tmp_path / "whole", "--json")
    assert whole.status == 0, whole.err
    report = whole.json
    assert report["method"] == "randomized"
    assert report["held_out"]["rows"] == 6
    assert report["data"]["rows"] == 24
    assert [level["sparsity"] for level in report["training"]["levels"]] == [0.5, 0.8]
    assert all(len(level["scores"]) == 2 for level in report["training"]["levels"])
    assert report["settings"]["loss"]["attention"] == 1.0
    assert report["sparsity"]["linear_weights"] == pytest.approx(0.8, abs=2e-3)
    assert not list(tmp_path.glob("*.training"))

    step, calls = loop._Run.step, []

    def stopped(self: Any, number: int) -> float:
        calls.append(number)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(loop._Run, "step", stopped)
    options = (*common, "--output", tmp_path / "pruned")
    outcome = run(*options)
    assert outcome.status != 0
    assert "--resume" in outcome.err
    monkeypatch.undo()
    again = run(*options)
    assert again.status == 1
    assert "holds a run that was stopped" in again.out + again.err
    resumed = run(*options, "--resume")
    assert resumed.status == 0, resumed.err
    assert "randomized, 2 levels" in resumed.out
    assert "on the rows held out" in resumed.out
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "pruned"))
    assert first == second


def test_the_best_on_held_out_rows_is_kept(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    common = ("prune", model, "--method", "imp", "--train", data[1], "--epochs", "2", "--batch-size", "8")
    outcome = run(*common, "--held-out", data[1], "--json")
    assert outcome.status == 0, outcome.err
    training = outcome.json["training"]
    assert training["kept"] in [step for step, _ in training["scores"]]
    assert training["scores"][-1][0] == training["steps"]
    assert outcome.json["held_out"]["rows"] == 30
    assert "on the rows held out" in run(*common, "--held-out", "0.25").out


def test_smaller_embeddings(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    import pyprune

    common = ("prune", model, "--method", "grain", "--train", data[1], "--epochs", "1", "--batch-size", "8")
    outcome = run(*common, "--sparsity", "0.6", "--embedding-rank", "5", "--output", tmp_path / "small")
    assert outcome.status == 0, outcome.err
    assert "rank 5: " in outcome.out
    assert pyprune.load(tmp_path / "small").get_input_embeddings().weight.shape[1] == 5
    stored = json.loads((tmp_path / "small" / "pyprune.json").read_text(encoding="utf-8"))
    assert stored["embeddings"]["rank"] == 5


def test_level_by_level(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    from pyprune.result import load_units

    common = ("prune", model, "--method", "first-order", "--contrast", "--train", data[1], "--epochs", "2")
    outcome = run(*common, "--sparsity", "0.5", "--levels", "0.25", "--output", tmp_path / "small", "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.json["settings"]["training"]["rounds"] == 2
    assert outcome.json["settings"]["loss"]["contrast"]["terms"] == ["pretrained", "snapshots"]
    units = load_units(tmp_path / "small")
    assert units is not None
    assert sum(len(layer.neurons) for layer in units.layers) == len(units.layers) * units.neurons // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--method", "movement", "--train", "x", "--embedding-rank", "5"),
            "--embedding-rank goes with --method grain",
        ),
        (("--method", "first-order", "--train", "x", "--warm-up", "0.1"), "--warm-up is not for --method first-order"),
        (
            ("--method", "grain", "--train", "x", "--levels", "0.5"),
            "--levels is for --method randomized or first-order",
        ),
        (("--method", "grain", "--train", "x", "--start-scores", "size"), "--start-scores is for movement, "),
        (("--data", "x", "--start-scores", "size"), "--start-scores is for methods that train"),
        (("--data", "x", "--embedding-rank", "5"), "--embedding-rank is for methods that train"),
        (("--method", "randomized", "--train", "x", "--warm-up", "0.1"), "--warm-up is not for --method randomized"),
        (("--method", "movement", "--train", "x", "--candidates", "3"), "--candidates is for --method randomized"),
        (("--data", "x", "--levels", "0.5"), "--levels is for methods that train"),
        (("--method", "randomized", "--train", "x", "--levels", "0.5,2"), "not a sparsity"),
        (("--method", "movement"), "needs --train FILE"),
        (("--method", "movement", "--train", "x", "--pattern", "2:4"), "--pattern is not for methods that train"),
        (("--method", "movement", "--train", "x", "--dry-run"), "--dry-run is not for methods that train"),
        (("--method", "movement", "--train", "x", "--resume"), "--resume goes with --output"),
        (("--data", "x", "--epochs", "3"), "--epochs is for methods that train"),
        (("--data", "x", "--teacher", "y"), "--teacher is for methods that train"),
    ],
)
def test_usage(run: Run, model: Path, options: tuple[str, ...], message: str) -> None:
    outcome = run("prune", model, *options)
    assert outcome.status == 2
    assert message in " ".join(outcome.err.split())


def test_rows_without_labels(run: Run, model: Path, data: tuple[Path, Path]) -> None:
    outcome = run("prune", model, "--method", "movement", "--train", data[0], "--json")
    assert outcome.status == 1
    assert "has no labels" in outcome.out + outcome.err
