# SPDX-License-Identifier: Apache-2.0
"""The plain loop: batches as a function of the seed, resumed runs to the bit from every checkpoint, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_model

from pyprune.errors import InputError, NumericsError
from pyprune.training import MagnitudePruning, MovementPruning, PruningLoss, Ramp
from pyprune.training.loop import Checkpoints, Training, train
from pyprune.training.rows import Rows

SETTINGS = Training(epochs=2, batch_size=4, rate=2e-3, accumulate=2, seed=3)


def rows(count: int = 20) -> Rows:
    generator = torch.Generator().manual_seed(7)
    encoded, labels = [], []
    for row in range(count):
        ids = torch.randint(5, 100, (3 + row % 8,), generator=generator)
        encoded.append({"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)})
        labels.append(int(ids[0] > 50))
    return Rows(encoded, labels, {"input_ids": 1})


def student() -> Any:
    return build_model("bert", layers=1, hidden_dropout_prob=0.1)


def make(kind: str) -> tuple[Any, Any]:
    if kind == "magnitude":
        return MagnitudePruning(Ramp(0.8, 0.0, 0.3)), PruningLoss()
    teacher = build_model("bert", layers=1, seed=5)
    return MovementPruning(Ramp(0.5, 0.0, 0.3)), PruningLoss(teacher, hard=0.5, soft=0.5, hidden=1.0, maps=True)


@pytest.mark.parametrize("kind", ["magnitude", "movement"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_is_uninterrupted_to_the_bit(kind: str, precision: str, tmp_path: Path) -> None:
    from dataclasses import replace

    settings = replace(SETTINGS, precision=precision, freeze_embeddings=kind == "movement")
    steps = settings.steps(20)
    assert steps == 6  # three an epoch, its last of one batch
    state = torch.get_rng_state()
    whole, (pruner, loss) = student(), make(kind)
    kept = Checkpoints(tmp_path / "all", resume=False, settings={"run": 1}, keep=99, every=1)
    done = train(whole, rows(), loss, pruner, settings, checkpoints=kept)
    assert torch.equal(state, torch.get_rng_state())
    assert len(kept.there()) == steps - 1
    assert not whole.training
    pruner.masks.check(whole)
    for path in kept.there()[1::2]:
        folder = tmp_path / path.stem
        folder.mkdir()
        (folder / path.name).write_bytes(path.read_bytes())
        model, (again, other) = student(), make(kind)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()  # all of it comes from the checkpoint
        torch.manual_seed(17)
        resumed = train(
            model,
            rows(),
            other,
            again,
            settings,
            checkpoints=Checkpoints(folder, resume=True, settings={"run": 1}, every=99),
        )
        assert (resumed.resumed, resumed.losses) == (int(path.stem[5:]), done.losses)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (path.stem, name)
        assert all(torch.equal(mask, again.masks[name]) for name, mask in pruner.masks.items())
    frozen = torch.equal(whole.bert.embeddings.word_embeddings.weight, student().bert.embeddings.word_embeddings.weight)
    assert frozen == (kind == "movement")
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_every_row_comes_once_an_epoch() -> None:
    data = rows()
    order = data.order(seed=1, epoch=0, size=4)
    assert sorted(torch.cat(order).tolist()) == list(range(20))
    assert [batch.tolist() for batch in order] == [batch.tolist() for batch in data.order(seed=1, epoch=0, size=4)]
    assert torch.cat(order).tolist() != torch.cat(data.order(seed=1, epoch=1, size=4)).tolist()
    batch = data.batch(torch.tensor([0, 5]))
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] * 8]
    assert batch["input_ids"][0, 3:].tolist() == [1] * 5


def test_it_learns() -> None:
    model = student()
    settings = Training(epochs=30, batch_size=10, rate=3e-3)
    done = train(model, rows(), PruningLoss(), MagnitudePruning(Ramp(0.5)), settings)
    assert done.losses[-1] < 0.5 * done.losses[0]


def test_rates_rise_and_fall() -> None:
    settings = Training(warm_up=0.2)
    shares = [settings.share(step, 10) for step in range(10)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert Training(warm_up=0.0).share(0, 1) == 1.0


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown precision"):
        Training(precision="int8")
    with pytest.raises(InputError, match="rate above 0"):
        Training(rate=0.0)
    with pytest.raises(InputError, match="no rows"):
        Rows([])
    with pytest.raises(InputError, match="one label"):
        Rows([{"input_ids": [1]}], [0, 1])
    (tmp_path / "other").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="holds no checkpoints"):
        Checkpoints(tmp_path, resume=True, settings={})
    folder = tmp_path / "run"
    pruner, loss = make("magnitude")
    train(
        student(),
        rows(),
        loss,
        pruner,
        SETTINGS,
        checkpoints=Checkpoints(folder, resume=False, settings={"a": 1}, every=2),
    )
    with pytest.raises(InputError, match="holds checkpoints"):
        Checkpoints(folder, resume=False, settings={"a": 1})
    again = Checkpoints(folder, resume=True, settings={"a": 2})
    with pytest.raises(InputError, match="other settings"):
        again.load()
    model = student()
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    with pytest.raises(NumericsError, match="step 0 is not finite"):
        train(model, rows(), PruningLoss(), MagnitudePruning(Ramp(0.5)), SETTINGS)
    assert not model.training
