# SPDX-License-Identifier: Apache-2.0
"""Rearranging against the rule written out, scales against least squares on what units write, labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pyprune
from pyprune.errors import InputError
from pyprune.methods.kwon import Kwon, rearranged, unit_scales
from pyprune.methods.objectives import Objective
from pyprune.models.sublayers import SubLayer
from pyprune.stats import Moments

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]


def _by_the_rule(kept: Tensor, gradients: Tensor) -> Tensor:
    order = sorted(range(len(kept)), key=lambda unit: (float(gradients[:, unit].square().sum()), unit))
    removed = [unit for unit in order if not kept[unit]]
    for unit in [unit for unit in order if kept[unit]] if removed else []:
        trial = [*removed, unit]
        without = [sum(gradients[:, other] for other in trial if other != gone) for gone in trial]
        sizes = [float(torch.as_tensor(part).square().sum()) for part in without]
        removed = [other for other in trial if other != trial[sizes.index(min(sizes))]]
    return torch.tensor([unit not in removed for unit in range(len(kept))])


@pytest.mark.parametrize("units", [1, 2, 7, 13])
def test_rearranging_follows_the_rule(units: int) -> None:
    generator = torch.Generator().manual_seed(units)
    for kept_count in range(units + 1):
        gradients = torch.randn(5, units, generator=generator, dtype=torch.float64)
        kept = torch.zeros(units, dtype=torch.bool)
        kept[torch.randperm(units, generator=generator)[:kept_count]] = True
        found = rearranged(kept, gradients)
        assert torch.equal(found, _by_the_rule(kept, gradients))
        assert int(found.sum()) == kept_count
        before, after = (gradients[:, ~mask].sum(1).square().sum() for mask in (kept, found))
        assert float(after) <= float(before) + 1e-12


def _plain_loop(kept: Tensor, gradients: Tensor) -> Tensor:
    """The published loop, every sum over the removed ones computed anew."""
    squares = gradients.square().sum(dim=0)
    order = torch.argsort(squares, stable=True).tolist()
    removed = [unit for unit in order if not kept[unit]]
    for unit in [unit for unit in order if kept[unit]] if removed else []:
        removed.append(unit)
        total = gradients[:, removed].sum(dim=1)
        change = squares[removed] - 2.0 * (total @ gradients[:, removed])
        removed.pop(int(change.argmin()))
    found = torch.ones_like(kept)
    found[removed] = False
    return found


@pytest.mark.parametrize(("units", "batches", "share"), [(300, 40, 0.5), (257, 3, 0.2), (129, 200, 0.9)])
def test_rearranging_of_many_is_the_plain_loop(units: int, batches: int, share: float) -> None:
    generator = torch.Generator().manual_seed(units)
    gradients = torch.randn(batches, units, generator=generator, dtype=torch.float64)
    gradients *= torch.rand(units, generator=generator, dtype=torch.float64).square()
    gradients[:, 5] = 0.0
    kept = torch.rand(units, generator=generator) < share
    found = rearranged(kept, gradients)
    assert torch.equal(found, _plain_loop(kept, gradients))
    assert not torch.equal(found, kept)


@pytest.mark.parametrize("half", [0, 1])
def test_scales_are_least_squares_on_what_units_write(half: int) -> None:
    generator = torch.Generator().manual_seed(half)
    units, width = (3, 2) if half == 0 else (6, 1)
    linear = nn.Linear(units * width, 5).double()
    part = SubLayer(half, "part", (), linear, width)
    kept = torch.tensor([index != 1 for index in range(units)])
    part.remove(kept)
    x = torch.randn(9, units * width, generator=generator, dtype=torch.float64)
    y = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    moments = Moments(units * width, {"out": 5})
    moments.add(x, {"out": y})
    scales, shift = unit_scales(part, moments.finish(), kept)

    weight, bias = linear.weight.detach(), linear.bias.detach()
    columns = [
        (x[:, unit * width : (unit + 1) * width] @ weight[:, unit * width : (unit + 1) * width].T).flatten()
        for unit in range(units)
        if kept[unit]
    ]
    if half == 0:
        columns.append(torch.ones(9 * 5, dtype=torch.float64))
    design = torch.stack(columns, dim=1)
    start = torch.ones(design.shape[1], dtype=torch.float64)
    if half == 0:
        start[-1] = 0.0
    eye = torch.eye(design.shape[1], dtype=torch.float64)
    wanted = torch.linalg.lstsq(torch.cat([design, eye]), torch.cat([(y - bias).flatten(), start])).solution
    assert torch.allclose(scales[kept], wanted[: int(kept.sum())], rtol=1e-8)
    assert float(scales[1]) == 1.0
    assert shift == (pytest.approx(float(wanted[-1]), rel=1e-8) if half == 0 else 0.0)


def test_drawn_labels_follow_the_predictions(tiny: Tiny) -> None:
    objective = Objective(tiny("bert", num_labels=2))
    logits = torch.tensor([[math.log(3.0), 0.0]]).expand(4000, 2)
    loss = objective.sampled((logits,), torch.Generator().manual_seed(0)) / 4000
    # The mean loss against one's own predictions is their entropy.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(loss) == pytest.approx(entropy, abs=0.03)


def test_losses_against_given_labels(tiny: Tiny) -> None:
    logits, other = torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([[0.5, 0.0], [3.0, 1.0]])
    classes = torch.tensor([0, 1])
    wanted = -logits.log_softmax(1)[[0, 1], classes].sum()
    assert torch.allclose(Objective(tiny("bert")).against((logits,), (classes,)), wanted)
    ends = torch.tensor([1, 1])
    both = 0.5 * (wanted - other.log_softmax(1)[[0, 1], ends].sum())
    assert torch.allclose(Objective(tiny("bert", "qa")).against((logits, other), (classes, ends)), both)
    number = Objective(tiny("roberta", num_labels=1))
    assert float(number.against((torch.tensor([[1.0], [3.0]]),), (torch.tensor([0.0, 1.0]),))) == 2.5


def test_labels_of_the_data_decide(tiny: Tiny, batches_of: Batches) -> None:
    batches = batches_of(count=3)
    labels = [torch.arange(len(batch["input_ids"])) % 2 for batch in batches]
    kept = []
    for sign in (0, 1):
        data = [{**batch, "labels": (gold + sign) % 2} for batch, gold in zip(batches, labels, strict=True)]
        kept.append(pyprune.prune(tiny("bert"), data, method=Kwon(labels="data"), target_flops=0.5).units)
    assert kept[0] != kept[1]
    # batches with labels are those without them to whoever asks for none
    drawn = [pyprune.prune(tiny("bert"), given, method="kwon", target_flops=0.5).units for given in (batches, data)]
    assert drawn[0] == drawn[1]
    with pytest.raises(InputError, match="no labels"):
        pyprune.prune(tiny("bert"), batches, method=Kwon(labels="data"), target_flops=0.5)
    with pytest.raises(InputError, match="unknown labels"):
        Kwon(labels="gold")


def test_divergences(tiny: Tiny) -> None:
    student, teacher = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 2.0]])
    p, q = (logits.div(2).softmax(1) for logits in (teacher, student))
    wanted = 4 * float((p * (p / q).log()).sum())
    classes = Objective(tiny("bert"))
    assert float(classes.divergence((student,), (teacher,), 2.0)) == pytest.approx(wanted, rel=1e-6)
    answers = Objective(tiny("bert", "qa"))
    both = answers.divergence((student, teacher), (teacher, teacher), 2.0)
    assert float(both) == pytest.approx(wanted / 2, rel=1e-6)
    number = Objective(tiny("roberta", num_labels=1))
    rows = torch.tensor([[1.0], [3.0]])
    assert number.kind == "regression"
    assert float(number.divergence((rows,), (torch.zeros(2, 1),), 2.0)) == 10.0


def test_padding_is_no_answer(tiny: Tiny) -> None:
    model = tiny("bert", "qa")
    ids, mask = torch.tensor([[5, 6, 7, 1]]), torch.tensor([[1, 1, 1, 0]])
    with torch.no_grad():
        starts, _ = Objective(model).read(model(input_ids=ids, attention_mask=mask), mask.bool())
    assert float(starts.softmax(1)[0, 3]) == 0.0
