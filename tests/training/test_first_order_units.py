# SPDX-License-Identifier: Apache-2.0
"""CAP's structured pruning against its formulas written out in float64; its place among epochs and checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import Stopping
from tiny_models import build_model
from torch import Tensor, nn
from torch.nn import functional

from pyprune.errors import InputError
from pyprune.methods import train_prune
from pyprune.models import adapter_for
from pyprune.structured import compact
from pyprune.training import Contrast, FirstOrderPruning, Levels, PruningLoss
from pyprune.training.first_order_units import lowest_gone
from pyprune.training.loop import Training
from pyprune.training.rows import NUMBERS, Rows

LAYERS, HEADS, WIDTH, NEURONS = 2, 4, 8, 48
SIZE, HARD, SOFT, TEMPERATURE = 4, 0.1, 0.9, 1.0
LEVELS = (0.2, 0.5, 0.8)


def rows(count: int = 12) -> Rows:
    generator = torch.Generator().manual_seed(7)
    ids = [torch.randint(5, 100, (4 + row % 5,), generator=generator).tolist() for row in range(count)]
    return Rows([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], [row[0] % 2 for row in ids])


def batches_of(data: Rows, *, numbered: bool = False) -> Any:
    def batches(epoch: int) -> Iterator[dict[str, Tensor]]:
        for numbers in data.order(seed=0, epoch=epoch, size=SIZE):
            batch = data.batch(numbers)
            yield batch | {NUMBERS: numbers} if numbered else batch

    return batches


def linears(model: Any, layer: int) -> tuple[nn.Linear, ...]:
    """Query, key, value, output, up, down."""
    adapter = adapter_for(model)
    return tuple(adapter.linears(adapter.blocks(model)[layer]).values())


def importances(model: Any, teacher: Any, batches: Any) -> tuple[list[list[float]], list[list[float]]]:
    """Of heads and of neurons: Σ over batches of |∂L/∂m|, from gradients of weights, without dropout."""
    twin, taught = copy.deepcopy(model).double().eval(), copy.deepcopy(teacher).double().eval()
    heads = torch.zeros(LAYERS, HEADS, dtype=torch.float64)
    neurons = torch.zeros(LAYERS, NEURONS, dtype=torch.float64)
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", NUMBERS)}
        twin.zero_grad()
        logits = twin(**inputs).logits
        with torch.no_grad():
            wanted = (taught(**inputs).logits / TEMPERATURE).log_softmax(dim=1)
        ours = (logits / TEMPERATURE).log_softmax(dim=1)
        distance = (wanted.exp() * (wanted - ours)).sum(dim=1).mean() * TEMPERATURE**2
        labelled = -logits.log_softmax(dim=1).gather(1, batch["labels"][:, None]).mean()
        (HARD * labelled + SOFT * distance).backward()
        for layer in range(LAYERS):
            _, _, _, output, _, down = linears(twin, layer)
            channels = (output.weight.grad * output.weight).sum(dim=0).detach()
            heads[layer] += channels.reshape(HEADS, WIDTH).sum(dim=1).abs()
            neurons[layer] += (down.weight.grad * down.weight).sum(dim=0).detach().abs()
    return heads.tolist(), neurons.tolist()


def chosen(sums: list[list[float]], alive: set[tuple[int, int]], level: float, *, floor: bool) -> set[tuple[int, int]]:
    """What stays, unit by unit."""
    norms = [sum(value**2 for value in layer) ** 0.5 for layer in sums]
    scores = {(layer, unit): sums[layer][unit] / norms[layer] for layer, unit in alive}
    left = set(alive)
    best = {max((unit for unit in alive if unit[0] == layer), key=lambda unit: scores[unit]) for layer in range(LAYERS)}
    count = sum(len(layer) for layer in sums)
    for unit in sorted(alive, key=lambda unit: scores[unit]):
        if len(left) > int(count * (1 - level) + 0.5) and not (floor and unit in best):
            left.remove(unit)
    return left


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_what_goes_is_what_the_formulas_say(family: str) -> None:
    options: Any = (
        {"dropout": 0.3, "attention_dropout": 0.3} if family == "distilbert" else {"hidden_dropout_prob": 0.3}
    )
    model, teacher = build_model(family, **options), build_model(family, seed=4)
    data, steps = rows(), 9
    loss = PruningLoss(teacher, hard=HARD, soft=SOFT)
    loss.logits = type(loss.logits)(TEMPERATURE, "kl", "forward", squared=True, reduction="batchmean")
    batches = batches_of(data)
    pruner = FirstOrderPruning(Levels(LEVELS, (0, 3, 6)), loss=loss, batches=batches, an_epoch=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    heads = {(layer, head) for layer in range(LAYERS) for head in range(HEADS)}
    neurons = {(layer, neuron) for layer in range(LAYERS) for neuron in range(NEURONS)}

    def expect(step: int, before: Any) -> None:
        nonlocal heads, neurons
        if step in (0, 3, 6):
            sums = importances(before, teacher, batches(step // 3))
            level = LEVELS[step // 3]
            heads = chosen(sums[0], heads, level, floor=True)
            neurons = chosen(sums[1], neurons, level, floor=False)
            for site, values in zip(("heads", "neurons"), sums, strict=True):
                found = pruner.statistics.absolute(site).reshape(LAYERS, -1)
                torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=1e-3, atol=1e-7)
        assert {tuple(unit) for unit in pruner.masks["neurons"].nonzero().tolist()} == neurons, step
        whole = pruner.masks["value"]
        assert torch.equal(whole, pruner.masks["query"])
        assert torch.equal(whole.any(dim=2), whole.all(dim=2))
        assert {tuple(unit) for unit in whole.all(dim=2).nonzero().tolist()} == heads, step

    loss.attach(model)
    before = copy.deepcopy(model)
    pruner.begin(model, steps)
    expect(0, before)
    model.train()
    torch.manual_seed(1)
    for step in range(steps):
        for index, batch in enumerate(batches(step // 3)):
            if index == step % 3:
                loss.of(model, batch).backward()
        pruner.before_step(step, optimizer)
        optimizer.step()
        before = copy.deepcopy(model)
        assert all(part.training for part in model.modules())
        pruner.after_step(step, optimizer)
        assert bool(optimizer.state) == (step + 1 not in (3, 6))  # moments begin anew
        assert all(part.training for part in model.modules())
        optimizer.zero_grad()
        expect(step + 1, before)
    pruner.check()
    pruner.end()
    assert (len(heads), len(neurons)) == (2, 19)  # the better head of each layer, 20 % of 96
    inputs = {name: value for name, value in data.batch(torch.arange(3)).items() if name != "labels"}
    small = compact(model.eval(), pruner.units())
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, small(**inputs).logits, rtol=0, atol=1e-5)


def test_the_best_living_head_stays() -> None:
    """Not the best that ever was: scores of heads that are gone protect nothing."""
    scores = torch.tensor([[9.0, 1.0, 2.0], [5.0, 6.0, 7.0]])
    alive = torch.tensor([[False, True, True], [True, True, True]])
    assert lowest_gone(scores, alive, 0.5, floor=True).tolist() == [[False, False, True], [False, True, True]]
    assert lowest_gone(scores, alive, 1.0, floor=True).tolist() == [[False, False, True], [False, False, True]]
    assert not bool(lowest_gone(scores, alive, 1.0, floor=False).any())
    assert torch.equal(lowest_gone(scores, alive, 0.1, floor=False), alive)  # more is gone already


def test_a_contrast_counts_and_keeps_the_model_as_it_was_before(tmp_path: Path) -> None:
    """Banks are of the model with the units that go; the first importances are without it, as banks are empty."""
    data, teacher = rows(), build_model("bert", seed=4)
    settings = Training(epochs=4, batch_size=SIZE, rate=2e-3, rounds=2)
    found: dict[bool, Any] = {}
    for contrasted in (False, True):
        model = build_model("bert")
        contrast = Contrast(tmp_path, data, teacher=teacher, every=2, extra=4) if contrasted else None
        loss = PruningLoss(teacher, hard=HARD, soft=SOFT, contrast=contrast)
        batches = batches_of(data, numbered=contrasted)
        pruner = FirstOrderPruning(Levels((0.3, 0.6), (0, 6)), loss=loss, batches=batches, an_epoch=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        loss.attach(model)
        before = copy.deepcopy(model).base_model
        pruner.begin(model, settings.steps(len(data)))
        sums = [pruner.statistics.absolute("heads").clone()]
        model.train()
        for step in range(8):
            if step % 3 == 0:
                loss.epoch(model, step // 3)
            if step == 5:
                later = copy.deepcopy(model).base_model.eval()
            pruner.before_step(step, optimizer)
            pruner.after_step(step, optimizer)
        sums.append(pruner.statistics.absolute("heads").clone())
        pruner.end()
        found[contrasted] = sums
    assert contrast is not None
    torch.testing.assert_close(found[True][0], found[False][0])
    assert not torch.allclose(found[True][1], found[False][1], rtol=1e-2)
    batch = data.batch(torch.arange(4))
    del batch["labels"]
    for term, encoder in (("pretrained", before), ("snapshots", later)):
        bank = contrast._banks[term]
        assert bank.finished == 1
        with torch.inference_mode():
            wanted = functional.normalize(encoder(**batch).pooler_output, dim=1)
        torch.testing.assert_close(bank.of(torch.arange(4))[:, 0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("contrast", "stop"), [(True, 6), (False, 8)])
def test_resumed_is_uninterrupted_to_the_bit(contrast: bool, stop: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "first-order", "sparsity": 0.6, "contrast": contrast}
    options |= {"options": {"levels": [0.3, 0.6]}, "training": {"batch_size": SIZE, "rate": 1e-3}}
    options["teacher"] = build_model("bert", layers=1, seed=3)
    whole = train_prune(build_model("bert", layers=1), rows(), **options)
    kept = {"checkpoints": tmp_path / "run", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train_prune(build_model("bert", layers=1), rows(), progress=Stopping(stop + 1), **options, **kept)
    again = train_prune(build_model("bert", layers=1), rows(), resume=True, **options, **kept)
    assert again.report["training"]["resumed"] == stop
    assert again.units == whole.units
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    settings = whole.report["settings"]
    assert (settings["training"]["epochs"], settings["training"]["rounds"]) == (4.0, 2)
    assert (whole.report["training"]["steps"], settings["loss"]["soft"]) == (12, 0.9)
    if contrast:
        assert {name: settings["loss"]["contrast"][name] for name in ("supervised", "unsupervised", "every")} == {
            "supervised": 3.0, "unsupervised": 0.3, "every": 2,
        }  # fmt: skip


def test_levels(tmp_path: Path) -> None:
    from pyprune.methods.train_recipes import levels_to

    assert levels_to(0.9, None) == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert levels_to(0.25, None) == (0.1, 0.2, 0.25)
    assert levels_to(0.8, [0.5]) == (0.5, 0.8)
    with pytest.raises(InputError, match="levels rise"):
        levels_to(0.4, [0.5])
    shares = [Training(rounds=2, warm_up=0.2).share(step, 20) for step in range(20)]
    assert shares[:10] == shares[10:] == [Training(warm_up=0.2).share(step, 10) for step in range(10)]
    with pytest.raises(InputError, match="at least one round"):
        Training(rounds=0)
