# SPDX-License-Identifier: Apache-2.0
"""Gates against finite differences and weight gradients; GRAIN's search step by step; masked equals compacted."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from tiny_models import build_batches, build_model
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import adapter_for
from pyprune.structured import compact
from pyprune.training import Cubic, PruningLoss, UnitPruning
from pyprune.training.gating import SITES, UnitGates
from pyprune.training.loop import Training, train
from pyprune.training.rows import Rows

FAMILIES = ("bert", "roberta", "distilbert")
BATCH = build_batches(1)[0] | {"labels": torch.tensor([0, 1, 1, 0, 1, 0])}
WITHOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def layer_linears(model: Any, layer: int) -> tuple[nn.Linear, ...]:
    """Query, key, value, output, up, down."""
    adapter = adapter_for(model)
    return tuple(adapter.linears(adapter.blocks(model)[layer]).values())


def loss_of(model: Any) -> Tensor:
    loss: Tensor = model(**BATCH).loss
    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_are_the_sums_over_weights_from_either_side(family: str) -> None:
    model = build_model(family)
    gates, others = (UnitGates(model, adapter_for(model), follow=follow) for follow in (False, True))
    plain = loss_of(model)
    gates.open()
    others.open()
    loss = loss_of(model)
    assert torch.equal(loss, plain)  # gates of one change nothing
    found = gates.of(loss)
    assert all(parameter.grad is None for parameter in model.parameters())
    for each in (gates, others):  # of() was a backward pass of the followed one's tensors, too
        each.collected()
    loss.backward()  # the graph is still there
    collected = others.collected()
    for site in SITES:
        assert torch.allclose(found[site], collected[site], rtol=1e-5, atol=1e-8)
        assert float(found[site].abs().max()) > 1e-5
    for each in (gates, others):
        assert all(not bool(value.any()) for value in each.collected().values())
    for parameter in model.parameters():
        parameter.grad = None
    loss = loss_of(model)
    gates.follow()  # of this pass alone
    loss.backward()
    for once in (gates.collected(), others.collected()):
        assert all(torch.equal(once[site], collected[site]) for site in SITES)
    for layer in range(2):
        query, key, value, output, _, down = layer_linears(model, layer)
        sides = {
            "query": [(x.weight.grad * x.weight).sum(1) + x.bias.grad * x.bias for x in (query, key)],
            "value": [
                (output.weight.grad * output.weight).sum(0),
                (value.weight.grad * value.weight).sum(1) + value.bias.grad * value.bias,
            ],
            "neurons": [(down.weight.grad * down.weight).sum(0)],
        }  # fmt: skip
        for site, sums in sides.items():
            for side in sums:
                assert torch.allclose(found[site][layer], side, rtol=1e-3, atol=1e-6), (site, layer)
    gates.close()
    assert torch.equal(loss_of(model), plain)


def test_gates_are_finite_differences() -> None:
    model = build_model("bert").double()
    gates = UnitGates(model, adapter_for(model))
    gates.open()
    found = gates.of(loss_of(model))
    gates.close()
    query, _, _, output, _, down = layer_linears(model, 1)
    step, factors = 1e-5, torch.ones(48, dtype=torch.float64)

    def gated(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0] * factors[: args[0].shape[-1]],)

    for site, linear, unit in (
        ("neurons", down, 7), ("query", query, 3), ("query", query, 30), ("value", output, 0), ("value", output, 17),
    ):  # fmt: skip
        handle = (
            linear.register_forward_hook(lambda _, args, out: out * factors[: out.shape[-1]])
            if site == "query"
            else linear.register_forward_pre_hook(gated)
        )
        values = []
        for sign in (1, -1):
            factors[unit] = 1.0 + sign * step
            values.append(loss_of(model).item())
            factors[unit] = 1.0
        handle.remove()
        slope = (values[0] - values[1]) / (2 * step)
        assert found[site][1, unit].item() == pytest.approx(slope, rel=1e-6, abs=1e-10), site


def test_a_graph_is_gone_after_its_step() -> None:
    """Neither hooks nor gates hold what a forward pass has made."""
    model = build_model("bert")
    for follow in (False, True):
        gates = UnitGates(model, adapter_for(model), follow=follow)
        gates.open()
        loss = loss_of(model)
        (node,) = [weakref.ref(value) for value in gates._seen.values()][:1]
        if not follow:
            gates.follow()
        loss.backward()
        gates.collected()
        del loss
        assert node() is None
        gates.close()


def test_without_hidden_states_separation_takes_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same masks as of the whole loss, which then is that of the predictions."""
    found = []
    monkeypatch.setattr(UnitGates, "of", None)
    for separate in (True, False):
        loss = PruningLoss(build_model("bert", seed=4), hard=0.3, soft=0.7)
        pruner = UnitPruning(Cubic(0.7, 1, 5), loss=loss if separate else None, decay=0.5)
        trained(pruner, loss)
        found.append(pruner)
    assert found[0].units() == found[1].units()
    for site in SITES:
        assert torch.equal(found[0].statistics.average(site), found[1].statistics.average(site))


