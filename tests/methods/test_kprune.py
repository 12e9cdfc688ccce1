# SPDX-License-Identifier: Apache-2.0
"""K-prune against the paper's loop written out on whole models, in float64 and without moments or streams."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyprune.methods import KPrune, prune_units
from pyprune.models import adapter_for

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]

HEADS, WIDTH, HIDDEN, NEURONS = 4, 8, 32, 48


class Published:
    """Park et al., algorithm 1, for a tiny BERT: every pass is one of the whole model."""

    def __init__(self, model: nn.Module, batches: list[dict[str, Tensor]], settings: KPrune) -> None:
        self.dense = copy.deepcopy(model).double()
        self.model = copy.deepcopy(self.dense)
        self.batches, self.settings = batches, settings
        self.sentences = sum(len(batch["input_ids"]) for batch in batches)
        self.tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)

    def parts(self, model: Any) -> list[tuple[nn.Module, nn.Module, list[nn.Linear]]]:
        """For every sub-layer: its output linear, its norm, the linears that read its input."""
        found: list[tuple[nn.Module, nn.Module, list[nn.Linear]]] = []
        for layer in model.bert.encoder.layer:
            own = layer.attention.self
            out = layer.attention.output
            found.append((out.dense, out.LayerNorm, [own.query, own.key, own.value]))
            found.append((layer.output.dense, layer.output.LayerNorm, [layer.intermediate.dense]))
        return found

    def inputs(self, model: nn.Module, module: nn.Module) -> Tensor:
        """What a module reads, real tokens of all batches."""
        rows: list[Tensor] = []
        for batch in self.batches:
            seen: list[Tensor] = []
            handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                model(**batch)
            handle.remove()
            rows.append(seen[0][batch["attention_mask"].bool()])
        return torch.cat(rows)

    def squares(self, index: int) -> Tensor:
        """``Σ_batches g²`` of channel gates of one sub-layer."""
        total = 0.0
        temperature = self.settings.temperature
        for batch in self.batches:
            out = self.parts(self.model)[index][0]
            gate = torch.ones(out.in_features, dtype=torch.float64, requires_grad=True)
            handle = out.register_forward_pre_hook(lambda _, args, gate=gate: (args[0] * gate,))
            student = (self.model(**batch).logits / temperature).log_softmax(1)
            handle.remove()
            with torch.no_grad():
                teacher = (self.dense(**batch).logits / temperature).softmax(1)
            loss = temperature**2 * functional.kl_div(student, teacher, reduction="sum") / 32
            total = total + torch.autograd.grad(loss, gate)[0] ** 2
        return total

    def scores(self, index: int, first: bool) -> Tensor:
        out = self.parts(self.model)[index][0]
        energy = (self.inputs(self.model, out) ** 2).sum(0) / self.tokens * (out.weight**2).mean(0)
        lost = 0.0 if first else 0.5 * self.squares(index) / self.sentences
        score = lost + self.settings.energy_weight * energy
        return (score if index % 2 else WIDTH * score.reshape(HEADS, WIDTH).mean(1)).detach()

    def run(self, share: float) -> list[list[bool]]:
        length = self.tokens / self.sentences
        costs = [8 * HIDDEN * WIDTH * length + 4 * WIDTH * length**2, 4 * HIDDEN * length]
        costs = [float(round(cost)) for cost in costs]
        budget = share * 2 * (HEADS * costs[0] + NEURONS * costs[1])
        masks = []
        for index in range(4):
            ranked = [
                (float(score) / costs[above % 2], above, unit)
                for above in range(index, 4)
                for unit, score in enumerate(self.scores(above, first=index == 0))
            ]
            left = sum(costs[above % 2] for _, above, _ in ranked)
            alive = set(ranked)
            for entry in sorted(ranked):
                if left <= budget:
                    break
                alive.discard(entry)
                left -= costs[entry[1] % 2]
            units = HEADS if index % 2 == 0 else NEURONS
            mask = [any(a == index and u == unit for _, a, u in alive) for unit in range(units)]
            budget -= costs[index % 2] * sum(mask)
            self.apply(index, torch.tensor(mask).repeat_interleave(1 if index % 2 else WIDTH))
            masks.append(mask)
        return masks

    @torch.no_grad()
    def apply(self, index: int, columns: Tensor) -> None:
        out, _, reads = self.parts(self.model)[index]
        dense_norm = self.parts(self.dense)[index][1]
        target = self.inputs(self.dense, dense_norm) - self.inputs(self.model, reads[0])
        design = self.inputs(self.model, out)[:, columns]
        design = torch.cat([design, torch.ones(len(design), 1, dtype=torch.float64)], dim=1)
        solution = torch.linalg.lstsq(design, target, driver="gelsd").solution
        out.weight.zero_()
        out.weight[:, columns] = solution[:-1].T
        out.bias.copy_(solution[-1])


@pytest.mark.parametrize("share", [0.6, 0.3])
def test_masks_and_weights_are_those_of_the_paper(tiny: Tiny, batches_of: Batches, share: float) -> None:
    model = tiny("bert")
    batches = batches_of(count=4, rows=16)
    # An undamped fit, as published; more than enough tokens for it.
    settings = KPrune(damping=0.0)
    reference = Published(model, batches, settings)
    masks = reference.run(share)
    result = prune_units(model, batches, method=settings, target_flops=share)
    heads, neurons = (mask.tolist() for mask in result.units.masks())
    assert [heads[0], neurons[0], heads[1], neurons[1]] == masks
    for batch in batches:
        with torch.no_grad():
            wanted, got = reference.model(**batch).logits, result.model(**batch).logits
        assert torch.allclose(got.double(), wanted, atol=2e-4)


def test_labels_can_be_drawn_for_the_first_sub_layer(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert")
    # Without the energies all units of the first measurement are equal; then the first ones stay.
    settings = [KPrune(energy_weight=0.0, sample_first=drawn) for drawn in (False, True, True)]
    results = [prune_units(model, batches_of(count=2), method=method, target_flops=0.2) for method in settings]
    none, first, second = (result.units for result in results)
    assert none.layers[0].heads == (0, 1)
    assert first.layers[0].heads != (0, 1)
    assert first == second


def test_dead_inputs_and_few_tokens_are_solved(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert")
    linear = adapter_for(model).linears(adapter_for(model).blocks(model)[0])["intermediate.dense"]
    with torch.no_grad():
        # Neurons that never vary, twins, and fewer tokens than neurons: singular without a ridge.
        linear.weight[:3] = 0.0
        linear.weight[4] = linear.weight[3]
        linear.bias[4] = linear.bias[3]
    result = prune_units(model, batches_of(count=1, rows=2), method=KPrune(damping=0.0), target_flops=0.9)
    assert all(bool(torch.isfinite(value).all()) for value in result.model.state_dict().values())
    assert any("damping raised" in note for layer in result.report["layers"] for note in layer["notes"])
