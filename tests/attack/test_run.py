# SPDX-License-Identifier: Apache-2.0
"""A whole run with an attacker that needs neither TextAttack nor time: resuming, workers, summary, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_attacker import Breaking, Failing, FakeAttacker
from tiny_checkpoint import build_checkpoint, build_data, build_tokenizer

from pyprune import attack, tasks
from pyprune.commands.checkpoints import open_model
from pyprune.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_model(str(build_checkpoint(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tasks.Examples:
    return tasks.load_texts(build_data(tmp_path_factory.mktemp("data"))[1], purpose="evaluation")


def run(model: Any, examples: tasks.Examples, **options: Any) -> attack.AttackResult:
    settings = {"tokenizer": build_tokenizer(), "recipe": "pwws", "together": 4, "attacker": FakeAttacker, **options}
    return attack.run(model, examples, **settings)


def test_summary(model: Any, examples: tasks.Examples, tmp_path: Path) -> None:
    result = run(model, examples, records=tmp_path / "attack.jsonl", name="tiny", seed=3)
    summary = result.to_dict()
    assert json.loads(json.dumps(summary)) == summary
    for key, value in attack.summarise(result.records).items():
        assert summary[key] == value, key
    assert (summary["model"], summary["recipe"], summary["seed"]) == ("tiny", "pwws", 3)
    assert summary["sha256"] == examples.sha256
    assert summary["resources"][0]["kind"] == "stand-in"
    assert attack.read(tmp_path / "attack.jsonl") == list(result.records)
    assert [record["index"] for record in result.records] == list(range(len(examples)))
    assert [record["text"] for record in result.records] == list(examples.texts)
    assert [record["line"] for record in result.records] == list(examples.lines)
    assert f"Aua {100 * summary['aua']:.2f} %" in result.describe()


@pytest.mark.parametrize("left", [0, 1, 5, 8, 29])
def test_a_break_and_resuming_give_the_same_records(
    model: Any, examples: tasks.Examples, tmp_path: Path, left: int
) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    run(model, examples, records=whole)
    Breaking.left = left
    with pytest.raises(KeyboardInterrupt):
        run(model, examples, records=broken, attacker=Breaking)
    assert len(attack.read(broken)) == left
    run(model, examples, records=broken, resume=True)
    assert broken.read_bytes() == whole.read_bytes()
    before = broken.stat().st_size
    again = run(model, examples, records=broken, resume=True, attacker=Failing)  # nothing is left to attack
    assert broken.stat().st_size == before
    assert len(again.records) == len(examples)


def test_other_settings_are_another_run(model: Any, examples: tasks.Examples, tmp_path: Path) -> None:
    path = tmp_path / "attack.jsonl"
    first = run(model, examples, records=path).summary
    for change in ({"seed": 1}, {"together": 8}, {"recipe": "deepwordbug"}, {"max_length": 9}):
        with pytest.raises(InputError, match="another run"):
            run(model, examples, records=path, resume=True, **change)
    weight = next(model.parameters())
    with torch.no_grad():
        weight[0, 0] += 1
    try:
        with pytest.raises(InputError, match="another run"):
            run(model, examples, records=path, resume=True)
        other = run(model, examples).summary
    finally:
        with torch.no_grad():
            weight[0, 0] -= 1
    # another model, but attacked alike: these two can be compared
    assert other["settings"] != first["settings"]
    assert other["attack"] == first["attack"]
    assert run(model, examples, seed=1).summary["attack"] != first["attack"]


def test_progress_counts_what_is_left(model: Any, examples: tasks.Examples, tmp_path: Path) -> None:
    class Steps:
        def __init__(self) -> None:
            self.total = self.done = self.ended = 0

        def start(self, total_steps: int, description: str) -> None:
            self.total = total_steps

        def advance(self, description: str) -> None:
            self.done += 1

        def finish(self) -> None:
            self.ended += 1

    path, steps = tmp_path / "attack.jsonl", Steps()
    Breaking.left = 9
    with pytest.raises(KeyboardInterrupt):
        run(model, examples, records=path, attacker=Breaking, progress=steps)
    assert (steps.total, steps.done, steps.ended) == (30, 9, 1)
    steps = Steps()
    run(model, examples, records=path, resume=True, progress=steps)
    assert (steps.total, steps.done, steps.ended) == (22, 22, 1)  # two groups of four were whole


def test_refusals(model: Any, examples: tasks.Examples) -> None:
    for options, message in (
        ({"recipe": "magic"}, "recipe 'magic' is not known"),
        ({"workers": 0}, "workers has to be at least 1"),
        ({"together": 0}, "together has to be at least 1"),
        ({"max_length": 10_000}, "max_length 10000 is out of range"),
    ):
        with pytest.raises(InputError, match=message):
            run(model, examples, **options)
    bare = tasks.Examples(texts=("a",), pairs=None, labels=None, source="here", sha256="")
    with pytest.raises(InputError, match="has no labels"):
        run(model, bare)
