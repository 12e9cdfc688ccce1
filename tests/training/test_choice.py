# SPDX-License-Identifier: Apache-2.0
"""Which of the last weights are kept: the best, with their masks; from any checkpoint the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_model
from torch import nn

from pyprune.errors import InputError
from pyprune.training import Choice, Cubic, MagnitudePruning, MovementPruning, PruningLoss, Ramp, UnitPruning
from pyprune.training.loop import Checkpoints, Training, train
from pyprune.training.rows import Rows

SETTINGS = Training(epochs=4, batch_size=4, rate=5e-3, seed=3)
STEPS = 12


def rows() -> Rows:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, 100, (12, 6), generator=generator).tolist()
    return Rows([{"input_ids": row, "attention_mask": [1] * 6} for row in ids], [row[0] % 2 for row in ids])


def distance(model: nn.Module, wanted: dict[str, torch.Tensor]) -> float:
    """Minus the largest difference: highest for the weights that are wanted."""
    return -max(float((value - wanted[name]).abs().max()) for name, value in model.state_dict().items())


def pruner_of(kind: str) -> Any:
    if kind == "units":
        return UnitPruning(Cubic(0.6, 1, 5), decay=0.5)
    return {"magnitude": MagnitudePruning, "movement": MovementPruning}[kind](Ramp(0.6, 0.0, 0.5))


@pytest.mark.parametrize("kind", ["magnitude", "movement", "units"])
@pytest.mark.parametrize("best", [8, 12])
def test_the_best_is_kept_with_its_masks(kind: str, best: int, tmp_path: Path) -> None:
    def run(choice: Choice | None, **options: Any) -> tuple[Any, Any, Any]:
        model, pruner = build_model("bert", layers=1, hidden_dropout_prob=0.1), pruner_of(kind)
        done = train(model, rows(), PruningLoss(), pruner, SETTINGS, choice=choice, **options)
        return model, pruner, done

    # What the weights are after so many steps is in checkpoints of a run without a choice.
    kept = Checkpoints(tmp_path / "all", resume=False, settings={}, every=1, keep=99)
    last, _, done = run(None, checkpoints=kept)
    stored = {name: value.clone() for name, value in last.state_dict().items()}
    if best < STEPS:
        from pyprune.training.checkpoint import load_state

        stored = load_state(tmp_path / "all" / f"step-{best:08d}.safetensors", {})[0].under("model")
    choice = Choice(lambda model: distance(model, stored), every=2)
    model, pruner, again = run(choice)
    assert again.losses == done.losses  # judging moves nothing
    assert [step for step, _ in choice.scores] == [6, 8, 10, 12]
    assert choice.step == best
    assert dict(choice.scores)[best] == 0.0
    assert distance(model, stored) == 0.0
    pruner.check()
    for name, mask in pruner.linears().items():
        assert not bool(model.get_submodule(name).weight[~mask].any())

    for at in (5, 7, 9, 11):
        folder = tmp_path / f"at{at}"
        whole = Checkpoints(folder, resume=False, settings={}, every=1, keep=99)
        if at == 5:
            run(Choice(lambda model: distance(model, stored), every=2), checkpoints=whole)
            files = {int(path.stem[5:]): path.read_bytes() for path in whole.there()}
        for path in whole.there():
            path.unlink()
        (folder / f"step-{at:08d}.safetensors").write_bytes(files[at])
        resumed = Choice(lambda model: distance(model, stored), every=2)
        other, _, _ = run(resumed, checkpoints=Checkpoints(folder, resume=True, settings={}, every=99))
        assert (resumed.scores, resumed.step) == (choice.scores, best)
        assert distance(other, stored) == 0.0


def test_of_equal_ones_the_later() -> None:
    choice = Choice(lambda model: 1.0, every=3)
    train(build_model("bert", layers=1), rows(), PruningLoss(), pruner_of("magnitude"), SETTINGS, choice=choice)
    assert choice.step == STEPS
    assert [step for step, _ in choice.scores] == [6, 9, 12]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(InputError, match="at least a step"):
        Choice(float, every=0)  # type: ignore[arg-type]
    choice = Choice(lambda model: float("nan"), every=3)
    with pytest.raises(InputError, match="a score is a number"):
        train(build_model("bert", layers=1), rows(), PruningLoss(), pruner_of("magnitude"), SETTINGS, choice=choice)
