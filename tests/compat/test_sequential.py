# SPDX-License-Identifier: Apache-2.0
"""Decoders pruned block by block with the drop-in class and hooks, as scripts around it do."""

from __future__ import annotations

import copy

import published
import pytest
import torch
from torch import nn

from pyprune.compat.sparsegpt import SparseGPT

SAMPLES, TOKENS = 24, 20


def decoder(family):
    import transformers

    sizes = {"vocab_size": 90, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family == "opt":
        config = transformers.OPTConfig(**sizes, ffn_dim=96, word_embed_proj_dim=64, max_position_embeddings=32)
        model = transformers.OPTForCausalLM(config)
    else:
        config = transformers.LlamaConfig(**sizes, intermediate_size=96, max_position_embeddings=32)
        model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / parameter.shape[1] ** 0.5)
    return model.eval()


def blocks_of(model):
    return model.model.decoder.layers if hasattr(model.model, "decoder") else model.model.layers


def recorder(into):
    return lambda _, inp, out: into.append((inp[0].data, out.data))


def sequential(model, samples, pruned):
    """Prune block after block: ``pruned(inputs, linear)`` is called with all that each linear of a block has read."""
    for block in blocks_of(model):
        linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        read = {name: [] for name in linears}
        handles = [module.register_forward_hook(recorder(read[name])) for name, module in linears.items()]
        for sample in samples:
            model(sample)
        for handle in handles:
            handle.remove()
        for name, module in linears.items():
            pruned(read[name], module)


@pytest.mark.parametrize(
    "settings", [{"sparsity": 0.5}, {"sparsity": 0.7, "blocksize": 32}, {"groups": (2, 4)}], ids=str
)
@pytest.mark.parametrize("family", ["opt", "llama"])
@torch.no_grad()
def test_block_by_block(family, settings, generator):
    model = decoder(family)
    samples = [torch.randint(0, 90, (1, TOKENS), generator=generator) for _ in range(SAMPLES)]
    sparsity, groups = settings.get("sparsity", 0.5), settings.get("groups")
    block = settings.get("blocksize", 128)
    seen = []

    def prune(read, linear):
        dense = linear.weight.detach().clone()
        pruner = SparseGPT(linear)
        for inp, out in read:
            pruner.add_batch(inp, out)
        pruner.fasterprune(sparsity, *(groups or (0, 0)), percdamp=0.01, blocksize=block)
        solution = pruner.solution
        pruner.free()
        H = published.hessian([inp.reshape(-1, inp.shape[-1]) for inp, _ in read], SAMPLES)
        wanted, public = (
            published.error(
                published.sparsegpt(dense, H, sparsity, groups=groups, block=block, one_extra=extra), dense, H
            )
            for extra in (False, groups is None)
        )
        zeros = int((linear.weight == 0).sum())
        assert zeros == linear.weight.numel() - int(solution.mask.sum())
        assert zeros == round(sparsity * linear.weight.numel())
        error = published.error(linear.weight, dense, H)
        assert error == pytest.approx(wanted, rel=1e-3)
        assert error == pytest.approx(solution.error, rel=1e-3)
        seen.append((error, public))

    before = copy.deepcopy(model.state_dict())
    sequential(model, samples, prune)
    assert len(seen) == (12 if family == "opt" else 14)
    ours, theirs = (sum(errors) for errors in zip(*seen, strict=True))
    assert 0.0 < ours <= 1.001 * theirs < 0.3 * len(seen)
    pruned = {f"{name}.weight" for name, module in blocks_of(model).named_modules() if isinstance(module, nn.Linear)}
    for name, value in model.state_dict().items():
        changed = any(name.endswith(f"layers.{suffix}") for suffix in pruned)
        assert torch.equal(value, before[name]) != changed, name
    assert bool(torch.isfinite(model(samples[0]).logits).all())
