# SPDX-License-Identifier: Apache-2.0
"""Levels, candidates and their choice; a run that was stopped goes on with the same bits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import build_model

from pyprune.errors import InputError
from pyprune.methods.randomized import GivenMasks, Level, prune_randomized
from pyprune.patterns import kept_count
from pyprune.training import MagnitudePruning, PruningLoss, loop
from pyprune.training.loop import Training, train
from pyprune.training.masks import parameters_of, prunable
from pyprune.training.random_masks import MaskDraw, draw_masks
from pyprune.training.rows import Rows
from pyprune.training.schedules import Levels

SHORT = Training(epochs=1, batch_size=6, rate=1e-3, decay=0.0)
LONG = replace(SHORT, epochs=2)


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, 100, (12, 5), generator=generator).tolist()
    return Rows([{"input_ids": row, "attention_mask": [1] * 5} for row in ids], [int(row[0] > 50) for row in ids])


@pytest.fixture(scope="module")
def model():
    return build_model("bert", layers=1, seed=3)


class Score:
    """A made-up one, a pure function of the weights; counts its calls and stops the run after so many."""

    def __init__(self, most: int = 99) -> None:
        self.calls, self.most = 0, most

    def __call__(self, model: torch.nn.Module) -> float:
        assert not model.training
        if self.calls == self.most:
            raise KeyboardInterrupt
        self.calls += 1
        return float(sum(p.detach().abs().sum() for p in parameters_of(model, prunable(model)).values()))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def run(model, rows, score, folder=None, **options):
    settings = {"levels": (0.5, 0.75), "candidates": (3, 2), "short": SHORT, "long": LONG, "seed": 1, **options}
    return prune_randomized(model, rows, score, teacher=None, folder=folder, **settings)


def test_levels_are_nested_and_exact_and_the_best_is_trained(model, rows):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score = Score()
    done = run(model, rows, score)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert score.calls == 3 + 1 + 2 + 1
    for level, count in zip(done.levels, (3, 2), strict=True):
        assert len(level.scores) == count
        assert level.scores[level.best] == max(level.scores)
        assert len(set(level.scores)) == count
    for name, parameter in parameters_of(done.model, done.masks).items():
        assert int(done.masks[name].sum()) == kept_count(parameter.numel(), 0.75)
        assert not bool(parameter[~done.masks[name]].any())
    # The first level's masks are candidates that anyone can draw again.
    first = run(model, rows, Score(), levels=(0.5,), candidates=(3,))
    weights = parameters_of(model, prunable(model))
    ratio = (5e-5, 1e-4, 8e-5)[first.levels[0].best]
    again = draw_masks(weights, 0.5, MaskDraw(ratio=ratio), seed=1, candidate=first.levels[0].best)
    assert all(torch.equal(mask, again[name]) for name, mask in first.masks.items())
    assert not any(bool((mask & ~first.masks[name]).any()) for name, mask in done.masks.items())


@pytest.mark.parametrize("most", [2, 5])
def test_a_stopped_run_goes_on_with_the_same_bits(model, rows, tmp_path, most):
    whole = run(model, rows, Score())
    with pytest.raises(KeyboardInterrupt):
        run(model, rows, Score(most), tmp_path)
    score = Score()
    done = run(model, rows, score, tmp_path)
    assert score.calls == 7 - most
    assert done.levels == whole.levels
    assert same(done.model, whole.model)
    finished = Score()
    assert same(run(model, rows, finished, tmp_path).model, whole.model)
    assert finished.calls == 0
    with pytest.raises(InputError, match="other settings") as error:
        run(model, rows, Score(), tmp_path, seed=2)
    assert "seed" in str(error.value)
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["levels"] == [0.5, 0.75]


def test_one_candidate_by_size_is_the_deterministic_method(model, rows):
    done = run(model, rows, Score(), levels=(0.5,), candidates=1, draw=MaskDraw("magnitude"))
    wanted, pruner = build_model("bert", layers=1, seed=3), MagnitudePruning(Levels((0.5,), (0,)))
    train(wanted, rows, PruningLoss(None, hard=1.0, soft=0.0), pruner, LONG)
    assert same(done.model, wanted)
    assert done.levels[0] == Level(0.5, [], 0, done.levels[0].score)


def test_screened_candidates_are_those_that_lose_least(model, rows):
    batches = [{name: value for name, value in rows.batch(torch.arange(6)).items() if name != "labels"}]
    plain = run(model, rows, Score(), levels=(0.5,), candidates=1, draw=MaskDraw(draws=1), ratios=(1.0,))
    screened = run(
        model, rows, Score(), levels=(0.5,), candidates=1, draw=MaskDraw(draws=1), ratios=(1.0,), screen=batches, pool=6
    )
    from pyprune.training.screening import input_grams, reconstruction_error

    weights = {name: p.detach() for name, p in parameters_of(model, prunable(model)).items()}
    grams = input_grams(model, weights, batches)
    pool = [draw_masks(weights, 0.5, MaskDraw(draws=1), seed=1, candidate=number) for number in range(6)]
    errors = [reconstruction_error(weights, masks, grams) for masks in pool]
    assert reconstruction_error(weights, screened.masks, grams) == min(errors)
    assert reconstruction_error(weights, plain.masks, grams) == errors[0] > min(errors)


def test_given_masks_are_held(model, rows):
    masks = draw_masks(parameters_of(model, prunable(model)), 0.9, seed=2)
    work, pruner = build_model("bert", layers=1, seed=3), GivenMasks(masks)
    train(work, rows, PruningLoss(None, hard=1.0, soft=0.0), pruner, SHORT)
    pruner.check()
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in masks.items())


def test_what_does_not_fit_is_said(model, rows):
    with pytest.raises(InputError, match="levels rise"):
        run(model, rows, Score(), levels=(0.75, 0.5))
    with pytest.raises(InputError, match="candidate"):
        run(model, rows, Score(), candidates=(1,))
    with pytest.raises(InputError, match="finite"):
        run(model, rows, lambda model: float("nan"))


DAMAGED = (
    "",
    "{",
    "[]",
    "null",
    '{"settings": {}}',
    '{"settings": {}, "scores": {"0/0": "x"}, "levels": {}}',
    '{"settings": {}, "scores": {}, "levels": {"0": {"sparsity": 0.5}}}',
    '{"settings": 3, "scores": {}, "levels": {}}',
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_is_said(model, rows, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json is damaged") as error:
        run(model, rows, Score(), tmp_path)
    assert "start anew" in str(error.value)


def test_a_damaged_model_of_a_level_is_said(model, rows, tmp_path):
    settings = {"levels": (0.5,), "candidates": 1}
    seen = []
    done = run(model, rows, Score(), tmp_path, watch=lambda done: seen.append(len(done.levels)), **settings)
    run(model, rows, Score(), tmp_path, watch=lambda done: seen.append(done.levels[-1].sparsity), **settings)
    assert seen == [1, 0.5]
    assert len(done.levels) == 1
    path = tmp_path / "level-0.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="missing or damaged"):
        run(model, rows, Score(), tmp_path, **settings)
    path.unlink()
    with pytest.raises(InputError, match="missing or damaged"):
        run(model, rows, Score(), tmp_path, **settings)


def test_a_model_may_be_its_own_teacher(model, rows):
    """A loss freezes its teacher; the copy that is trained is not frozen."""
    both = build_model("bert", layers=1, seed=3)
    for _ in range(2):
        done = prune_randomized(
            both,
            rows,
            Score(),
            teacher=both,
            levels=(0.5,),
            candidates=1,
            long=SHORT,
            loss=lambda teacher: PruningLoss(teacher, hard=0.0, soft=1.0),
        )
        assert not same(done.model, both)
        assert same(both, model)


def test_a_long_training_goes_on_from_its_checkpoint(model, rows, tmp_path, monkeypatch):
    whole = run(model, rows, Score(), tmp_path / "whole")
    assert not list((tmp_path / "whole").glob("*.training"))
    monkeypatch.setattr(loop.Checkpoints, "due", lambda self, step: True)
    step, done = loop._Run.step, []

    def stopped(self, number):
        if self.settings.epochs == LONG.epochs and number == 3:
            raise KeyboardInterrupt
        done.append(number)
        return step(self, number)

    monkeypatch.setattr(loop._Run, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(model, rows, Score(), tmp_path / "run")
    monkeypatch.setattr(loop._Run, "step", lambda self, number: done.append(number) or step(self, number))
    done.clear()
    again = run(model, rows, Score(), tmp_path / "run")
    assert done[0] == 3  # not a candidate's step, and not the long training's first
    assert same(again.model, whole.model)
    assert again.levels == whole.levels
