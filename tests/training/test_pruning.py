# SPDX-License-Identifier: Apache-2.0
"""Pruners in a plain loop: against loops with straight-through gradients, exact counts, resumed runs to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.patterns import kept_count
from pyprune.training import (
    Cubic,
    Levels,
    MagnitudePruning,
    MovementPruning,
    Pruner,
    Ramp,
    straight_through,
    threshold_mask,
    top_mask,
)
from pyprune.training.checkpoint import load_state, save_state

NAMES = ("0.weight", "2.weight")
STEPS = 12
PRUNERS: dict[str, Callable[[], Pruner]] = {
    "magnitude": lambda: MagnitudePruning(Ramp(0.7, 0.1, 0.3), names=NAMES),
    "magnitude_global": lambda: MagnitudePruning(Levels((0.2, 0.6), (2, 6)), names=NAMES, scope="global"),
    "movement": lambda: MovementPruning(Ramp(0.7, 0.0, 0.3), names=NAMES),
    "movement_global": lambda: MovementPruning(Ramp(0.7, 0.0, 0.3, initial=0.1), names=NAMES, scope="global", every=2),
    "soft": lambda: MovementPruning(Cubic(0.47, 2, 9), names=NAMES, soft=5.0, rate=0.1),
    "from_sizes": lambda: MovementPruning(Ramp(0.7, 0.0, 0.3), names=NAMES, start="size", rate=0.3),
    "frozen": lambda: MovementPruning(Ramp(0.5), names=NAMES, frozen=True, rate=0.02),
}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator).to(dtype), torch.randn(8, 3, generator=generator).to(dtype)


def optimizers(model: nn.Module) -> tuple[Any, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)


def run(model: nn.Module, pruner: Pruner, optimizer: Any, scheduler: Any, first: int, last: int) -> None:
    for step in range(first, last):
        x, y = batch(step)
        (model(x) - y).square().mean().backward()
        pruner.before_step(step, optimizer)
        optimizer.step()
        pruner.after_step(step, optimizer)
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", PRUNERS)
def test_resumed_is_uninterrupted_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole, pruner = network(), PRUNERS[kind]()
    assert isinstance(pruner, Pruner)
    optimizer, scheduler = optimizers(whole)
    pruner.begin(whole, STEPS)
    saved = {}
    for step in range(STEPS):
        saved[step] = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
        save_state(tmp_path / f"{step}.safetensors", pruner.state(), pruner.settings(), step)
        run(whole, pruner, optimizer, scheduler, step, step + 1)
    assert pruner.sparsity() > 0.3
    for first in range(0, STEPS, 3):
        model, again = network(), PRUNERS[kind]()
        optimizer, scheduler = optimizers(model)
        for part, stored in zip((model, optimizer, scheduler), saved[first], strict=True):
            part.load_state_dict(stored)
        state, step = load_state(tmp_path / f"{first}.safetensors", again.settings())
        assert step == first
        again.begin(model, STEPS, state)
        run(model, again, optimizer, scheduler, first, STEPS)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (first, name)
        for name, value in pruner.state().tensors.items():
            assert torch.equal(value, again.state().tensors[name]), (first, name)


@pytest.mark.parametrize("soft", [None, 1.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_movement_is_training_with_straight_through_gradients(soft: float | None, accumulate: int) -> None:
    """The other way round: a forward code of its own, scores as parameters, float64, one formula a line."""
    steps, rate = 10, 0.03
    schedule = Cubic(0.48 if soft else 0.6, 0, 8)
    model = network(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    pruner = MovementPruning(schedule, names=NAMES, rate=rate, soft=soft)
    pruner.begin(model, steps)

    twin = network(torch.float64)
    weights = {"0.weight": twin[0].weight, "2.weight": twin[2].weight}
    scores = {name: nn.Parameter(torch.zeros_like(weight)) for name, weight in weights.items()}
    groups = [{"params": list(twin.parameters())}, {"params": list(scores.values()), "lr": rate, "weight_decay": 0.0}]
    both = torch.optim.AdamW(groups, lr=0.02, weight_decay=0.1)
    for step in range(steps):
        value = schedule.value(step)
        masks = {}
        for name, score in scores.items():
            count = kept_count(score.numel(), value)
            masks[name] = threshold_mask(score, value) if soft else top_mask(score, count)
            assert torch.equal(masks[name], pruner.masks[name]), step
        for part in range(accumulate):
            x, y = batch(accumulate * step + part, torch.float64)
            ((model(x) - y).square().mean() / accumulate).backward()
            masked = {name: straight_through(weights[name], scores[name], masks[name]) for name in NAMES}
            hidden = torch.tanh(nn.functional.linear(x, masked["0.weight"], twin[0].bias))
            loss = (nn.functional.linear(hidden, masked["2.weight"], twin[2].bias) - y).square().mean() / accumulate
            loss.backward()
        if soft:
            penalty = torch.stack([score.sigmoid().mean() for score in scores.values()]).mean()
            (soft * value / schedule.final * penalty).backward()
        pruner.before_step(step, optimizer)
        optimizer.step()
        pruner.after_step(step, optimizer)
        optimizer.zero_grad()
        both.step()
        both.zero_grad()
    for name, weight in weights.items():
        assert torch.allclose(pruner.dense[name], weight, rtol=1e-9, atol=1e-12)
        assert torch.allclose(pruner.scores[name], scores[name], rtol=1e-9, atol=1e-12)
    assert 0.2 < pruner.sparsity() < 0.9


def test_scores_from_sizes_begin_with_the_largest_weights_and_leave_them() -> None:
    model, pruner = network(), PRUNERS["from_sizes"]()
    sizes = {name: value.abs() for name, value in copy.deepcopy(model.state_dict()).items()}
    optimizer, scheduler = optimizers(model)
    pruner.begin(model, STEPS)
    for name, score in pruner.scores.items():  # type: ignore[attr-defined]
        assert torch.allclose(score, sizes[name] / sizes[name].square().mean().sqrt())
    run(model, pruner, optimizer, scheduler, 0, STEPS)
    kept = {name: top_mask(sizes[name], kept_count(sizes[name].numel(), 0.7)) for name in NAMES}
    assert any(not torch.equal(mask, pruner.masks[name]) for name, mask in kept.items())  # type: ignore[attr-defined]
    still = MovementPruning(Cubic(0.5, 0, 1), names=NAMES, start="size", rate=1e-9)
    model = network()
    still.begin(model, STEPS)
    run(model, still, *optimizers(model), 0, STEPS)
    for name in NAMES:
        assert torch.equal(still.masks[name], top_mask(sizes[name], kept_count(sizes[name].numel(), 0.5)))
    model[0].weight.data.zero_()
    still.begin(model, STEPS)
    assert not still.scores["0.weight"].any()


@pytest.mark.parametrize("kind", ["magnitude", "movement", "movement_global", "from_sizes"])
def test_counts_are_those_of_the_schedule(kind: str) -> None:
    model, pruner = network(), PRUNERS[kind]()
    optimizer, scheduler = optimizers(model)
    pruner.begin(model, STEPS)
    sizes = (42, 21)
    for step in range(STEPS):
        sparsity = pruner.schedule.value(step)  # type: ignore[attr-defined]
        if kind == "movement_global":
            assert pruner.masks.kept == kept_count(63, sparsity)  # type: ignore[attr-defined]
        else:
            kept = [int(mask.sum()) for mask in pruner.masks.values()]  # type: ignore[attr-defined]
            assert kept == [kept_count(size, sparsity) for size in sizes]
        pruner.masks.check(model)  # type: ignore[attr-defined]
        run(model, pruner, optimizer, scheduler, step, step + 1)
    pruner.end()
    assert int((model[0].weight != 0).sum() + (model[2].weight != 0).sum()) == kept_count(63, 0.7)


def test_frozen_weights_keep_their_values() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    pruner = PRUNERS["frozen"]()
    optimizer, scheduler = optimizers(model)
    pruner.begin(model, STEPS)
    run(model, pruner, optimizer, scheduler, 0, STEPS)
    for index in (0, 2):
        kept = pruner.masks[f"{index}.weight"]  # type: ignore[attr-defined]
        assert torch.equal(model[index].weight[kept], before[f"{index}.weight"][kept])
        assert not torch.equal(model[index].bias, before[f"{index}.bias"])
        # Half of them went, and not the half that was first: the scores were learned.
        assert int((~kept).sum()) == kept.numel() // 2
        assert not torch.equal(
            kept, top_mask(torch.zeros_like(kept, dtype=torch.float32), kept.numel() - kept.numel() // 2)
        )


def test_scale_does_not_reach_the_scores_and_overflow_is_left_out() -> None:
    found = {}
    for scale in (1.0, 2.0**12):
        model, pruner = network(), MovementPruning(Ramp(0.5, 0.0, 0.5), names=NAMES)
        pruner.begin(model, 6)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000, enabled=scale > 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(6):
            x, y = batch(step)
            if step == 3 and scale > 1:
                before = pruner.state()
                scaler.scale((model(x * torch.inf) - y).square().mean()).backward()
                pruner.before_step(step, optimizer, scale=scaler.get_scale())
                scaler.step(optimizer)
                scaler.update()
                pruner.after_step(step - 1, optimizer)  # the step was left out: the schedule is where it was
                optimizer.zero_grad()
                assert pruner.excluded == 1
                assert all(torch.equal(value, before.tensors[key]) for key, value in pruner.state().tensors.items())
            scaler.scale((model(x) - y).square().mean()).backward()
            pruner.before_step(step, optimizer, scale=scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
            pruner.after_step(step, optimizer)
            optimizer.zero_grad()
        found[scale] = (pruner.scores["0.weight"].detach(), model[0].weight.detach())
    for one, other in zip(*found.values(), strict=True):
        assert torch.equal(one, other)  # scales are powers of two


def test_the_scores_rate_follows_the_optimizer_s() -> None:
    model, pruner = network(), MovementPruning(Ramp(0.5), names=NAMES)
    optimizer, scheduler = optimizers(model)
    pruner.begin(model, STEPS)
    run(model, pruner, optimizer, scheduler, 0, 4)
    assert pruner._optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1 - 3 / STEPS))


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(InputError, match="rate above 0"):
        MovementPruning(Ramp(0.5), rate=0.0)
    with pytest.raises(InputError, match="cannot start from 'random'"):
        MovementPruning(Ramp(0.5), start="random")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown scope"):
        MagnitudePruning(Ramp(0.5), scope="layer")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="parts of a run"):
        Ramp(0.5, 0.6, 0.6)
    model[0].weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"0\.weight is not trained"):
        PRUNERS["magnitude"]().begin(model, 3)
    model[0].weight.requires_grad_(True)
    pruner = PRUNERS["magnitude"]()
    pruner.begin(model, 3)
    path = tmp_path / "state.safetensors"
    with pytest.raises(InputError, match="there is no state"):
        load_state(path, pruner.settings())
    save_state(path, pruner.state(), pruner.settings(), 2)
    with pytest.raises(InputError, match="other settings"):
        load_state(path, {**pruner.settings(), "scope": "global"})
    other = MagnitudePruning(Ramp(0.7), names=("0.weight",))
    with pytest.raises(InputError, match="prunes other parameters"):
        other.begin(model, 3, load_state(path, pruner.settings())[0])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="damaged"):
        load_state(path, pruner.settings())
