# SPDX-License-Identifier: Apache-2.0
"""``train_prune(method="randomized")`` and what trainings share: held-out rows, scores, attentions, reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_model

import pyprune
from pyprune.errors import InputError
from pyprune.methods import train_prune
from pyprune.methods.randomized_entry import levels_below
from pyprune.methods.train_parts import accuracy, eager_attention, held_out_rows
from pyprune.patterns import kept_count
from pyprune.training.rows import Rows

TRAINING = {"epochs": 1, "batch_size": 4, "rate": 1e-3}
OPTIONS: dict[str, Any] = {"candidates": 2, "levels": (0.4, 0.7), "short_epochs": 0.5}


def rows(count: int = 20) -> Rows:
    generator = torch.Generator().manual_seed(7)
    ids = [torch.randint(5, 100, (4 + row % 5,), generator=generator).tolist() for row in range(count)]
    return Rows(
        [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids],
        [row[0] % 2 for row in ids],
        {"input_ids": 1},
    )


def run(**options: Any) -> pyprune.PruneResult:
    settings = {"method": "randomized", "sparsity": 0.7, "training": TRAINING, "options": OPTIONS, **options}
    model = settings.pop("model", None)
    return train_prune(build_model("bert", layers=1) if model is None else model, rows(), **settings)


@pytest.mark.parametrize("pool", [1, 2])
def test_a_result_with_its_report(pool: int, tmp_path: Path) -> None:
    model, teacher = build_model("bert", layers=1), build_model("bert", layers=1, seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [each.config._attn_implementation for each in (model, teacher)]
    result = run(model=model, teacher=teacher, options=OPTIONS | {"pool": pool})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [each.config._attn_implementation for each in (model, teacher)] == kinds
    report = json.loads(json.dumps(result.report))
    assert report["held_out"]["rows"] == 2
    assert report["data"]["rows"] == 18
    assert [level["sparsity"] for level in report["training"]["levels"]] == [0.4, 0.7]
    assert report["settings"]["loss"]["attention"] == 1.0
    assert report["settings"]["short"]["rate"] == pytest.approx(4e-3)
    for name, mask in result.masks.items():
        assert int(mask.sum()) == kept_count(mask.numel(), 0.7)
        assert not bool(result.model.get_submodule(name).weight[~mask].any())
    again = pyprune.load(result.save(tmp_path / "pruned", storage="sparse"), dense=True)
    batch = rows().batch(torch.arange(3))
    del batch["labels"]
    with torch.inference_mode():
        assert torch.equal(again(**batch).logits, result.model(**batch).logits)


def test_in_place_in_its_own_type_without_a_teacher() -> None:
    model = build_model("bert", layers=1).to(torch.bfloat16)
    result = run(model=model, inplace=True, options=OPTIONS | {"draw": "magnitude", "candidates": 1})
    assert result.model is model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert result.report["settings"]["loss"]["hard"] == 1.0
    assert result.report["training"]["levels"][0]["scores"] == []


def test_a_run_goes_on(tmp_path: Path) -> None:
    whole = run()
    run(checkpoints=tmp_path / "run")
    with pytest.raises(InputError, match="was stopped"):
        run(checkpoints=tmp_path / "run")
    again = run(checkpoints=tmp_path / "run", resume=True)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in whole.model.state_dict().items())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds no run"):
        run(checkpoints=tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": {"speed": 1}}, "an option that randomized does not know"),
        ({"options": {"levels": (0.4, 0.6)}}, "the last level is the sparsity"),
        ({"options": {"levels": ()}}, "the last level is the sparsity"),
        ({"options": {"pool": 0}}, "a pool has at least one"),
        ({"contrast": True}, "know no contrast"),
        ({"checkpoint_every": 3}, "know no contrast"),
        ({"held_out": 1.5}, "above 0 and below 1"),
        ({"training": {"speed": 1}}, "a setting that a training does not know"),
        ({"soft": 1.0}, "need a teacher"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**options)


def test_levels_are_the_published_ones_below() -> None:
    assert levels_below(0.9375) == (0.54, 0.83, 0.92, 0.9375)
    assert levels_below(0.54) == (0.54,)


def test_held_out_rows_are_not_trained_on() -> None:
    model, whole = build_model("bert"), rows()
    left, held, told = held_out_rows(0.25, whole, model, None, None, 3)
    assert held is not None
    assert told == {"part": 0.25, "rows": 5, "sha256": held.sha256}
    texts = [
        [tuple(part.batch(torch.tensor([row]))["input_ids"][0].tolist()) for row in range(len(part))]
        for part in (left, held, whole)
    ]
    assert sorted(texts[0] + texts[1]) == sorted(texts[2])
    assert not set(texts[0]) & set(texts[1])
    again = held_out_rows(0.25, rows(), model, None, None, 3)[1]
    other = held_out_rows(0.25, rows(), model, None, None, 4)[1]
    assert again is not None
    assert other is not None
    assert again.sha256 == held.sha256 != other.sha256
    assert held_out_rows(held, whole, model, None, None, 3)[0] is whole
    assert held_out_rows(None, whole, model, None, None, 3)[1:] == (None, None)
    with pytest.raises(InputError, match="need labels"):
        held_out_rows(Rows([{"input_ids": [5]}]), whole, model, None, None, 3)


def test_scores() -> None:
    model, data = build_model("bert").eval(), rows(70)  # more than one batch
    right, gaps = 0, 0.0
    one = build_model("bert", num_labels=1).eval()
    assert data.labels is not None
    for row in range(70):
        batch = data.batch(torch.tensor([row]))
        label = int(batch.pop("labels"))
        with torch.no_grad():
            right += int(model(**batch).logits.argmax()) == label
            gaps += (float(one(**batch).logits) - label) ** 2
    assert accuracy(data)(model) == right / 70
    assert accuracy(data)(one) == pytest.approx(-gaps / 70, rel=1e-4)


def test_attention_that_gives_its_probabilities() -> None:
    model = build_model("bert", attention="sdpa")
    batch = rows().batch(torch.arange(2))
    with eager_attention([model], wanted=True):
        assert model(**batch, output_attentions=True).attentions[0].shape[:2] == (2, 4)
    assert model.config._attn_implementation == "sdpa"
    with eager_attention([model], wanted=False):
        assert model.config._attn_implementation == "sdpa"


def test_movement_learns_attentions_of_any_model() -> None:
    """Whichever attention a model was loaded with."""
    model, teacher = (build_model("bert", layers=1, seed=seed, attention="sdpa") for seed in (0, 3))
    result = train_prune(model, rows(), method="imp", teacher=teacher, attention=1.0, training=TRAINING, held_out=0.2)
    assert result.report["settings"]["loss"]["attention"] == 1.0
    assert result.report["training"]["kept"] in dict(result.report["training"]["scores"])
    grain = train_prune(model, rows(), method="grain", teacher=teacher, attention=1.0, training=TRAINING)
    assert grain.report["settings"]["pruner"]["shrink"] is False
    with pytest.raises(InputError, match="made smaller"):
        train_prune(model, rows(), method="grain", teacher=teacher, attention=1.0, options={"shrink": True})
