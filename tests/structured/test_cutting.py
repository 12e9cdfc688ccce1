# SPDX-License-Identifier: Apache-2.0
"""Smaller modules compute what the dense ones compute with zeros in place of what was cut."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuts import CUTS, WIDTH
from tiny_models import ENCODERS, build_batches, build_model
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import adapter_for
from pyprune.sparse import SparseLinear
from pyprune.structured import compact, dense_units, masked
from pyprune.units import Units


def _outputs(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """At real tokens."""
    with torch.inference_mode():
        found = model(**batch).to_tuple()
    keep = batch["attention_mask"].bool()
    return [value[keep] if value.shape[:2] == keep.shape else value for value in found]


def _parameters(model: Any) -> int:
    return sum(p.numel() for block in adapter_for(model).blocks(model) for p in block.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ENCODERS)
def test_equals_the_masked_model(family: str, attention: str) -> None:
    dense = build_model(family, "classification" if attention == "sdpa" else "qa", attention=attention)
    before = copy.deepcopy(dense.state_dict())
    batch = build_batches(1)[0]
    whole = _outputs(dense, batch)
    # families whose modules are those of another are asked once
    names = CUTS if family in ("bert", "distilbert") else ("uneven heads", "empty halves")
    for name in names:
        small, reference = compact(dense, CUTS[name]), masked(dense, CUTS[name])
        assert type(small) is type(dense)
        assert _parameters(small) == CUTS[name].parameters(), name
        changed = 0.0
        for got, wanted, old in zip(*(_outputs(m, batch) for m in (small, reference)), whole, strict=True):
            assert float((got - wanted).abs().max()) < 1e-5, name
            changed = max(changed, float((old - wanted).abs().max()))
        assert (changed > 1e-3) == (name != "everything"), name
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def test_zeros_are_where_units_are_cut() -> None:
    dense: Any = build_model("bert")
    units = CUTS["uneven heads"]
    layer: Any = masked(dense, units).bert.encoder.layer[0]
    original = dense.bert.encoder.layer[0]
    query, value = (torch.zeros(4, WIDTH, dtype=torch.bool) for _ in range(2))
    for head, q, v in zip(units.layers[0].heads, units.layers[0].query, units.layers[0].value, strict=True):
        query[head, list(q)] = value[head, list(v)] = True
    neurons = torch.zeros(48, dtype=torch.bool)
    neurons[list(units.layers[0].neurons)] = True
    for name, mask, dim in (
        ("attention.self.query", query.flatten(), 0),
        ("attention.self.key", query.flatten(), 0),
        ("attention.self.value", value.flatten(), 0),
        ("attention.output.dense", value.flatten(), 1),
        ("intermediate.dense", neurons, 0),
        ("output.dense", neurons, 1),
    ):
        old, new = original.get_submodule(name), layer.get_submodule(name)
        assert torch.equal(new.weight, old.weight * (mask[:, None] if dim == 0 else mask))
        assert torch.equal(new.bias, old.bias * mask if dim == 0 else old.bias)


def test_whole_heads_are_the_own_modules_of_the_class() -> None:
    small: Any = compact(build_model("bert"), CUTS["whole heads"])
    for module in small.bert.encoder.modules():
        assert type(module).__module__.startswith(("torch.", "transformers."))
    for block, shape in zip(small.bert.encoder.layer, CUTS["whole heads"].shapes, strict=True):
        assert block.attention.self.num_attention_heads == len(shape.query)
        assert block.attention.self.attention_head_size == WIDTH


def test_one_token_and_half_precision() -> None:
    dense = build_model("bert")
    ids = torch.tensor([[7]])
    for dtype in (torch.float16, torch.bfloat16):
        for name, units in CUTS.items():
            with torch.inference_mode():
                got = compact(copy.deepcopy(dense).to(dtype), units)(input_ids=ids).logits
                wanted = masked(dense, units)(input_ids=ids).logits
            assert got.dtype == dtype
            assert float((got - wanted).abs().max()) < 0.1, name
    small = compact(dense, CUTS["uneven heads"]).double()
    assert small(input_ids=ids).logits.dtype == torch.float64


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_compiles_whole(family: str) -> None:
    torch._dynamo.reset()
    small = compact(build_model(family), CUTS["empty halves"])
    batch = build_batches(1)[0]
    with torch.no_grad():
        got = torch.compile(small, fullgraph=True, backend="eager")(**batch).logits
    torch.testing.assert_close(got, _outputs(small, batch)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_learns(family: str) -> None:
    """Every parameter that asks for a gradient has one, the same as where the masked model's units are."""
    dense, batch = build_model(family), build_batches(1)[0]
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    for name in ("empty halves", "nothing"):
        small, reference = compact(dense, CUTS[name]), masked(dense, CUTS[name])
        losses = []
        for model in (small, reference):
            loss = model(**batch, labels=labels).loss
            loss.backward()
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) < 1e-5
        wanted = {key: value.grad for key, value in reference.named_parameters()}
        for key, parameter in small.named_parameters():
            assert parameter.requires_grad == (parameter.numel() > 0), key
            if parameter.numel():
                assert parameter.grad is not None, key
                if parameter.shape == wanted[key].shape:
                    torch.testing.assert_close(parameter.grad, wanted[key], rtol=1e-3, atol=1e-5)
        torch.optim.AdamW(small.parameters(), lr=1e-2).step()
        assert small(**batch, labels=labels).loss.item() != losses[0]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_copies_are_their_own(family: str, again: Callable[[nn.Module], nn.Module]) -> None:
    for name in ("uneven heads", "nothing"):
        small, batch = compact(build_model(family), CUTS[name]), build_batches(1)[0]
        before, copied = _outputs(small, batch)[0], again(small)
        with torch.no_grad():
            for key, parameter in copied.named_parameters():
                if key.endswith(("attention.output.dense.bias", "attention.out_lin.bias")):
                    parameter.normal_()
        assert torch.equal(_outputs(small, batch)[0], before)
        assert not torch.equal(_outputs(copied, batch)[0], before)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_attentions_are_those_of_kept_heads(family: str) -> None:
    small, batch = compact(build_model(family, attention="eager"), CUTS["empty halves"]), build_batches(1)[0]
    found = small(**batch, output_attentions=True, output_hidden_states=True)
    assert [weights.shape[1] for weights in found.attentions] == [4, 0]
    assert len(found.hidden_states) == 3


def test_cutting_is_silent_and_draws_nothing() -> None:
    dense = build_model("bert")
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compact(dense, CUTS["nothing"])
    assert torch.equal(torch.get_rng_state(), state)


def test_refusals() -> None:
    dense: Any = build_model("bert")
    assert dense_units(dense) == CUTS["everything"]
    with pytest.raises(InputError, match="of another model"):
        compact(dense, Units.dense(32, 4, 8, 47, layers=2))
    with pytest.raises(InputError, match="compact already"):
        compact(compact(dense, CUTS["whole heads"]), CUTS["everything"])
    with pytest.raises(InputError, match="cannot be made smaller"):
        compact(build_model("llama", "lm"), CUTS["everything"])
    dense.bert.encoder.layer[1].output.dense = SparseLinear.from_linear(dense.bert.encoder.layer[1].output.dense)
    with pytest.raises(InputError, match=r"output\.dense of a block is not a plain"):
        compact(dense, CUTS["everything"])
