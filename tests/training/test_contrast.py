# SPDX-License-Identifier: Apache-2.0
"""CAP's terms in a training: what banks hold, resumed runs, what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_model

from pyprune.errors import InputError
from pyprune.training import Contrast, MovementPruning, PruningLoss, Ramp, contrastive_loss
from pyprune.training.contrast import represented
from pyprune.training.loop import Checkpoints, Training, train
from pyprune.training.rows import NUMBERS, Rows

SETTINGS = Training(epochs=3, batch_size=4, rate=2e-3, seed=3)


def rows(count: int = 10) -> Rows:
    generator = torch.Generator().manual_seed(7)
    ids = [torch.randint(5, 100, (3 + row % 4,), generator=generator).tolist() for row in range(count)]
    return Rows([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], [row[0] % 2 for row in ids])


def student(family: str = "bert") -> Any:
    return build_model(family, layers=1, hidden_dropout_prob=0.1)


def teacher(family: str = "bert") -> Any:
    return build_model(family, layers=1, seed=5)


def make(folder: Path, **options: Any) -> tuple[PruningLoss, MovementPruning]:
    taught = teacher()
    contrast = Contrast(folder, rows(), teacher=taught, extra=6, **options)
    return PruningLoss(taught, hard=0.5, soft=0.5, contrast=contrast), MovementPruning(Ramp(0.5, 0.0, 0.3))


def encoded(model: Any) -> torch.Tensor:
    batch = rows().batch(torch.arange(10))
    del batch["labels"]
    with torch.no_grad():
        found = represented(model.eval(), model.base_model(**batch).last_hidden_state)
    return torch.nn.functional.normalize(found, dim=1)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_banks_hold_what_the_models_said(family: str, tmp_path: Path) -> None:
    model, taught = student(family), teacher(family)
    before = encoded(model)
    contrast = Contrast(tmp_path, rows(), teacher=taught, keep=2)
    model.train()
    contrast.epoch(model, 0, first=True)
    assert model.training
    assert contrast._banks["snapshots"].depth == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = encoded(model)
    contrast.epoch(model, 1, first=True)
    contrast.epoch(model, 1, first=False)  # nothing to do
    wanted = {"pretrained": before, "finetuned": encoded(taught), "snapshots": after}
    for term, expected in wanted.items():
        assert torch.allclose(contrast._banks[term].of(torch.arange(10))[:, 0], expected, atol=1e-5), term
        assert contrast._banks[term].depth == 1


def test_the_term_is_the_sum_over_banks(tmp_path: Path) -> None:
    model, data = student().eval(), rows()
    contrast = Contrast(tmp_path, data, teacher=teacher(), extra=99)
    contrast.epoch(model, 0, first=True)
    numbers = torch.tensor([4, 1, 7])
    batch = data.batch(numbers)
    labels = batch.pop("labels")
    outputs = model(**batch, output_hidden_states=True)
    contrast.draw(0)
    found = contrast(model, outputs, numbers, labels)
    assert data.labels is not None
    wanted = 0.0
    for term in ("pretrained", "finetuned"):
        bank, others = contrast._banks[term], torch.arange(10)
        wanted += contrastive_loss(
            represented(model, outputs.hidden_states[-1]), numbers, bank.of(numbers), bank.of(others), others,
            labels=labels, far_labels=data.labels[others], temperature=0.1, unsupervised=0.1, supervised=10.0,
            normalisation="published",
        ).item()  # fmt: skip
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    found.backward()
    assert model.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    """From every checkpoint; the banks hold a later snapshot by then, and once none."""
    whole, (loss, pruner) = student(), make(tmp_path / "banks")
    kept = Checkpoints(tmp_path / "all", resume=False, settings={}, keep=99, every=1)
    done = train(whole, rows(), loss, pruner, SETTINGS, checkpoints=kept)
    assert len(kept.there()) == 8  # three steps an epoch
    for path in reversed(kept.there()[1::3]):
        folder = tmp_path / path.stem
        folder.mkdir()
        (folder / path.name).write_bytes(path.read_bytes())
        model, (other, again) = student(), make(tmp_path / "banks")
        resume = Checkpoints(folder, resume=True, settings={}, every=99)
        assert train(model, rows(), other, again, SETTINGS, checkpoints=resume).losses == done.losses
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())
    resume = Checkpoints(tmp_path / "step-00000005", resume=True, settings={}, every=99)
    other, again = make(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="does not hold what the checkpoint was trained with"):
        train(student(), rows(), other, again, SETTINGS, checkpoints=resume)
    # A new run in the same folder takes nothing over.
    model, (loss, pruner) = student(), make(tmp_path / "banks")
    assert train(model, rows(), loss, pruner, SETTINGS).losses == done.losses


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    unlabelled = Rows([{"input_ids": [5]}])
    for options, message in (
        ({"terms": ("other",)}, "unknown terms"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"teacher": None}, "needs a teacher"),
    ):
        with pytest.raises(InputError, match=message):
            Contrast(tmp_path, rows(), **{"teacher": teacher(), **options})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs labels"):
        Contrast(tmp_path, unlabelled, teacher=teacher())
    model, (loss, _) = student(), make(tmp_path)
    loss.attach(model)
    loss.epoch(model, 0)
    batch = rows().batch(torch.arange(2))
    with pytest.raises(InputError, match="numbers of a batch's rows"):
        loss.of(model.train(), batch)
    loss.of(model, batch | {NUMBERS: torch.arange(2)}).backward()
    loss.of(model.eval(), batch)  # evaluation does without
