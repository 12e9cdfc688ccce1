# SPDX-License-Identifier: Apache-2.0
"""Adapters find blocks and linears in every family, and refuse what they cannot prune."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import heads_of
from torch import nn

from pyprune.errors import InputError, NumericsError
from pyprune.models import adapter_for, families

Tiny = Callable[..., nn.Module]


def test_blocks_and_linears(tiny: Tiny, family: str) -> None:
    for head in (*heads_of(family), "none"):
        model = tiny(family, head)
        adapter = adapter_for(model)
        blocks = adapter.blocks(model)
        assert len(blocks) == 2
        linears = adapter.linears(blocks[1])
        assert len(linears) == sum(map(len, adapter.groups))
        inside = [module for module in blocks[1].modules() if isinstance(module, nn.Linear)]
        assert {id(module) for module in linears.values()} == {id(module) for module in inside}
        name = adapter.block_name(model, 1)
        assert model.get_submodule(name) is blocks[1]
        adapter.check(model)


def test_families_are_those_tested(family: str) -> None:
    assert family in families()
    assert len(families()) == 11


def test_longest_sentence(tiny: Tiny) -> None:
    assert adapter_for(tiny("bert")).longest(tiny("bert").config) == 66
    # Positions of RoBERTa start after the padding index, here 1.
    assert adapter_for(tiny("roberta")).longest(tiny("roberta").config) == 64


def test_unknown_family_lists_the_known_ones() -> None:
    import transformers

    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10)
    with pytest.raises(InputError, match=r"'gpt2'[\s\S]*bert, roberta"):
        adapter_for(transformers.GPT2LMHeadModel(config))
    with pytest.raises(InputError, match="None"):
        adapter_for(nn.Linear(2, 2))


def test_decoder_is_refused(tiny: Tiny) -> None:
    model = tiny("bert", is_decoder=True)
    with pytest.raises(InputError, match="as an encoder only"):
        adapter_for(model).check(model)


def test_mixed_kinds_of_attention_are_refused(tiny: Tiny) -> None:
    kinds = ["full_attention", "sliding_attention"]
    model = tiny("qwen2", "lm", layer_types=kinds, use_sliding_window=True, sliding_window=4)
    with pytest.raises(InputError, match=r"different kinds of attention[\s\S]*sliding_attention"):
        adapter_for(model).check(model)


def test_replaced_linear_is_refused(tiny: Tiny) -> None:
    class Wrapped(nn.Linear):
        pass

    model = tiny("bert")
    model.bert.encoder.layer[0].intermediate.dense = Wrapped(32, 48)  # type: ignore[union-attr, index]
    with pytest.raises(InputError, match=r"intermediate\.dense[\s\S]*Wrapped"):
        adapter_for(model).check(model)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weight_that_is_not_finite_is_named(tiny: Tiny, bad: float) -> None:
    model = tiny("distilbert")
    with torch.no_grad():
        model.get_parameter("distilbert.transformer.layer.1.ffn.lin2.weight")[3, 4] = bad
    with pytest.raises(NumericsError, match=r"layer\.1\.ffn\.lin2\.weight"):
        adapter_for(model).check(model)
