# SPDX-License-Identifier: Apache-2.0
"""Replayed blocks compute what the whole model computes, in every family and attention implementation."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import adapter_for
from pyprune.models.replay import quiet
from pyprune.models.streams import DualStream

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]


def _whole(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Inputs and outputs of every linear and block in a plain forward pass."""
    seen: dict[str, Any] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or name.endswith((".0", ".1", ".2")):

            def hook(_: nn.Module, args: Any, out: Any, name: str = name) -> None:
                seen[name] = (args[0] if args else None, out[0] if isinstance(out, tuple) else out)

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_streams_follow_both_models(tiny: Tiny, batches_of: Batches, kind: tuple[str, str], attention: str) -> None:
    dense = tiny(*kind, attention=attention)
    pruned = copy.deepcopy(dense)
    adapter = adapter_for(dense)
    for block in adapter.blocks(pruned):
        for linear in adapter.linears(block).values():
            linear.weight.data[:, ::2] = 0.0
    batches = batches_of()
    want_dense = [_whole(dense, batch) for batch in batches]
    want_pruned = [_whole(pruned, batch) for batch in batches]
    with quiet(dense), quiet(pruned), DualStream(dense, adapter, batches) as stream:
        for number, (old, new) in enumerate(zip(adapter.blocks(dense), adapter.blocks(pruned), strict=True)):
            prefix = adapter.block_name(dense, number)
            for index, group in enumerate(adapter.groups):
                for batch, (inputs, outputs, keep) in enumerate(stream.group(old, new, index)):
                    assert torch.equal(keep, batches[batch]["attention_mask"].bool())
                    assert list(outputs) == list(group)
                    for name in group:
                        got, want = inputs[keep], want_pruned[batch][f"{prefix}.{name}"][0]
                        torch.testing.assert_close(got, want.reshape(inputs.shape)[keep])
                        got, want = outputs[name], want_dense[batch][f"{prefix}.{name}"][1]
                        torch.testing.assert_close(got[keep], want.reshape(got.shape)[keep])
            stream.advance(new)
            for batch in range(len(batches)):
                torch.testing.assert_close(stream._stores["dense"].get(batch), want_dense[batch][prefix][1])
                torch.testing.assert_close(stream._stores["pruned"].get(batch), want_pruned[batch][prefix][1])


def test_skip_gives_the_bits_of_advance(tiny: Tiny, batches_of: Batches, family: str) -> None:
    model = tiny(family)
    adapter, batches = adapter_for(model), batches_of()
    block = adapter.blocks(model)[0]
    with quiet(model), DualStream(model, adapter, batches) as one, DualStream(model, adapter, batches) as other:
        for index in range(4):
            for _ in one.group(block, block, index):
                pass
        one.advance(block)
        other.skip(block, block)
        for name in ("dense", "pruned"):
            for batch in range(len(batches)):
                assert torch.equal(one._stores[name].get(batch), other._stores[name].get(batch))


def test_each_batch_keeps_its_own_mask(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert")
    adapter, batches = adapter_for(model), batches_of(6)
    # Same shape, different masks: reusing the mask of another batch would go unnoticed by shapes.
    batches = [batch for batch in batches if batch["input_ids"].shape == batches[0]["input_ids"].shape]
    assert len(batches) == 2
    assert not torch.equal(batches[0]["attention_mask"], batches[1]["attention_mask"])
    blocks = adapter.blocks(model)
    with quiet(model), DualStream(model, adapter, batches) as stream:
        for block in blocks:
            stream.skip(block, block)
        for index, batch in enumerate(batches):
            want = model.base_model(**batch).last_hidden_state  # type: ignore[operator, union-attr]
            torch.testing.assert_close(stream._stores["dense"].get(index), want)


def test_quiet_restores_everything(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert", chunk_size_feed_forward=2, attention="eager")
    model.train()
    model.config.output_attentions = True  # type: ignore[union-attr]
    adapter, batches = adapter_for(model), batches_of(2, tokens=12)
    batches = [{key: value[:, :10] for key, value in batch.items()} for batch in batches]
    with quiet(model), DualStream(model, adapter, batches) as stream:
        for index in range(4):
            for inputs, _, keep in stream.group(adapter.blocks(model)[0], adapter.blocks(model)[0], index):
                assert inputs.shape[:2] == keep.shape  # not a chunk of the tokens
        assert not torch.is_grad_enabled()
    assert model.training
    assert torch.is_grad_enabled()
    assert model.config.output_attentions is True  # type: ignore[union-attr]
    assert adapter.blocks(model)[0].chunk_size_feed_forward == 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_decoders_run_without_a_cache(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("llama", "lm")
    assert model.config.use_cache  # type: ignore[union-attr]
    with quiet(model), DualStream(model, adapter_for(model), batches_of(1)) as stream:
        assert stream._calls[0].kwargs.get("past_key_values") is None
    assert model.config.use_cache  # type: ignore[union-attr]


def test_batches_share_what_they_have_in_common(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("llama", "lm", attention="eager")
    full = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches_of(4)]
    with quiet(model), DualStream(model, adapter_for(model), [*full, *batches_of(4)]) as stream:
        masks = [call.kwargs["attention_mask"] for call in stream._calls]
        angles = [call.kwargs["position_embeddings"][0] for call in stream._calls]
        assert masks[0] is masks[3]  # batches 0 and 3 have one length
        assert angles[0] is angles[3] is angles[4]
        assert not torch.equal(masks[4], masks[0])
        assert not torch.equal(masks[4], masks[7])


def test_spilled_streams_hold_the_same_bits(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model = tiny("bert")
    adapter, batches = adapter_for(model), batches_of()
    block = adapter.blocks(model)[0]
    with (
        quiet(model),
        DualStream(model, adapter, batches) as memory,
        DualStream(model, adapter, batches, spill=tmp_path / "new" / "folder") as disk,
    ):
        for index in range(4):
            both = zip(memory.group(block, block, index), disk.group(block, block, index), strict=True)
            for (x, ys, _), (other_x, other_ys, _) in both:
                assert torch.equal(x, other_x)
                assert all(torch.equal(ys[name], other_ys[name]) for name in ys)
    # Unnamed files: nothing is left, not even after a crash.
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve space")
def test_full_spill_disk_is_named(
    tiny: Tiny, batches_of: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    model = tiny("bert")
    with quiet(model), pytest.raises(InputError, match=r"no room to spill[\s\S]*No space left"):
        DualStream(model, adapter_for(model), batches_of(), spill=tmp_path)
