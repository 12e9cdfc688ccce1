# SPDX-License-Identifier: Apache-2.0
"""``prune_units``: budgets met in every family, nothing asked means nothing changed, edges, errors, the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.methods import KPrune, Kwon, UnitMagnitude, prune_units
from pyprune.models import adapter_for
from pyprune.models.sublayers import sub_layers
from pyprune.structured import dense_units

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]

METHODS = ["kprune", "kwon", "unit-magnitude"]
KINDS = [
    ("bert", "classification", {}),
    ("roberta", "classification", {"num_labels": 1}),
    ("distilbert", "classification", {}),
    ("distilbert", "qa", {}),
]


def _predict(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output: Any = model(**batch)
    return torch.cat([output[0].flatten(), output[1].flatten()]) if "start_logits" in output else output.logits


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}-{len(kind[2])}")
@pytest.mark.parametrize("method", METHODS)
def test_budget_is_met(tiny: Tiny, batches_of: Batches, kind: tuple[str, str, dict[str, Any]], method: str) -> None:
    family, head, config = kind
    model = tiny(family, head, **config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (prune_units(model, batches_of(count=2), method=method, target_flops=0.45) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    budget = first.report["budget"]
    assert budget["reached"] <= budget["allowed"] < budget["reached"] + budget["head"]
    assert budget["allowed"] == int(0.45 * budget["dense"])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    weights, again = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert all(parameter.requires_grad for parameter in first.model.parameters())
    for index, part in enumerate(sub_layers(first.model, adapter_for(model))):
        kept = first.units.masks()[index % 2][index // 2]
        alive = part.writes.weight.any(dim=0).reshape(part.units, -1).any(dim=1)
        assert torch.equal(alive, kept)
        assert first.report["layers"][index]["kept"] == int(kept.sum())
    assert json.loads(json.dumps(first.report, allow_nan=False)) == first.report


@pytest.mark.parametrize("method", METHODS)
def test_nothing_asked_changes_nothing(tiny: Tiny, batches_of: Batches, method: str) -> None:
    model = tiny("bert")
    result = prune_units(model, batches_of(count=2), method=method, target_flops=1.0)
    assert result.units == dense_units(model)
    for batch in batches_of():
        assert torch.allclose(_predict(result.model, batch), _predict(model, batch), atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_everything_may_go(tiny: Tiny, batches_of: Batches, method: str) -> None:
    model = tiny("distilbert")
    result = prune_units(model, batches_of(count=2), method=method, target_parameters=0)
    assert not any(layer.heads or layer.neurons for layer in result.units.layers)
    for index, part in enumerate(sub_layers(result.model, adapter_for(model))):
        assert not bool(part.writes.weight.any())
        own = sub_layers(model, adapter_for(model))[index].writes.bias
        # LN(x + b): the bias stays, and K-prune's takes over the mean of what is gone.
        assert torch.equal(part.writes.bias, own) == (method != "kprune")
    assert bool(torch.isfinite(_predict(result.model, batches_of()[0])).all())


@pytest.mark.parametrize("method", METHODS)
def test_one_token(tiny: Tiny, method: str) -> None:
    batch = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.tensor([[1]])}
    model = tiny("bert")
    result = prune_units(model, [batch], method=method, target_flops=0.5)
    assert bool(torch.isfinite(_predict(result.model, batch)).all())
    if method == "kprune":
        # One token is all mean: the biases alone repair everything.
        assert torch.allclose(_predict(result.model, batch), _predict(model, batch), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back(tiny: Tiny, batches_of: Batches, dtype: torch.dtype) -> None:
    model = tiny("bert").to(dtype)
    model.classifier.weight.requires_grad_(False)  # type: ignore[union-attr]
    result = prune_units(model, batches_of(count=2), target_macs=0.5)
    parameters = dict(result.model.named_parameters())
    assert {parameter.dtype for parameter in parameters.values()} == {dtype}
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    assert frozen == ["classifier.weight"]


def test_inplace(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert").train()
    result = prune_units(model, batches_of(count=2), method=UnitMagnitude(), target_flops=0.5, inplace=True)
    assert result.model is model
    assert model.training
    assert result.units != dense_units(model)


def test_settings_reach_the_method(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert")
    plain = prune_units(model, batches_of(count=2), method=KPrune(), target_flops=0.5)
    cut = prune_units(model, batches_of(count=2), method=KPrune(tune=False), target_flops=0.5)
    assert cut.report["settings"]["tune"] is False
    # Alike up to the first fit; from then on the tuned model follows the dense one more closely.
    assert plain.units.layers[0].heads == cut.units.layers[0].heads
    pairs = zip(plain.report["layers"], cut.report["layers"], strict=True)
    assert all(tuned["error"] <= left["error"] for tuned, left in pairs)
    scaled = prune_units(model, batches_of(count=2), method=Kwon(), target_flops=0.5)
    unscaled = prune_units(model, batches_of(count=2), method=Kwon(rescale=False), target_flops=0.5)
    assert scaled.units == unscaled.units
    assert not torch.equal(_predict(scaled.model, batches_of()[0]), _predict(unscaled.model, batches_of()[0]))


@pytest.mark.parametrize("search", ["fisher", "magnitude"])
def test_search_and_fit_are_told_apart(tiny: Tiny, batches_of: Batches, search: str) -> None:
    model = tiny("bert")
    other = Kwon(rescale=False) if search == "fisher" else UnitMagnitude()
    chosen = prune_units(model, batches_of(count=2), method=other, target_flops=0.4)
    fitted = prune_units(model, batches_of(count=2), method=KPrune(search=search), target_flops=0.4)
    assert fitted.units == chosen.units
    cut = prune_units(model, batches_of(count=2), method=KPrune(search=search, tune=False), target_flops=0.4)
    pairs = zip(fitted.report["layers"], cut.report["layers"], strict=True)
    assert all(tuned["error"] <= left["error"] for tuned, left in pairs)
    plain = chosen.model.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in cut.model.state_dict().items())


def test_errors(tiny: Tiny, batches_of: Batches) -> None:
    model, batches = tiny("bert"), batches_of()
    with pytest.raises(InputError, match="exactly one target"):
        prune_units(model, batches)
    with pytest.raises(InputError, match="exactly one target"):
        prune_units(model, batches, target_flops=0.5, target_macs=0.5)
    with pytest.raises(InputError, match="from 0 to 1"):
        prune_units(model, batches, target_flops=40)
    with pytest.raises(InputError, match="unknown method"):
        prune_units(model, batches, method="wanda", target_flops=0.5)
    with pytest.raises(InputError, match="no objective"):
        prune_units(tiny("bert", "masked_lm"), batches, target_flops=0.5)
    with pytest.raises(InputError, match="no objective"):
        prune_units(tiny("bert", problem_type="multi_label_classification"), batches, target_flops=0.5)
    with pytest.raises(InputError, match="units of opt models"):
        prune_units(tiny("opt", "lm"), batches, target_flops=0.5)
    with pytest.raises(InputError, match="at least 0"):
        KPrune(damping=-1.0)
    with pytest.raises(InputError, match="unknown search"):
        KPrune(search="fischer")