def trained(pruner: UnitPruning, loss: PruningLoss, steps: int = 8, model: Any = None, **options: Any) -> Any:
    model = build_model("bert", **WITHOUT) if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    loss.attach(model)
    pruner.begin(model, steps)
    model.train()
    for step in range(steps):
        loss.of(model, BATCH).backward()
        pruner.before_step(step, optimizer)
        optimizer.step()
        pruner.after_step(step, optimizer)
        optimizer.zero_grad()
    pruner.end()
    loss.detach()
    return model.eval()


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("regularisation", [0.3, 0.0])
def test_the_search_is_the_published_one(separate: bool, regularisation: float) -> None:
    """Unit by unit: gradients of weights of a twin, EMA, StructReg, one ranking, and query units of empty heads."""
    steps, decay, hidden = 6, 0.7, 32
    schedule = Cubic(0.9, 1, 5)
    model, teacher = (build_model("bert", seed=seed, **WITHOUT) for seed in (0, 4))
    loss = PruningLoss(teacher, hard=0.0, soft=1.0, hidden=1.0)
    pruner = UnitPruning(schedule, loss=loss if separate else None, decay=decay, regularisation=regularisation)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss.attach(model)
    pruner.begin(model, steps)
    model.train()
    units = [("neurons", layer, unit) for layer in range(2) for unit in range(48)]
    units += [(site, layer, unit) for site in ("query", "value") for layer in range(2) for unit in range(32)]
    cost = {"neurons": 2 * hidden + 1, "query": 2 * hidden + 2, "value": 2 * hidden + 1}
    total = sum(cost[site] for site, _, _ in units)
    averages, alive = dict.fromkeys(units, 0.0), dict.fromkeys(units, True)
    for step in range(steps):
        twin = build_model("bert", **WITHOUT).train()
        twin.load_state_dict(model.state_dict())
        other = PruningLoss(teacher, hard=0.0, soft=1.0, hidden=0.0 if separate else 1.0)
        other.attach(twin)
        other.of(twin, BATCH).backward()
        for site, layer, unit in units:
            query, _, _, output, _, down = layer_linears(twin, layer)
            if site == "query":
                product = (query.weight.grad[unit] * query.weight[unit]).sum() + query.bias.grad[unit] * query.bias[
                    unit
                ]
            else:
                linear = output if site == "value" else down
                product = (linear.weight.grad[:, unit] * linear.weight[:, unit]).sum()
            score = abs(product.item())
            if site == "value" and regularisation:
                own = [alive["value", layer, 8 * (unit // 8) + channel] for channel in range(8)]
                score *= math.tanh(sum(own) / 8 / regularisation)
            averages[site, layer, unit] = decay * averages[site, layer, unit] + (1 - decay) * score
        loss.of(model, BATCH).backward()
        pruner.before_step(step, optimizer)
        optimizer.step()
        pruner.after_step(step, optimizer)
        optimizer.zero_grad()
        if step + 1 <= 5:
            gone, allowed = 0.0, schedule.value(step + 1) * total
            for unit in sorted(units, key=lambda unit: averages[unit] if alive[unit] else -1.0):
                gone += cost[unit[0]]
                if gone > allowed + 0.5:
                    break
                alive[unit] = False
            for layer in range(2):
                for head in range(4):
                    channels = [8 * head + channel for channel in range(8)]
                    if not any(alive["value", layer, channel] for channel in channels):
                        alive |= {("query", layer, channel): False for channel in channels}
        for site, layer, unit in units:
            assert bool(pruner.masks[site][layer].flatten()[unit]) == alive[site, layer, unit], (
                step,
                site,
                layer,
                unit,
            )
    assert 0.87 < pruner.sparsity() < 0.97
    assert pruner.sparsity() >= 0.9 - 66 / total


def test_every_third_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """At those steps the average is that of a decay to the third power, and nothing is looked at in between."""
    seen: list[int] = []
    of = UnitGates.of
    monkeypatch.setattr(UnitGates, "of", lambda gates, loss: seen.append(1) or of(gates, loss))
    loss = PruningLoss(build_model("bert", seed=4), hard=0.0, soft=1.0, hidden=1.0)
    pruner = UnitPruning(Cubic(0.7, 2, 7), loss=loss, decay=0.9, every=3)
    trained(pruner, loss, steps=10)
    assert len(seen) == pruner.statistics.batches == 3  # steps 0, 3, 6
    assert pruner.statistics._decay == pytest.approx(0.9**3)
    assert pruner.sparsity() == pytest.approx(0.7, abs=0.02)
    with pytest.raises(InputError, match="every step or less often"):
        UnitPruning(Cubic(0.5, 0, 1), every=0)


@pytest.mark.parametrize("unit", ["channels", "heads"])
@pytest.mark.parametrize("sparsity", [0.6, 0.95])
def test_masked_is_compacted(unit: str, sparsity: float) -> None:
    loss = PruningLoss()
    pruner = UnitPruning(Cubic(sparsity, 1, 6), unit=unit, decay=0.5)  # type: ignore[arg-type]
    model = trained(pruner, loss)
    units = pruner.units()
    small = compact(model, units)
    inputs = {name: value for name, value in BATCH.items() if name != "labels"}
    with torch.inference_mode():
        dense, cut = model(**inputs).logits, small(**inputs).logits
    assert torch.allclose(dense, cut, atol=1e-5)
    assert sum(p.numel() for p in small.bert.encoder.parameters()) == units.parameters()
    whole = sum(p.numel() for p in model.bert.encoder.parameters())
    assert units.parameters() < (1 - 0.8 * sparsity) * whole
    if unit == "heads":
        assert {len(channels) for layer in units.layers for channels in layer.query + layer.value} <= {8}


def test_what_went_stays_zero_against_the_optimizer() -> None:
    pruner = UnitPruning(Cubic(0.7, 1, 3), decay=0.5)
    model = trained(pruner, PruningLoss(), steps=10)
    for layer in range(2):
        query, key, value, output, up, down = layer_linears(model, layer)
        masks = {site: pruner.masks[site][layer].flatten() for site in SITES}
        for linear, site in ((query, "query"), (key, "query"), (value, "value"), (up, "neurons")):
            assert not bool(linear.weight[~masks[site]].any())
            assert not bool(linear.bias[~masks[site]].any())
            assert bool((linear.weight[masks[site]] != 0).all())
        for linear, site in ((output, "value"), (down, "neurons")):
            assert not bool(linear.weight[:, ~masks[site]].any())
            assert bool((linear.weight[:, masks[site]] != 0).all())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_is_uninterrupted_to_the_bit(precision: str, tmp_path: Any) -> None:
    from pyprune.training.loop import Checkpoints

    rows = Rows([{"input_ids": [2, 5 + row, 7, 3], "attention_mask": [1] * 4} for row in range(12)], [0, 1] * 6)
    settings = Training(epochs=3, batch_size=4, rate=2e-3, precision=precision)

    def run(**options: Any) -> tuple[Any, UnitPruning]:
        loss = PruningLoss(build_model("bert", seed=4), hard=0.0, soft=1.0, hidden=1.0, maps=True)
        pruner = UnitPruning(Cubic(0.8, 2, 7), loss=loss, decay=0.8)
        model = build_model("bert", hidden_dropout_prob=0.1)
        checkpoints = Checkpoints(tmp_path, settings={}, every=1, keep=99, **options)
        train(model, rows, loss, pruner, settings, checkpoints=checkpoints)
        return model, pruner

    whole, first = run(resume=False)
    for path in sorted(tmp_path.iterdir())[4:]:
        path.unlink()
    again, second = run(resume=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert first.units() == second.units()
    assert first.statistics.batches == second.statistics.batches == 7


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("unit", "sparsity"), [("channels", 0.5), ("channels", 0.97), ("heads", 0.8)])
def test_a_smaller_model_is_trained_alike(family: str, unit: Any, sparsity: float) -> None:
    """The same units and losses, and the same weights but for rounding, as with zeros in place."""
    rows = Rows([{"input_ids": [2, 5 + row, 7, 3], "attention_mask": [1] * 4} for row in range(12)], [0, 1] * 6)
    found = []
    for shrink in (False, True):
        loss = PruningLoss(build_model(family, seed=4), hard=0.5, soft=0.5, hidden=1.0, maps=True)
        pruner = UnitPruning(Cubic(sparsity, 1, 5), loss=loss, decay=0.8, unit=unit, shrink=shrink)
        options = {"dropout": 0.0, "attention_dropout": 0.0} if family == "distilbert" else WITHOUT
        model = build_model(family, **options)
        sizes: list[int] = []
        end = pruner.end

        def ended(model: Any = model, sizes: list[int] = sizes, end: Any = end) -> None:
            sizes.append(sum(p.numel() for p in model.parameters()))
            end()

        pruner.end = ended  # type: ignore[method-assign]
        done = train(model, rows, loss, pruner, Training(epochs=4, batch_size=4, rate=2e-3))
        pruner.check()
        found.append((model, pruner, done.losses, sizes[-1]))
    (plain, first, losses, whole), (small, second, others, cut) = found
    assert first.units() == second.units()
    assert others == pytest.approx(losses, rel=1e-4)
    assert cut < whole
    assert {name: value.shape for name, value in small.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    for name, value in plain.state_dict().items():
        # A key's bias changes no attention: its gradient is rounding, of which Adam makes steps like any other.
        rounding = name.endswith(("key.bias", "k_lin.bias"))
        assert torch.allclose(value, small.state_dict()[name], atol=2e-2 if rounding else 2e-4), name
    assert all(p.requires_grad for p in small.parameters())


def test_a_smaller_model_is_resumed_to_the_bit(tmp_path: Any) -> None:
    from pyprune.training import Choice
    from pyprune.training.loop import Checkpoints

    rows = Rows([{"input_ids": [2, 5 + row, 7, 3], "attention_mask": [1] * 4} for row in range(12)], [0, 1] * 6)
    settings = Training(epochs=4, batch_size=4, rate=2e-3)

    def run(folder: Any, *, resume: bool) -> tuple[Any, UnitPruning, Choice]:
        loss = PruningLoss(build_model("bert", seed=4), hard=0.0, soft=1.0, hidden=1.0, maps=True)
        pruner = UnitPruning(Cubic(0.8, 2, 5), loss=loss, decay=0.8, shrink=True)
        model = build_model("bert", hidden_dropout_prob=0.1)
        choice = Choice(lambda model: -abs(float(model.classifier.weight.sum()) - 0.1), every=1)
        checkpoints = Checkpoints(folder, settings={}, every=1, keep=99, resume=resume)
        train(model, rows, loss, pruner, settings, checkpoints=checkpoints, choice=choice)
        return model, pruner, choice

    whole, first, choice = run(tmp_path / "all", resume=False)
    first.check()
    for path in sorted((tmp_path / "all").iterdir())[3::3]:
        folder = tmp_path / path.stem
        folder.mkdir()
        (folder / path.name).write_bytes(path.read_bytes())
        again, second, other = run(folder, resume=True)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
        assert (first.units(), choice.scores, choice.step) == (second.units(), other.scores, other.step)


def test_batches_that_are_not_finite_are_left_out() -> None:
    model = build_model("bert")
    pruner = UnitPruning(Cubic(0.5, 1, 5), decay=0.5)
    pruner.begin(model, 6)
    (loss_of(model) * torch.inf).backward()
    pruner.before_step(0, None, scale=4.0)
    assert (pruner.statistics.batches, pruner.statistics.excluded) == (0, 1)
    (loss_of(model) * 4.0).backward()
    pruner.before_step(0, None, scale=4.0)
    scaled = pruner.statistics.average("query").clone()
    other = UnitPruning(Cubic(0.5, 1, 5), decay=0.5)
    pruner.end()
    other.begin(model, 6)
    loss_of(model).backward()
    other.before_step(0, None)
    assert torch.allclose(scaled, other.statistics.average("query"), rtol=1e-6)
    other.end()


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(InputError, match="unknown unit"):
        UnitPruning(Cubic(0.5, 0, 1), unit="layers")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 0"):
        UnitPruning(Cubic(0.5, 0, 1), regularisation=-1.0)
    with pytest.raises(InputError, match="cannot be pruned"):
        UnitPruning(Cubic(0.5, 0, 1)).begin(build_model("opt", "lm"), 3)
    pruner = UnitPruning(Cubic(0.5, 0, 1))
    pruner.begin(build_model("bert"), 3)
    state = pruner.state()
    with pytest.raises(InputError, match="of another model"):
        UnitPruning(Cubic(0.5, 0, 1)).begin(build_model("bert", layers=3), 3, state)
