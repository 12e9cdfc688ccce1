# SPDX-License-Identifier: Apache-2.0
"""Within ``transformers.Trainer``: counts, resumed runs to the bit, gradient accumulation, teachers, learned maps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import build_model
from torch import nn

from pyprune.errors import InputError
from pyprune.patterns import kept_count
from pyprune.training import (
    PUBLISHED,
    Contrast,
    MagnitudePruning,
    MovementPruning,
    Parts,
    PruningCallback,
    PruningLoss,
    Ramp,
    hidden_loss,
)
from pyprune.training.callback import FILE
from pyprune.training.contrast import represented
from pyprune.training.rows import NUMBERS, Rows

pytest.importorskip("accelerate")

ROWS, STEPS = 24, 6


def examples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for row in range(ROWS):
        ids = torch.randint(5, 100, (10,), generator=generator)
        mask = (torch.arange(10) < 4 + row % 7).long()
        found.append({"input_ids": ids * mask + (1 - mask), "attention_mask": mask, "labels": row % 2})
    return found


def student(seed: int = 0, **config: Any) -> Any:
    return build_model("bert", seed=seed, hidden_dropout_prob=0.1, **config)


def make(folder: Path, model: Any, callback: PruningCallback, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 5,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(**settings | options)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=examples(),
        eval_dataset=examples()[:8],
        compute_loss_func=callback.loss,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def callback_for(kind: str) -> PruningCallback:
    teacher = student(seed=9)
    if kind == "magnitude":
        loss = PruningLoss(teacher, hard=0.2, soft=0.8, logits=PUBLISHED["cap"])
        return PruningCallback(MagnitudePruning(Ramp(0.8, 0.2, 0.3)), loss)
    loss = PruningLoss(teacher, hard=0.0, soft=1.0, logits=PUBLISHED["grain"], hidden=1.0, maps=True)
    return PruningCallback(MovementPruning(Ramp(0.6, 0.0, 0.3)), loss)


@pytest.mark.parametrize("kind", ["magnitude", "movement"])
def test_resumed_is_uninterrupted_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole = student()
    callback = callback_for(kind)
    trainer = make(tmp_path, whole, callback)
    trainer.train()
    masks = callback.pruner.masks  # type: ignore[attr-defined]
    for mask in masks.values():
        assert int(mask.sum()) == kept_count(mask.numel(), 0.8 if kind == "magnitude" else 0.6)
    masks.check(whole)
    assert not any("pyprune_maps" in name for name in whole.state_dict())
    logged = [entry for entry in trainer.state.log_history if "sparsity" in entry]
    assert [entry["sparsity"] for entry in logged] == sorted(entry["sparsity"] for entry in logged)
    assert ("loss_hidden" in logged[-1]) == (kind == "movement")

    for step in (2, 4):
        model, again = student(), callback_for(kind)
        resumed = make(tmp_path, model, again)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert {
            name for name, value in whole.state_dict().items() if not torch.equal(value, model.state_dict()[name])
        } == set()
        for name, mask in masks.items():
            assert torch.equal(mask, again.pruner.masks[name])  # type: ignore[attr-defined]

    (tmp_path / "checkpoint-4" / FILE).unlink()
    with pytest.raises(InputError, match="there is no pyprune_training"):
        make(tmp_path, student(), callback_for(kind)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def with_contrast(banks: Path) -> PruningCallback:
    """CAP-m; banks are of the rows that `Trainer` sees, whose numbers are a column."""
    teacher = student(seed=9)
    data = examples()
    rows = Rows(
        [{name: row[name].tolist() for name in ("input_ids", "attention_mask")} for row in data],
        [row["labels"] for row in data],
    )
    contrast = Contrast(banks, rows, teacher=teacher, extra=7, keep=2)
    loss = PruningLoss(teacher, hard=0.2, soft=0.8, contrast=contrast)
    return PruningCallback(MovementPruning(Ramp(0.6, 0.0, 0.3)), loss)


def test_contrast_within_trainer(tmp_path: Path) -> None:
    """Two epochs of three steps: snapshots are of the second one's beginning; resumed in its middle, to the bit."""
    numbered = [row | {NUMBERS: number} for number, row in enumerate(examples())]
    options = {"remove_unused_columns": False}

    def train(model: Any, banks: str, **more: Any) -> PruningCallback:
        callback = with_contrast(tmp_path / banks)
        trainer = make(tmp_path / "run", model, callback, **options)
        trainer.train_dataset = numbered
        trainer.train(**more)
        assert "loss_contrast" in [entry for entry in trainer.state.log_history if "sparsity" in entry][-1]
        return callback

    whole, resumed, without = student(), student(), student()
    callback = train(whole, "banks")
    assert callback.loss is not None
    assert callback.loss.contrast is not None
    depths = {term: bank.depth for term, bank in callback.loss.contrast._banks.items()}
    assert depths == {"pretrained": 1, "snapshots": 1, "finetuned": 1}
    # The anchor's numbers are those of its rows: a bank's own row is the nearest to what it was made of.
    before = student().eval()
    batch = {name: torch.stack([row[name] for row in examples()]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = represented(before, before.base_model(**batch).last_hidden_state)
    bank = callback.loss.contrast._banks["pretrained"]
    assert torch.allclose(bank.of(torch.arange(ROWS))[:, 0], nn.functional.normalize(wanted, dim=1), atol=1e-5)

    train(resumed, "banks", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    make(tmp_path / "plain", without, callback_for("movement"), save_strategy="no").train()
    assert not torch.equal(whole.classifier.weight, without.classifier.weight)
    with pytest.raises(InputError, match="numbers of a batch's rows"):
        make(tmp_path / "none", student(), with_contrast(tmp_path / "others"), **options).train()


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """Also where rows are unlike: the loss is a mean over the rows of the step."""
    found = []
    for rows, accumulate in ((8, 1), (2, 4)):
        model = build_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        loss = PruningLoss(student(seed=9), hard=0.5, soft=0.5)
        callback = PruningCallback(MovementPruning(Ramp(0.5, 0.0, 0.5)), loss)
        options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulate}
        make(tmp_path / str(rows), model, callback, max_steps=3, save_strategy="no", optim="sgd", **options).train()
        found.append(model)
    for (name, one), other in zip(found[0].named_parameters(), found[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name


def test_the_best_checkpoint_keeps_its_masks(tmp_path: Path) -> None:
    model = student()
    callback = PruningCallback(MagnitudePruning(Ramp(0.8, 0.0, 0.0)), PruningLoss())
    scores = iter((0.1, 0.9, 0.2))
    trainer = make(
        tmp_path,
        model,
        callback,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="chosen",
    )
    trainer.compute_metrics = lambda _: {"chosen": next(scores)}
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    masks = callback.pruner.masks  # type: ignore[attr-defined]
    masks.check(model)
    expected = Ramp(0.8, 0.0, 0.0)(STEPS).value(4)
    assert all(int(mask.sum()) == kept_count(mask.numel(), expected) for mask in masks.values())


def test_bf16(tmp_path: Path) -> None:
    model = student()
    callback = callback_for("movement")
    make(tmp_path, model, callback, bf16=True, save_strategy="no").train()
    callback.pruner.masks.check(model)  # type: ignore[attr-defined]
    assert callback.pruner.excluded == 0  # type: ignore[attr-defined]
    assert next(iter(callback.pruner.scores.values())).dtype == torch.float32  # type: ignore[attr-defined]


# The loss by itself


def attached(loss: PruningLoss, model: nn.Module) -> PruningLoss:
    loss.attach(model)
    return loss


def test_the_loss_is_its_parts(batches_of: Any) -> None:
    model, teacher = student().eval(), student(seed=9)
    batch = batches_of(1)[0] | {"labels": torch.tensor([0, 1, 1, 0, 1, 0])}
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    loss = attached(PruningLoss(teacher, hard=0.3, soft=0.7, hidden=2.0, logits=PUBLISHED["cap"]), model)
    got = loss.of(model, batch)
    with torch.no_grad():
        ours, theirs = (m(**inputs, output_hidden_states=True) for m in (model, teacher))
        wanted = 0.3 * nn.functional.cross_entropy(ours.logits, batch["labels"])
        wanted += 0.7 * PUBLISHED["cap"](ours.logits, theirs.logits)
        pairs = [(ours.hidden_states[i], theirs.hidden_states[i]) for i in (0, 2)]
        wanted += 2.0 * hidden_loss(*zip(*pairs, strict=True), keep=batch["attention_mask"])  # type: ignore[arg-type]
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert not teacher.training
    assert all(not parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(("head", "outputs"), [("qa", 2), ("classification", 1)])
def test_heads(head: str, outputs: int, batches_of: Any) -> None:
    model, teacher = (build_model("bert", head, seed=seed) for seed in (0, 9))
    batch = batches_of(1)[0]
    seen: list[Parts] = []
    loss = attached(PruningLoss(teacher, hard=0.0, soft=1.0), model)
    loss.watch.append(seen.append)
    model.train()
    loss.of(model, batch).backward()
    assert len(seen) == 1
    assert float(seen[0].representation) == 0.0
    model.eval()
    same = attached(PruningLoss(copy.deepcopy(model), hard=0.0, soft=1.0), model)
    assert same.of(model, batch).item() == pytest.approx(0.0, abs=1e-6)
    assert len(seen) == 1  # evaluation is not watched


def test_one_output_is_compared_by_squares(batches_of: Any) -> None:
    model, teacher = (build_model("bert", seed=seed, num_labels=1) for seed in (0, 9))
    batch = batches_of(1)[0]
    labels = torch.linspace(0, 1, 6)
    loss = attached(PruningLoss(teacher, hard=1.0, soft=1.0), model)
    with torch.no_grad():
        ours, theirs = (m(**batch).logits[:, 0] for m in (model, teacher))
        wanted = (ours - labels).square().mean() + (ours - theirs).square().mean()
        assert loss.of(model, batch | {"labels": labels}).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_attentions_need_eager(batches_of: Any) -> None:
    batch = batches_of(1)[0]
    eager, other = (build_model("bert", attention="eager", seed=seed) for seed in (0, 9))
    loss = attached(PruningLoss(other, hard=0.0, attention=1.0), eager)
    assert loss.of(eager, batch).item() > 0
    if int(transformers.__version__.split(".")[0]) < 5:
        return  # falls back to eager by itself
    fused = build_model("bert", attention="sdpa")
    loss = attached(PruningLoss(other, hard=0.0, attention=1.0), fused)
    with pytest.raises(InputError, match="gives no attentions"):
        loss.of(fused, batch)


def test_what_is_missing_is_said(batches_of: Any) -> None:
    model, batch = student(), batches_of(1)[0]
    with pytest.raises(InputError, match="need a teacher"):
        PruningLoss(soft=1.0)
    with pytest.raises(InputError, match="all zero"):
        PruningLoss(hard=0.0)
    with pytest.raises(InputError, match="does not know its model"):
        PruningLoss()(model(**batch))
    loss = attached(PruningLoss(), model)
    with pytest.raises(InputError, match="needs labels"):
        loss.of(model, batch)
    with pytest.raises(InputError, match="different numbers of layers"):
        PruningLoss(build_model("bert", layers=1), hard=0.0, hidden=1.0).attach(model)
    with pytest.raises(InputError, match="named inputs"):
        model(batch["input_ids"])
    loss.detach()
    model(batch["input_ids"])
