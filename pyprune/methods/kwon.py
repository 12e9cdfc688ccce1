# SPDX-License-Identifier: Apache-2.0
"""Heads and neurons by Fisher information, in one shot (Kwon et al., NeurIPS 2022, arXiv 2204.09656).

Mask search: the largest sum of squared gate gradients that the budget allows. Rearrangement: within each layer, units
change places so that the gradient of all removed together is small. Rescaling: one factor for every kept unit, by least
squares against a model pruned half as far.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.methods.objectives import Predictions
from pyprune.methods.unit_run import OUT, UnitRun, measure
from pyprune.models.sublayers import ResidualStreams, SubLayer, sub_layers
from pyprune.solvers import LayerProblem
from pyprune.stats import Moments, grouped

_LARGEST_SCALE = 10.0  # beyond it the published procedure stops


@dataclass(frozen=True)
class Kwon:
    """Settings of the method of Kwon et al.

    Attributes
    ----------
    labels : {"drawn", "data"}
        What the loss is taken against: labels drawn from the model's own predictions, so that the data needs none and
        squared gradients are Fisher information; or those of the data, as published.
    rearrange, rescale : bool
        Whether these two steps are made.
    """

    labels: str = "drawn"
    rearrange: bool = True
    rescale: bool = True

    name = "kwon"
    line = "heads and neurons by Fisher information, all at once, what is left rescaled (Kwon et al. 2022)"
    resumes = False

    def __post_init__(self) -> None:
        if self.labels not in ("drawn", "data"):
            raise InputError(f"unknown labels {self.labels!r}", hint="drawn or data")

    @property
    def needs_labels(self) -> bool:
        """Whether calibration rows have to come with labels."""
        return self.labels == "data"

    def run(self, run: UnitRun) -> None:
        """Prune the run's model in place, all at once."""
        run.progress.start(len(run.calibration.batches) + len(run.parts), "embedding the calibration text")
        streams = run.streams()
        shares = (run.share, math.sqrt(run.share))
        masks, halfway = fisher_masks(run, streams, shares, labels=self.labels, rearrange=self.rearrange)
        for part, kept, more in zip(run.parts, masks, self._scaled(run, streams, masks, halfway), strict=True):
            run.record(part, kept, **more)

    def _scaled(
        self, run: UnitRun, streams: ResidualStreams, masks: list[Tensor], halfway: list[Tensor]
    ) -> Iterator[dict[str, Any]]:
        """Cut all; then what a record says of each sub-layer, once that is scaled."""
        teacher = copy.deepcopy(run.model) if self.rescale else run.model
        for part, kept in zip(run.parts, masks, strict=True):
            part.remove(kept)
        if not self.rescale:
            yield from ({} for _ in run.parts)
            return
        for part, kept in zip(sub_layers(teacher, run.adapter), halfway, strict=True):
            part.remove(kept)
        stopped = False
        blocks = zip(run.adapter.blocks(teacher), run.adapter.blocks(run.model), strict=True)
        for number, (old, new) in enumerate(blocks):
            for part in run.parts[2 * number : 2 * number + 2]:
                found: dict[str, Any] = {}
                # Below the first sub-layer there is no damage, and its heads are left as they are, as published.
                if not stopped and part.index > 0 and bool(masks[part.index].any()):
                    with run.timed("rescale"):
                        found = _rescale(run, streams, old, new, part, masks[part.index])
                    stopped = not found
                yield found
            if not stopped and part is not run.parts[-1]:
                with run.timed("rescale"):
                    streams.advance(old, new)


def fisher_masks(
    run: UnitRun, streams: ResidualStreams, shares: Sequence[float], *, labels: str = "drawn", rearrange: bool = True
) -> list[list[Tensor]]:
    """Masks of all sub-layers for several parts of the dense cost, by Fisher information of the model as it is.

    Parameters
    ----------
    run, streams
    shares : sequence of float
        Parts of the dense encoder's cost that may be left.
    labels, rearrange
        As in :class:`Kwon`.

    Returns
    -------
    list of list of Tensor of bool
        For every share the masks of all sub-layers, ``[units]`` each.
    """

    def loss(number: int, predictions: Predictions) -> Tensor:
        if labels == "drawn":
            return run.objective.sampled(predictions, run.generator)
        return run.objective.against(predictions, run.calibration.labels[number])

    with run.timed("measure"):
        measured = measure(run, streams, run.parts, loss, store=True)
    run.notes += measured.notes
    with run.timed("search"):
        # Of whole heads and of neurons, [batches, units] for every sub-layer.
        vectors = [measured.gradients.vectors(part.name).double().cpu() for part in run.parts]
        gradients = [grouped(rows, part.width) for rows, part in zip(vectors, run.parts, strict=True)]
        found = [_search(run, gradients, run.budget(share)) for share in shares]
        if not rearrange:
            return found
        return [[rearranged(mask, rows) for mask, rows in zip(masks, gradients, strict=True)] for masks in found]


def _search(run: UnitRun, gradients: list[Tensor], budget: int) -> list[Tensor]:
    importance = [rows.square().sum(dim=0) for rows in gradients]
    return run.costs.by_sum(importance, [part.half for part in run.parts], budget)


