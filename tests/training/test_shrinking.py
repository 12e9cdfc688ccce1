# SPDX-License-Identifier: Apache-2.0
"""A model that is cut while it is trained: gates and zeros in what is left, moments handed on, cut twice as at once."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from tiny_models import build_batches, build_model
from torch import Tensor, nn

from pyprune.models import adapter_for
from pyprune.structured.cutting import any_linears, dense_units, masked, unit_masks, weight_masks
from pyprune.training import Cubic, UnitPruning
from pyprune.training.gating import SITES, UnitGates
from pyprune.training.shrinking import clear, cut, cut_masks, grow
from pyprune.units import Units

FAMILIES = ("bert", "roberta", "distilbert", "electra")
BATCH = build_batches(1)[0] | {"labels": torch.tensor([0, 1, 1, 0, 1, 0])}


def unit_draws(kind: str, seed: int = 0, parent: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Masks of two layers: channels here and there, whole heads, or an attention and neurons that are empty."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"neurons": (2, 48), "query": (2, 4, 8), "value": (2, 4, 8)}
    masks = {site: torch.rand(size, generator=generator) < 0.6 for site, size in sizes.items()}
    if kind == "heads":
        heads = torch.rand(2, 4, 1, generator=generator) < 0.6
        heads[:, 0] = True
        masks |= {site: heads.expand(2, 4, 8).clone() for site in ("query", "value")}
    if kind == "empty":
        for mask in masks.values():
            mask[0] = False
        masks["query"][1, 2] = False
    if parent is not None:
        masks = {site: mask & parent[site] for site, mask in masks.items()}
    masks["query"] &= masks["value"].any(dim=2, keepdim=True)
    return masks


def units_of(masks: dict[str, Tensor]) -> Units:
    return Units.from_masks(32, None, masks["neurons"], query=masks["query"], value=masks["value"])


def gradients(model: Any, gates: UnitGates) -> dict[str, Tensor]:
    gates.open()
    found = gates.of(model(**BATCH).loss)
    gates.close()
    return found


@pytest.mark.parametrize("kind", ["channels", "heads", "empty"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gates_of_what_is_left_have_the_gradients_of_the_whole_model(family: str, kind: str) -> None:
    units = units_of(unit_draws(kind))
    large: Any = masked(build_model(family), units)
    small = copy.deepcopy(large)
    gates, others = (UnitGates(model, adapter_for(model)) for model in (large, small))
    others.fit(units)
    cut(small, units, None)
    wanted, found = gradients(large, gates), gradients(small, others)
    for site in SITES:
        assert wanted[site].shape == found[site].shape
        assert torch.allclose(wanted[site], found[site], rtol=1e-4, atol=1e-6), site
    assert float(wanted["neurons"].abs().max()) > 1e-5


@pytest.mark.parametrize("kind", ["channels", "heads", "empty"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_twice_is_cut_once(family: str, kind: str) -> None:
    first = unit_draws("channels")
    second = unit_draws(kind, seed=1, parent=first)
    units, fewer = units_of(first), units_of(second)
    gone = {site: first[site] & ~second[site] for site in SITES}
    dense = masked(build_model(family), units)
    found = []
    for steps in (1, 2):
        model = copy.deepcopy(dense)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model(**BATCH).loss.backward()
        optimizer.step()
        if steps == 2:
            cut(model, units, optimizer)
            clear(model, gone, optimizer, units)
            for name, mask in cut_masks(model, unit_masks(dense, fewer), units).items():
                weight = model.get_submodule(name).weight
                assert weight.shape == mask.shape
                assert not bool(weight[~mask].any())
            cut(model, fewer, optimizer, units)
        else:
            clear(model, gone, optimizer)
            cut(model, fewer, optimizer)
        moments = {
            name: optimizer.state.get(parameter, {})
            for name, parameter in model.named_parameters()
            if parameter.numel()
        }
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        assert held == {parameter for parameter in model.parameters() if parameter.numel()}
        found.append((model, moments))
    (once, ours), (twice, theirs) = found
    assert ours.keys() == theirs.keys()
    for name, state in ours.items():
        assert torch.equal(once.get_parameter(name), twice.get_parameter(name)), name
        for key, value in state.items():
            assert torch.equal(value, theirs[name][key]), (name, key)
    with torch.no_grad():
        assert torch.allclose(once(**BATCH).logits, twice(**BATCH).logits, atol=1e-6)
    grow(twice, fewer)
    for name, mask in unit_masks(twice, fewer).items():
        weight = twice.get_submodule(name).weight
        assert weight.shape == mask.shape
        assert not bool(weight[~mask].any())
    assert dense_units(twice) == dense_units(dense)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_of_weights_do_not_need_the_dense_model(family: str) -> None:
    model, units = build_model(family), units_of(unit_draws("channels"))
    wanted = unit_masks(model, units)
    cut(model, units, None)
    found = weight_masks(model, adapter_for(model), units)
    assert found.keys() == wanted.keys()
    for name, mask in wanted.items():
        assert torch.equal(mask, found[name]), name


def sizes(model: nn.Module) -> int:
    adapter = adapter_for(model)
    blocks = adapter.blocks(model)
    return sum(linear.weight.numel() for block in blocks for linear in any_linears(block, adapter).values())


@pytest.mark.parametrize("unit", ["channels", "heads"])
def test_a_model_gets_smaller_while_units_go_and_pruned_weights_stay_zero(unit: Any) -> None:
    model: Any = build_model("bert")
    pruner = UnitPruning(Cubic(0.95, 1, 9), decay=0.5, unit=unit, shrink=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner.begin(model, 12)
    seen = [sizes(model)]
    for step in range(12):
        model(**BATCH).loss.backward()
        pruner.before_step(step, optimizer)
        optimizer.step()
        pruner.after_step(step, optimizer)
        optimizer.zero_grad()
        seen.append(sizes(model))
        pruner.check()
    assert all(after <= before for before, after in itertools.pairwise(seen))
    assert len(set(seen)) >= 4, seen
    assert seen[9:] == [seen[9]] * 4
    assert seen[-1] == sum(int(mask.sum()) for mask in pruner.linears().values())
    pruner.masks["value"][:] = False  # a mask that the model does not keep to is noticed, cut as it is
    pruner.masks["neurons"][:] = False
    pruner.masks["query"][:] = False
    with pytest.raises(AssertionError, match="are not zero"):
        pruner.check()
    pruner.end()
    assert sizes(model) == seen[0]
