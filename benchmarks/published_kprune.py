# SPDX-License-Identifier: Apache-2.0
"""The algorithm of K-prune's released code, step by step and in our own words, timed by stage: what ours is beside.

What costs it time is done as there (Park et al., ICLR 2024, and their code): batches of 32 sentences in the order
drawn, padded to their longest; for every sub-layer a forward pass from the embeddings up and a backward pass, through
gates on that sub-layer and all above, and on through what was cut before, whose new weights ask for gradients; copies
of every gated input; a threshold raised step by step, all units compared at each; normal equations in float32 and
torch's lstsq with its default driver; weights cut out at once. Classifiers of BERT's kind only.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TEMPERATURE, ENERGY_WEIGHT = 2.0, 2.5e-4


class PublishedKPrune:
    """One run.

    Parameters
    ----------
    model : nn.Module
        A BERT for sequence classification in float32; it is cut in place.
    batches : sequence of dict of str to Tensor
    length : float
        Mean tokens of a sentence, for FLOPs.

    Attributes
    ----------
    seconds : dict of str to float
        By stage: ``pass`` (forward, backward and scores), ``search``, ``products``, ``lstsq``, ``cut``.
    heads, neurons : list of int
        Kept, layer by layer.
    failed : int
        Systems that lstsq did not solve; the weights then stay as they were, as published.
    """

    def __init__(self, model: Any, batches: Sequence[dict[str, Tensor]], length: float) -> None:
        self.model, self.batches = model.requires_grad_(False).eval(), batches
        self.layers = list(model.bert.encoder.layer)
        config = model.config
        self.width = config.hidden_size // config.num_attention_heads
        self.all_heads, self.all_neurons = config.num_attention_heads, config.intermediate_size
        self.costs = (
            8 * config.hidden_size * self.width * length + 4 * length**2 * self.width,
            4 * config.hidden_size * length,
        )
        self.seconds: dict[str, float] = defaultdict(float)
        self.heads: list[int] = []
        self.neurons: list[int] = []
        self.failed = 0
        self._targets: dict[int, list[Tensor]] = {}
        self._labels: list[Tensor] = []

    def run(self, share: float) -> None:
        """Prune to a share of the FLOPs."""
        count = len(self.layers)
        budget = share * count * (self.all_heads * self.costs[0] + self.all_neurons * self.costs[1])
        for target in range(2 * count):
            half, number = target % 2, target // 2
            with self._timed("pass"):
                scores, features, inputs = self._measure(target)
            with self._timed("search"):
                kept = self._search(scores, target, budget)
            columns = kept if half else kept.repeat_interleave(self.width)
            weight = None
            if bool(kept.any()):
                weight = self._solve(number, half, columns, features, inputs, self._targets[target])
            with self._timed("cut"):
                self._cut(number, half, columns, weight)
            (self.neurons if half else self.heads).append(int(kept.sum()))
            budget -= float(kept.sum()) * self.costs[half]

    def _linears(self, number: int, half: int) -> tuple[nn.Module, nn.Module]:
        layer = self.layers[number]
        if half:
            return layer.intermediate.dense, layer.output.dense
        return layer.attention.self.query, layer.attention.output.dense

    def _measure(self, target: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Scores of the target and all above, and features and inputs of the target's tokens."""
        above = range(target, 2 * len(self.layers))
        gates = {s: torch.ones(self.all_neurons if s % 2 else self.all_heads * self.width) for s in above}
        predicted = {s: torch.zeros_like(gates[s]) for s in above}
        written = {s: torch.zeros_like(gates[s]) for s in above}
        seen: dict[int, Tensor] = {}
        dense: dict[int, Tensor] = {}
        features, inputs, handles = [], [], []

        def masked(s: int) -> Any:
            return lambda _, args: (gates[s] * args[0],)

        def copied(store: dict[int, Tensor], s: int) -> Any:
            return lambda module, args, output: store.__setitem__(s, args[0].clone().detach())

        def added(s: int) -> Any:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                dense[s].add_(output.detach())

            return hook

        entered: dict[int, Tensor] = {}
        for s in above:
            gates[s].requires_grad_()
            first, last = self._linears(s // 2, s % 2)
            if s == target:
                handles.append(first.register_forward_hook(copied(entered, s)))
            if target == 0:
                handles.append(first.register_forward_hook(copied(dense, s)))
                handles.append(last.register_forward_hook(added(s)))
                self._targets[s] = []
            handles.append(last.register_forward_hook(copied(seen, s)))
            handles.append(last.register_forward_pre_hook(masked(s)))
        sentences = tokens = 0
        for number, batch in enumerate(self.batches):
            keep = batch["attention_mask"].bool()
            sentences, tokens = sentences + len(keep), tokens + int(keep.sum())
            logits = self.model(**batch).logits / TEMPERATURE
            if target == 0:
                self._labels.append(logits.detach().softmax(dim=1))
            loss = functional.kl_div(logits.log_softmax(dim=1), self._labels[number], reduction="batchmean")
            (loss * TEMPERATURE**2).backward()
            for s in above:
                real = seen.pop(s)[keep]
                weight: Any = self._linears(s // 2, s % 2)[1].weight
                written[s] += real.square().sum(dim=0) * weight.detach().square().mean(dim=0)
                gradient = gates[s].grad
                assert gradient is not None
                predicted[s] += 0.5 * gradient.square()
                gates[s].grad = None
                if target == 0:
                    self._targets[s].append(dense.pop(s)[keep])
                if s == target:
                    features.append(real)
                    inputs.append(entered.pop(s)[keep])
        for handle in handles:
            handle.remove()
        for parameter in self.model.parameters():
            parameter.grad = None
        scores = []
        for s in above:
            score = ENERGY_WEIGHT * written[s] / tokens + predicted[s] / sentences
            if s % 2 == 0:
                score = self.width * score.view(-1, self.width).mean(dim=1)
            scores.append(score.detach() / self.costs[s % 2])
        return scores, features, inputs

    def _search(self, scores: Sequence[Tensor], target: int, budget: float) -> Tensor:
        halves = (
            [torch.cat([score for s, score in enumerate(scores, target) if s % 2 == half]) for half in (0, 1)]
            if len(scores) > 1
            else [scores[0][:0], scores[0]]
        )
        ordered = torch.cat(halves).sort().values
        threshold = ordered[0]
        for threshold in ordered:
            spent = sum(cost * (half > threshold).sum() for cost, half in zip(self.costs, halves, strict=True))
            if spent < budget:
                break
        return scores[0] > threshold

    def _solve(
        self,
        number: int,
        half: int,
        columns: Tensor,
        features: Sequence[Tensor],
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
    ) -> Tensor | None:
        with self._timed("products"):
            kept = torch.cat(list(features))[:, columns]
            bias: Any = self._linears(number, half)[1].bias
            rest = torch.cat(list(targets)) - torch.cat(list(inputs)) - bias
            square, right = kept.T @ kept, kept.T @ rest
        with self._timed("lstsq"):
            try:
                return torch.linalg.lstsq(square, right, rcond=0.0).solution.T.contiguous()
            except RuntimeError:
                self.failed += 1
                return None

    @torch.no_grad()
    def _cut(self, number: int, half: int, columns: Tensor, weight: Tensor | None) -> None:
        layer = self.layers[number]
        if not bool(columns.any()):
            if half:
                layer.feed_forward_chunk = layer.output.LayerNorm
            else:
                norm = layer.attention.output.LayerNorm
                layer.attention.forward = lambda hidden_states, *rest, **named: (norm(hidden_states), None)
            return
        if half and bool(columns.all()):
            return
        if half:
            layer.intermediate.dense = _narrow(layer.intermediate.dense, columns, rows=True)
            layer.output.dense = _narrow(layer.output.dense, columns, rows=False)
            last = layer.output.dense
        else:
            attention = layer.attention.self
            for name in ("query", "key", "value"):
                setattr(attention, name, _narrow(getattr(attention, name), columns, rows=True))
            last = layer.attention.output.dense = _narrow(layer.attention.output.dense, columns, rows=False)
            attention.num_attention_heads = int(columns.sum()) // self.width
            attention.all_head_size = int(columns.sum())
        if weight is not None:
            last.weight.copy_(weight)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - begin


def _narrow(linear: nn.Linear, kept: Tensor, *, rows: bool) -> nn.Linear:
    weight = linear.weight[kept] if rows else linear.weight[:, kept]
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight = nn.Parameter(weight.clone())  # asks for a gradient, as published
    made.bias = nn.Parameter((linear.bias[kept] if rows else linear.bias).clone())
    return made
