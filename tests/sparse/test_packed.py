# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from cuts import CUTS
from tiny_models import ENCODERS
from torch import nn

import pyprune
from pyprune import ops
from pyprune.errors import InputError
from pyprune.models import adapter_for
from pyprune.sparse import PackedEncoder
from pyprune.sparse.packed import kept_tokens

SAME = 1e-5  # promised are 1e-4; entries are about 1


def packed(model) -> PackedEncoder:
    return next(module for module in model.modules() if isinstance(module, PackedEncoder))


def remove_weights(model, share=0.8):
    """Magnitude pruning of every linear of the blocks; the shares differ, so that "auto" has to choose."""
    for block in adapter_for(model).blocks(model):
        for index, linear in enumerate(adapter_for(model).linears(block).values()):
            if index % 3 != 2:
                size = linear.weight.data.abs()
                linear.weight.data[size <= size.flatten().quantile(share)] = 0.0
    return model


def differences(model, optimized, batches):
    with torch.inference_mode():
        return [
            float((a - b).abs().max())
            for batch in batches
            for a, b in zip(model(**batch).to_tuple(), optimized(**batch).to_tuple(), strict=True)
        ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("head", ["classification", "none"])
@pytest.mark.parametrize("name", ENCODERS)
def test_same_outputs(tiny, batches_of, name, head, attention):
    model = remove_weights(tiny(name, head, attention=attention))
    optimized = pyprune.optimize(copy.deepcopy(model))
    for batch in batches_of():
        got, wanted = optimized(**batch)[0].detach(), model(**batch)[0].detach()
        if head == "none":  # hidden states, of which those of padding are of no use
            real = batch["attention_mask"].bool()
            assert bool((got[~real] == 0).all())
            got, wanted = got[real], wanted[real]
        assert float((got - wanted).abs().max()) <= SAME
    ids = batches_of()[0]["input_ids"]
    assert float((optimized(ids)[0] - model(ids)[0]).abs().max()) <= SAME  # without a mask


def test_padding_on_the_left(tiny, batches_of):
    model = tiny("bert", "none")
    batch = {name: tensor.flip(1) for name, tensor in batches_of()[0].items()}
    optimized, real = pyprune.optimize(copy.deepcopy(model)), batch["attention_mask"].bool()
    got, wanted = optimized(**batch).last_hidden_state[real], model(**batch).last_hidden_state[real]
    assert float((got - wanted).abs().max()) <= SAME


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu"])
def test_activations(tiny, batches_of, activation):
    model = tiny("bert", hidden_act=activation)
    assert max(differences(model, pyprune.optimize(copy.deepcopy(model)), batches_of())) <= SAME
    other = tiny("distilbert", activation=activation)
    if activation in ("gelu_new", "relu"):
        assert max(differences(other, pyprune.optimize(copy.deepcopy(other)), batches_of())) <= SAME


def test_format_is_chosen_by_zeros(tiny):
    dense = packed(pyprune.optimize(tiny("bert")))
    assert "linears: 8 dense_tiles" in repr(dense)
    mixed = packed(pyprune.optimize(remove_weights(tiny("bert"))))
    assert "rows" in repr(mixed)
    assert "dense_tiles" in repr(mixed)
    for format, stored in (("sparse", "8 rows"), ("dense", "8 dense_tiles")):
        assert stored in repr(packed(pyprune.optimize(remove_weights(tiny("bert")), format=format)))


def test_without_the_kernel(tiny, batches_of, monkeypatch):
    model = remove_weights(tiny("bert"))
    monkeypatch.setenv("PYPRUNE_BACKEND", "reference")
    assert max(differences(model, pyprune.optimize(copy.deepcopy(model)), batches_of())) <= SAME


def test_nothing_is_held_twice(tiny):
    model = remove_weights(tiny("bert", layers=3, hidden=64, inner=256), 0.95)
    blocks = adapter_for(model).blocks(model)
    before = sum(parameter.numel() * 4 for block in blocks for parameter in block.parameters())
    del blocks
    optimized = packed(pyprune.optimize(model, format="sparse"))
    assert not list(optimized.parameters())
    assert not any(isinstance(module, nn.Linear) for module in optimized.modules())
    # Two thirds of the linears keep 5 %, the others all, at 6 bytes.
    assert sum(buffer.numel() * buffer.element_size() for buffer in optimized.buffers()) < before


class Compressed(nn.Module):
    """What is asked of a compressed linear."""

    def __init__(self, linear):
        super().__init__()
        self.sparse, self.bias = ops.prepare(ops.compress(linear.weight, dtype=torch.bfloat16)), linear.bias


def test_takes_compressed_linears(tiny, batches_of):
    model = remove_weights(tiny("roberta"))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()  # so that storing them as bfloat16 loses nothing
    compressed = copy.deepcopy(model)
    for block in adapter_for(compressed).blocks(compressed):
        block.intermediate.dense = Compressed(block.intermediate.dense)
        block.attention.self.key = Compressed(block.attention.self.key)
    optimized = pyprune.optimize(compressed, format="sparse")
    assert packed(optimized).layer_0_up_values.dtype == torch.bfloat16
    assert max(differences(model, optimized, batches_of())) <= SAME


def test_copies_states_and_compilation(tiny, batches_of):
    model, batch = tiny("bert"), batches_of()[0]
    optimized = pyprune.optimize(copy.deepcopy(model))
    wanted = optimized(**batch).logits
    assert torch.equal(copy.deepcopy(optimized)(**batch).logits, wanted)
    other = pyprune.optimize(tiny("bert", seed=5))
    assert not torch.equal(other(**batch).logits, wanted)
    other.load_state_dict(optimized.state_dict())
    assert torch.equal(other(**batch).logits, wanted)
    assert pyprune.optimize(optimized) is optimized
    compiled = torch.compile(packed(optimized), fullgraph=True, backend="aot_eager")
    hidden, keep = torch.randn(2, 7, 32), torch.arange(7) < torch.tensor([[4], [7]])
    mask = keep[:, None, None, :].expand(2, 1, 7, 7).contiguous()
    with torch.inference_mode():
        got = compiled(hidden, mask).last_hidden_state
        assert torch.equal(got, packed(optimized)(hidden, keep).last_hidden_state)


def test_what_cannot_be_served_is_said(tiny, batches_of):
    batch = batches_of()[0]
    with pytest.raises(InputError, match="no adapter"):
        pyprune.optimize(nn.Linear(2, 2))
    with pytest.raises(InputError, match="'llama' have no packed form"):
        pyprune.optimize(tiny("llama", "lm"))
    with pytest.raises(InputError, match="'silu' has no packed form"):
        pyprune.optimize(tiny("bert", hidden_act="silu"))
    with pytest.raises(InputError, match="unknown format 'nm'"):
        pyprune.optimize(tiny("bert"), format="nm")
    with pytest.raises(InputError, match=r"word_embeddings\.weight is not in float32"):
        pyprune.optimize(tiny("bert").half())
    odd = tiny("bert")
    odd.bert.encoder.layer[1].output.dense = nn.Identity()
    with pytest.raises(InputError, match=r"output.dense of a block is neither .*\n.*Identity"):
        pyprune.optimize(odd)
    optimized = pyprune.optimize(tiny("bert"))
    for name in ("output_attentions", "output_hidden_states"):
        with pytest.raises(InputError, match=name):
            optimized(**batch, **{name: True})
    with pytest.raises(InputError, match="encoder_hidden_states"):
        packed(optimized)(torch.randn(1, 3, 32), encoder_hidden_states=torch.randn(1, 3, 32))
    with pytest.raises(InputError, match="no gradient"):
        packed(optimized)(torch.randn(1, 3, 32, requires_grad=True))
    with pytest.raises(InputError, match="inference only"):
        optimized.train()(**batch)


def test_masks_that_are_no_padding():
    hidden = torch.randn(2, 3, 8)
    keep = torch.tensor([[True, True, False], [True, False, True]])
    added = torch.where(keep, 0.0, torch.finfo(torch.float32).min)[:, None, None]
    for mask in (keep, keep.long(), keep[:, None, None], added, added.expand(2, 1, 3, 3).contiguous()):
        assert torch.equal(kept_tokens(mask, hidden), keep)
    assert kept_tokens(None, hidden) is None
    with pytest.raises(InputError, match="see different tokens"):
        kept_tokens(torch.ones(2, 1, 3, 3).tril().bool(), hidden)
    with pytest.raises(InputError, match="changes scores"):
        kept_tokens(torch.full((2, 1, 1, 3), -0.5), hidden)
    with pytest.raises(InputError, match=r"no padding\n.*\[2, 4, 3, 3\]"):
        kept_tokens(torch.ones(2, 4, 3, 3).bool(), hidden)


@pytest.mark.parametrize("name", ENCODERS)
def test_compact_models(tiny, batches_of, name):
    """Whole heads, heads of other widths for queries and values, halves without units; with and without zeros."""
    for cut, units in CUTS.items() if name in ("bert", "distilbert") else [("uneven heads", CUTS["uneven heads"])]:
        small = pyprune.compact(tiny(name), units)
        for module in small.modules():
            if isinstance(module, nn.Linear) and module.weight.numel():
                module.weight.data[module.weight.abs() < 0.1] = 0.0  # so that "auto" has to choose
        for format in ("auto", "sparse", "dense"):
            optimized = pyprune.optimize(copy.deepcopy(small), format=format)
            assert max(differences(small, optimized, batches_of(2))) <= SAME, (cut, format)
        elements = sum(buffer.numel() for buffer in packed(optimized).buffers())
        tiles = 2 * 4 * 5 * 48  # dense weights are filled up to a multiple of 6 rows
        assert 0 <= elements - units.parameters() <= tiles, cut


def test_compact_models_without_the_kernel(tiny, batches_of, monkeypatch):
    monkeypatch.setenv("PYPRUNE_BACKEND", "reference")
    small = pyprune.compact(tiny("bert"), CUTS["empty halves"])
    assert max(differences(small, pyprune.optimize(copy.deepcopy(small)), batches_of(1))) <= SAME


def test_a_config_that_lies_about_heads_is_refused(tiny):
    small = pyprune.compact(tiny("bert"), CUTS["whole heads"])
    small.config.pyprune["layers"][0]["value"][0] -= 1
    with pytest.raises(InputError, match="project has the wrong shape"):
        pyprune.optimize(small)
