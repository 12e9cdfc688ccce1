# SPDX-License-Identifier: Apache-2.0
"""``train_prune`` end to end on tiny models: counts, reports, saving, resuming, what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import Stopping
from tiny_models import build_model

import pyprune
import pyprune.structured
from pyprune.errors import InputError
from pyprune.methods import TRAIN_RECIPES, train_prune
from pyprune.patterns import kept_count
from pyprune.training import PruningLoss
from pyprune.training.rows import Rows

TRAINING = {"epochs": 2, "batch_size": 4, "rate": 1e-3}


def rows(count: int = 16) -> Rows:
    generator = torch.Generator().manual_seed(7)
    ids = [torch.randint(5, 100, (4 + row % 5,), generator=generator).tolist() for row in range(count)]
    return Rows([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], [row[0] % 2 for row in ids])


@pytest.mark.parametrize("method", ["movement", "soft-movement", "smp", "grain", "imp"])
def test_every_is_how_often_masks_or_scores_are_made(method: str) -> None:
    pruner: Any = TRAIN_RECIPES[method].pruner(0.5, PruningLoss(), every=7)
    schedule = pruner._given(100)
    assert (schedule.every if method == "imp" else pruner.every) == 7
    assert method == "imp" or schedule.every == 1


@pytest.mark.parametrize("method", TRAIN_RECIPES)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_methods(method: str, family: str, tmp_path: Path) -> None:
    model, teacher = build_model(family, layers=1), build_model(family, layers=1, seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    result = train_prune(model, rows(), method=method, sparsity=0.6, teacher=teacher, training=TRAINING)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = {layer["name"]: layer["kept"] for layer in result.report["layers"]}
    assert kept == {name: int(mask.sum()) for name, mask in result.masks.items()}
    units = result.units
    assert (units is not None) == TRAIN_RECIPES[method].units
    if units is not None and method == "first-order":
        (layer,) = units.layers
        assert (len(layer.heads), len(layer.neurons)) == (kept_count(4, 0.6), kept_count(48, 0.6))
        assert {len(channels) for channels in (*layer.query, *layer.value)} == {8}
    elif units is not None:
        gone = 1 - (units.parameters() - 6 * 32) / (pyprune.structured.dense_units(model).parameters() - 6 * 32)
        assert gone == pytest.approx(0.6, abs=0.03)
    elif method != "soft-movement":
        assert kept == {name: kept_count(mask.numel(), 0.6) for name, mask in result.masks.items()}
        assert result.report["sparsity"]["linear_weights"] == pytest.approx(0.6, abs=2e-3)
    for name, mask in result.masks.items():
        weight = result.model.get_submodule(name).weight
        assert bool((weight[~mask] == 0).all())
        if method == "smp":
            assert torch.equal(weight[mask], before[f"{name}.weight"][mask])
    saved = result.save(tmp_path / "pruned", storage="sparse")
    again = pyprune.load(saved, dense=True)
    batch = rows().batch(torch.arange(3))
    del batch["labels"]
    with torch.inference_mode():
        assert torch.equal(again(**batch).logits, result.model(**batch).logits)
        if units is not None:
            small = pyprune.load(result.save(tmp_path / "small"))
            assert small.num_parameters() < model.num_parameters()
            assert torch.allclose(small(**batch).logits, result.model(**batch).logits, atol=1e-5)


def test_runs_too_short_for_movement_say_so() -> None:
    model, options = build_model("bert", layers=1), {"training": TRAINING, "sparsity": 0.5}
    (note,) = train_prune(model, rows(), method="movement", **options).report["notes"]
    assert note.startswith("8 steps are few for scores")
    for method, more in (("movement", {"start": "size"}), ("imp", {})):
        assert train_prune(model, rows(), method=method, options=more, **options).report["notes"] == []


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"teacher": build_model("bert", layers=1, seed=3), "training": TRAINING, "sparsity": 0.5}
    whole = train_prune(build_model("bert", layers=1), rows(), **options)
    options |= {"checkpoints": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train_prune(build_model("bert", layers=1), rows(), progress=Stopping(6), **options)
    with pytest.raises(InputError, match="holds checkpoints"):
        train_prune(build_model("bert", layers=1), rows(), **options)
    with pytest.raises(InputError, match="other settings"):
        train_prune(build_model("bert", layers=1), rows(15), resume=True, **options)
    with pytest.raises(InputError, match="other settings"):
        train_prune(build_model("bert", layers=1), rows(), resume=True, **options | {"sparsity": 0.6})
    again = train_prune(build_model("bert", layers=1), rows(), resume=True, **options)
    assert again.report["training"]["resumed"] == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert whole.report["training"]["losses"] == again.report["training"]["losses"]


def test_factored_embeddings_are_trained_saved_counted_and_resumed(tmp_path: Path) -> None:
    def started() -> Any:
        return build_model("bert", layers=1, structured=True)

    model, rank = started(), 6
    options: dict[str, Any] = {"teacher": build_model("bert", layers=1, seed=3), "training": TRAINING, "sparsity": 0.6}
    options |= {"method": "grain", "options": {"embedding_rank": rank}}
    result = train_prune(model, rows(), **options)
    assert type(model.get_input_embeddings()) is torch.nn.Embedding
    assert not hasattr(model.config, "pyprune")
    began: Any = started()
    told = pyprune.structured.factorise(began, rank)
    found: Any = result.model
    for ours, old in zip(
        found.get_input_embeddings().parameters(), began.get_input_embeddings().parameters(), strict=True
    ):
        assert ours.shape == old.shape
        assert float((ours - old).detach().abs().max()) > 1e-4  # both factors were trained
    report = result.report
    assert report["embeddings"] == told
    assert report["settings"]["embedding_rank"] == rank
    everything = sum(parameter.numel() for parameter in model.parameters())
    saved = told["parameters"]["before"] - told["parameters"]["after"]
    pruned = report["counts"]["linear_weights"]["removed"]
    assert report["counts"]["all_parameters"] == {"removed": pruned + saved, "total": everything}
    assert report["counts"]["encoder_and_embeddings"]["removed"] == pruned + saved
    assert report["counts"]["encoder_parameters"]["removed"] == pruned
    batch = rows().batch(torch.arange(3))
    del batch["labels"]
    with torch.inference_mode():
        wanted = found(**batch).logits
        for storage in ("compact", "sparse", "dense"):
            again = pyprune.load(result.save(tmp_path / storage, storage=storage))
            assert torch.allclose(again(**batch).logits, wanted, atol=1e-5)
    assert result.units is not None
    small = pyprune.load(tmp_path / "compact")
    left = result.units.parameters() - pyprune.structured.dense_units(model).parameters()
    assert small.num_parameters() == everything - saved + left
    stopped = {"checkpoints": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train_prune(started(), rows(), progress=Stopping(6), **options, **stopped)
    with pytest.raises(InputError, match="other settings"):
        train_prune(started(), rows(), resume=True, **options | {"options": {}}, **stopped)
    resumed = train_prune(started(), rows(), resume=True, **options, **stopped)
    assert resumed.report["training"]["resumed"] == 4
    assert resumed.units == result.units
    for name, value in found.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_half_precision_models_get_their_type_back() -> None:
    model = build_model("bert", layers=1).to(torch.bfloat16)
    result = train_prune(model, rows(), method="imp", training={**TRAINING, "epochs": 1}, inplace=True)
    assert result.model is model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "akr"}, "unknown method"),
        ({"training": {"speed": 1}}, "a setting that a training does not know"),
        ({"options": {"speed": 1}}, "an option that movement does not know"),
        ({"options": {"embedding_rank": 6}}, "an option that movement does not know"),
        ({"method": "grain", "options": {"embedding_rank": 32}}, "makes the embeddings smaller"),
        ({"resume": True}, "resume needs checkpoints"),
        ({"soft": 0.5}, "need a teacher"),
        ({"sparsity": 1.5}, "fraction of zeros"),
        ({"teacher": 3}, "the teacher does not fit"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], message: str) -> None:
    model = build_model("bert", layers=1)
    if "teacher" in options:
        options = {"teacher": build_model("bert", layers=1, num_labels=options["teacher"])}
    with pytest.raises(InputError, match=message):
        train_prune(model, rows(), **options)
    with pytest.raises(InputError, match="needs labelled text"):
        train_prune(model, ["some text"])  # type: ignore[arg-type]