def rearranged(kept: Tensor, gradients: Tensor) -> Tensor:
    """Units of one layer in other places, as many as before, so that those removed matter less together.

    For each kept unit in turn, the least important first, it joins the removed ones, and of these goes back the one
    without which ``‖Σ_removed g‖²`` is smallest: the Fisher information of a layer's units as a block. As published,
    with the products of all pairs computed once: ``O(units²)`` steps and memory, whatever the number of batches.

    Parameters
    ----------
    kept : Tensor of bool, shape (units,)
    gradients : Tensor, shape (batches, units)

    Returns
    -------
    Tensor of bool, shape (units,)
    """
    order = torch.argsort(gradients.square().sum(dim=0), stable=True)
    order = torch.cat([order[~kept[order]], order[kept[order]]])
    count = int((~kept).sum())
    if not count:
        return kept
    # With t = Σ_removed g, putting u back changes ‖t‖² by ‖u‖² − 2⟨t, u⟩. Each step adds one row of products to it and
    # takes one away. In this order of the units a tie goes to the one that has been removed for longer.
    rows = gradients[:, order].double()
    products = (2.0 * rows.T @ rows).numpy()
    change = 0.5 * products.diagonal() - products[:count].sum(axis=0)
    away = np.arange(len(order)) >= count  # not among the removed ones
    for unit in range(count, len(order)):
        change -= products[unit]
        away[unit] = False
        back = int(np.where(away, np.inf, change).argmin())
        change += products[back]
        away[back] = True
    found = torch.zeros_like(kept)
    found[order[torch.from_numpy(away)]] = True
    return found


def _rescale(
    run: UnitRun, streams: ResidualStreams, teacher: nn.Module, student: nn.Module, part: SubLayer, kept: Tensor
) -> dict[str, Any]:
    """Scale what is left of a sub-layer; nothing, where a factor is so large that the published procedure stops."""
    moments = _moments(run, streams, teacher, student, part)
    scales, shift = unit_scales(part, moments, kept)
    largest = float(scales.abs().max())
    if largest > _LARGEST_SCALE:
        run.note(f"rescaling stopped at {part.name}: a factor of {largest:.3g}")
        return {}
    with torch.no_grad():
        part.writes.weight.mul_(scales.repeat_interleave(part.width))
        part.writes.bias.add_(shift)
    error = moments.error(OUT, part.writes.weight, part.writes.bias)
    return {"error": error, "scales": [float(scales.min()), float(scales.max())]}


def _moments(run: UnitRun, streams: ResidualStreams, teacher: nn.Module, student: nn.Module, part: SubLayer) -> Moments:
    linear = part.writes
    first_only = part.index == len(run.parts) - 1 and run.objective.first_only
    moments = Moments(linear.in_features, {OUT: linear.out_features}, name=part.name, device=linear.weight.device)
    for inputs, targets, keep in streams.half(teacher, student, part.half):
        rows = slice(0, 1) if first_only else slice(None)
        moments.add(inputs[:, rows], {OUT: targets[:, rows]}, keep[:, rows])
    return moments.finish()


def unit_scales(part: SubLayer, moments: Moments, kept: Tensor) -> tuple[Tensor, float]:
    """Factors of a sub-layer's kept units that fit its target best, and for heads a shift of all outputs.

    ``min Σ_tokens ‖y − b − Σ_u s_u h_u(x) − t‖² + ‖s − 1‖² + t²`` with ``h_u`` what unit ``u`` writes. All of it
    follows from moments: ``⟨h_u, h_v⟩`` is the sum over the channels of both of ``E[x xᵀ] ∘ WᵀW``.

    Parameters
    ----------
    part : SubLayer
        Already cut.
    moments : Moments
        Of its inputs and target.
    kept : Tensor of bool, shape (units,)
        At least one.

    Returns
    -------
    scales : Tensor, shape (units,)
        In the weight's type; 1 where the unit is gone.
    shift : float
        0 for neurons.
    """
    weight = part.writes.weight.detach().double()
    bias = part.writes.bias.detach().double()
    outputs = float(weight.shape[0])
    products = grouped(moments.gram * (weight.T @ weight), part.width)
    system = grouped(products.T.contiguous(), part.width)
    cross = moments.cross(OUT) - torch.outer(bias, moments.mean)
    target = grouped((weight * cross).sum(dim=0), part.width)
    where = torch.nonzero(kept)[:, 0].to(weight.device)
    system, target, start = system[where][:, where], target[where], torch.ones_like(target[where])
    if part.half == 0:
        ones = grouped(weight.sum(dim=0) * moments.mean, part.width)[where]
        rest = float((moments.target_mean(OUT) - bias).sum())
        system = torch.cat([system, ones[None]])
        system = torch.cat([system, torch.cat([ones, ones.new_tensor([outputs])])[:, None]], dim=1)
        target, start = torch.cat([target, target.new_tensor([rest])]), torch.cat([start, start.new_zeros(1)])
    mean = float(system.diagonal().mean())
    if mean <= 0.0:
        return torch.ones_like(part.writes.weight[0, : part.units]), 0.0
    problem = LayerProblem(start[None], 0.5 * (system + system.T), target[None], name=part.name)
    solution = problem.start(1.0 / (moments.tokens * mean))[0]
    scales = torch.ones(part.units, dtype=torch.float64, device=weight.device)
    scales[where] = solution[: len(where)]
    return scales.to(part.writes.weight.dtype), float(solution[-1]) if part.half == 0 else 0.0
