# SPDX-License-Identifier: Apache-2.0
"""Gates against finite differences of the loss, streams against the whole model, removal against gates of zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import adapter_for
from pyprune.models.replay import quiet
from pyprune.models.sublayers import ResidualStreams, gated, sub_layers

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]

KINDS = [("bert", "classification"), ("roberta", "qa"), ("electra", "classification"), ("distilbert", "qa")]


def _loss(output: Any) -> Tensor:
    parts = [output.logits] if "logits" in output else [output.start_logits, output.end_logits]
    return torch.stack([part.double().square().mean() for part in parts]).sum()


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("block", [0, 1])
def test_gradients_of_gates_are_differences(tiny: Tiny, batches_of: Batches, kind: tuple[str, str], block: int) -> None:
    model = tiny(*kind)
    exact = copy.deepcopy(model).double()
    adapter, batches = adapter_for(model), batches_of(count=1)
    with quiet(model), quiet(exact):
        streams = ResidualStreams(model, adapter, batches)
        blocks = adapter.blocks(model)
        for below in blocks[:block]:
            streams.advance(below, below)
        parts = sub_layers(model, adapter)[2 * block :]
        with gated(parts) as gates:
            (output,) = list(streams.outputs(block))
            found = torch.autograd.grad(_loss(output), list(gates.values()))
        for part, gradient in zip(sub_layers(exact, adapter)[2 * block :], found, strict=True):
            assert gradient.shape == (part.units * part.width,)
            for unit in (0, part.units * part.width - 1):
                losses = []
                column = part.writes.weight[:, unit].clone()
                for change in (1e-4, -1e-4):
                    part.writes.weight[:, unit] = column * (1 + change)
                    losses.append(float(_loss(exact(**batches[0]))))
                part.writes.weight[:, unit] = column
                wanted = (losses[0] - losses[1]) / 2e-4
                assert float(gradient[unit]) == pytest.approx(wanted, rel=1e-4, abs=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_a_classifier_reads_the_first_token_only(tiny: Tiny, batches_of: Batches, family: str) -> None:
    model = tiny(family, "classification")
    adapter, batches = adapter_for(model), batches_of(count=2)
    parts = sub_layers(model, adapter)
    found: list[list[Tensor]] = []
    with quiet(model):
        streams = ResidualStreams(model, adapter, batches)
        for first in (False, True):
            seen: list[Tensor] = []
            above = parts[2:] if first else []
            with gated(parts, lambda _, inputs, seen=seen: seen.append(inputs), first_only=above) as gates:
                for output in streams.outputs(0, first_only=first):
                    seen.append(output.logits.detach())
                    seen += torch.autograd.grad(_loss(output), list(gates.values()))
            found.append(seen)
    assert len(found[0]) == 2 * (len(parts) + 1 + len(parts))
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_gates_see_what_the_linears_read(tiny: Tiny, batches_of: Batches, kind: tuple[str, str]) -> None:
    model = tiny(*kind)
    adapter, batches = adapter_for(model), batches_of(count=1)
    seen: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    with quiet(model):
        parts = sub_layers(model, adapter)
        names = {name: module for name, module in model.named_modules()}
        handles = [
            names[part.name].register_forward_hook(lambda _, args, out, name=part.name: read.update({name: args[0]}))
            for part in parts
        ]
        with gated(parts, lambda part, inputs: seen.update({part.name: inputs})):
            model(**batches[0])
    for handle in handles:
        handle.remove()
    assert [part.name for part in parts] == list(seen)
    assert all(torch.equal(seen[name], read[name]) for name in seen)
    assert [(part.kind, part.units, part.width) for part in parts] == [("heads", 4, 8), ("neurons", 48, 1)] * 2


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_targets_mend_what_the_residual_lacks(
    tiny: Tiny, batches_of: Batches, kind: tuple[str, str], attention: str
) -> None:
    teacher = tiny(*kind, attention=attention)
    student = copy.deepcopy(teacher)
    adapter, batches = adapter_for(teacher), batches_of()
    sub_layers(student, adapter)[0].remove(torch.tensor([True, False, False, True]))
    with quiet(teacher), quiet(student):
        streams = ResidualStreams(teacher, adapter, batches)
        old, new = adapter.blocks(teacher), adapter.blocks(student)
        streams.advance(old[0], new[0])
        for half in (0, 1):
            norm = f"{adapter.block_name(teacher, 1)}.{adapter.norms[half]}"
            part = sub_layers(student, adapter)[2 + half]
            for batch, (inputs, targets, keep) in zip(batches, streams.half(old[1], new[1], half), strict=True):
                wanted, ours = (_input_of(model, norm, batch) for model in (teacher, student))
                written = part.writes(inputs)
                assert torch.equal(keep, batch["attention_mask"].bool())
                # With the target in place of what is written, the student's norm reads what the teacher's reads.
                mended = ours - written + targets
                assert torch.allclose(mended[keep], wanted[keep], rtol=1e-4, atol=1e-4)
                assert not torch.allclose(ours[keep], wanted[keep], rtol=1e-2, atol=1e-2)


def _input_of(model: nn.Module, name: str, batch: dict[str, Tensor]) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**batch)
    handle.remove()
    return seen[0]


def test_removed_units_are_gates_of_zero(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert")
    adapter, batch = adapter_for(model), batches_of(count=1)[0]
    parts = sub_layers(model, adapter)
    generator = torch.Generator().manual_seed(3)
    masks = [torch.rand(part.units, generator=generator) < 0.5 for part in parts]
    with quiet(model):
        gates = [part.inputs(mask).float() for part, mask in zip(parts, masks, strict=True)]
        handles = [
            part.writes.register_forward_pre_hook(lambda _, args, zeros=zeros: (args[0] * zeros,))
            for part, zeros in zip(parts, gates, strict=True)
        ]
        wanted = model(**batch).logits
        for handle in handles:
            handle.remove()
        for part, mask in zip(parts, masks, strict=True):
            part.remove(mask)
        got = model(**batch).logits
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6)
    for part, mask in zip(parts, masks, strict=True):
        gone = ~part.inputs(mask)
        assert all(not bool(linear.bias[gone].any()) and not bool(linear.weight[gone].any()) for linear in part.reads)


def test_decoders_are_refused(tiny: Tiny) -> None:
    model = tiny("llama", "lm")
    with pytest.raises(InputError, match="units of llama models"):
        sub_layers(model, adapter_for(model))
