# SPDX-License-Identifier: Apache-2.0
"""Neurons and channels of heads, or whole heads, go while an encoder is trained (GRAIN: Yang et al., ACL 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import adapter_for
from pyprune.patterns import kept_count
from pyprune.stats import GateGradients, grouped
from pyprune.structured.cutting import weight_masks
from pyprune.training.distillation import Parts, PruningLoss
from pyprune.training.gating import SITES, UnitGates
from pyprune.training.masks import unwrapped
from pyprune.training.processes import average_over_processes, is_parallel, processes
from pyprune.training.pruning import State
from pyprune.training.schedules import Schedule
from pyprune.training.shrinking import clear, cut, cut_masks, grow
from pyprune.units import Units

_WORTH_CUTTING = 0.75  # what is left of what a model holds: less often, and cutting would take what it saves
Kind = Literal["channels", "heads"]


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    heads: int
    width: int
    neurons: int
    layers: int


class UnitPruning:
    """Units go by the moving average of their gates' gradients, in one ranking of all layers and kinds.

    ``s ← β s + (1 − β) |∂L/∂m_u| tanh(D/α)``: ``D`` is the part of the head's value channels that is left, so that
    heads which have lost much lose the rest (StructReg; of value channels only). A head without value channels loses
    its query channels too. The attention keeps the scale of its dense width. Whole heads have one gate, whose gradient
    is the sum of those of its value channels, and are ranked by score per parameter.

    In several processes (``DistributedDataParallel``) gradients of gates are averaged before they are scored, so that
    all cut the same units: those of one process with all batches, if each loss is a mean over as much.

    Parameters
    ----------
    schedule : Schedule or callable
        Of the part of all units' parameters that is gone; or what makes one of the number of steps.
    loss : PruningLoss, optional
        Scores are made of the gradients of its predictions alone (gradient separation), which takes a backward pass of
        its own, without weights, where the loss has hidden states or attentions too. None: of those of the whole loss.
    unit : {"channels", "heads"}
        Query and value channels on their own, or whole heads; neurons beside both.
    decay : float
        ``β``.
    regularisation : float
        ``α``; 0: none.
    every : int
        Steps from one measurement of gradients to the next. The moving average forgets as fast as if it were made at
        every step; the pass of its own that gradient separation takes is made so much less often.

    shrink : bool
        Take what is gone out of the model's linears until :meth:`end`, whenever a quarter of what they hold is gone and
        once the schedule has ended, so that steps get faster. In one process; without a loss of attentions.

    Attributes
    ----------
    masks : dict of str to Tensor of bool
        ``"neurons"`` ``[layers, neurons]``, ``"query"`` and ``"value"`` ``[layers, heads, width]``, from ``begin`` on.
    statistics : GateGradients
    """

    name = "units"

    def __init__(
        self,
        schedule: Schedule | Callable[[int], Schedule],
        *,
        loss: PruningLoss | None = None,
        unit: Kind = "channels",
        decay: float = 0.998,
        regularisation: float = 0.3,
        every: int = 1,
        shrink: bool = False,
    ) -> None:
        if unit not in ("channels", "heads"):
            raise InputError(f"unknown unit {unit!r}", hint='"channels" or "heads"')
        if not regularisation >= 0:
            raise InputError("regularisation is at least 0", seen=str(regularisation))
        if every < 1:
            raise InputError("gradients are measured every step or less often", seen=str(every))
        self._given, self._loss, self.unit = schedule, loss, unit
        self.decay, self.regularisation, self.every = decay, regularisation, every
        self.shrink = shrink
        self.masks: dict[str, Tensor] = {}
        self._held: Units | None = None  # what is left in a model that has been cut
        self._scale = 1.0
        self._gates: UnitGates | None = None

    def settings(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint has to agree with."""
        names = ("name", "unit", "decay", "regularisation", "every", "shrink")
        found = {name: getattr(self, name) for name in names}
        return found | {"schedule": repr(self._given), "separate": self._loss is not None}

    def begin(self, model: nn.Module, steps: int, state: State | None = None) -> None:
        """Take hold of an encoder, from its first step or from a state on.

        Raises
        ------
        InputError
            A family whose units cannot be pruned, or a state of another model.
        """
        self.end()
        self.model = unwrapped(model)
        if self.shrink and (processes() > 1 or is_parallel(model)):
            raise InputError(
                "a model that several processes train cannot be made smaller meanwhile: DistributedDataParallel holds "
                "the parameters that it was made with",
                hint="shrink=False; once the schedule has ended, pyprune.compact(model, pruner.units()) can be trained "
                "on, in a wrapper of its own",
            )
        self.schedule = self._given if isinstance(self._given, Schedule) else self._given(steps)
        self._gates = UnitGates(self.model, adapter_for(self.model), follow=self._loss is None)
        attention, feed = self._gates.parts[0], self._gates.parts[1]
        sizes = _Sizes(
            attention.writes.out_features,
            attention.units,
            attention.width,
            feed.writes.in_features,
            len(self._gates.parts) // 2,
        )
        self.sizes = sizes
        device = attention.writes.weight.device
        channels = (sizes.layers, sizes.heads, sizes.width)
        shapes = {"neurons": (sizes.layers, sizes.neurons), "query": channels, "value": channels}
        self.masks = {site: torch.ones(shape, dtype=torch.bool, device=device) for site, shape in shapes.items()}
        counts = {site: mask.numel() for site, mask in self.masks.items()}
        self._sums = {site: torch.zeros(count, device=device) for site, count in counts.items()}
        ranked = {site: mask.numel() for site, mask in self._ranked().items()}
        self.statistics = GateGradients(ranked, decay=self.decay**self.every, device=device)
        if self._loss is not None:
            self._loss.watch.append(self._see)
        step = 0
        if state is not None:
            step = int(state.values["step"])
            self._restore(state)
            if state.values["held"] is not None:
                self._cut(Units.from_json(state.values["held"]), None)
        else:
            self._prune(0, None)
        self._measure(step)

    def _restore(self, state: State) -> None:
        for site, mask in self.masks.items():
            stored = state.tensors[f"mask/{site}"]
            if stored.shape != mask.shape:
                raise InputError(
                    "the state is of another model", asked=str(list(mask.shape)), seen=str(list(stored.shape))
                )
            mask.copy_(stored)
        for site in self.statistics.sites:
            self.statistics.average(site).copy_(state.tensors[f"average/{site}"])
        self.statistics.batches, self.statistics.excluded = state.values["batches"], state.values["excluded"]
        self._scale = float(state.values["scale"])

    def end(self) -> None:
        """Let go of the model, as it is; of whole size again, with zeros, if it was made smaller."""
        if self._gates is not None:
            self._gates.close()
        if self._held is not None:
            grow(self.model, self._held)
            self._held = None
        if self._loss is not None and self._see in self._loss.watch:
            self._loss.watch.remove(self._see)

    def _measure(self, step: int) -> None:
        """Gates are open while a mask is still to be chosen, at the steps that are measured."""
        assert self._gates is not None
        self._step = step
        if self.schedule.value(step) == self.schedule.final or step % self.every:
            self._gates.close()
        else:
            self._gates.open()

    def _see(self, parts: Parts) -> None:
        """Gradients of the predictions alone, of one batch."""
        assert self._gates is not None
        if not self._gates.is_open:
            return
        if not parts.representation.requires_grad:  # predictions are all there is: their backward pass is to come
            self._gates.follow()
            return
        # Scaled as the loss is: in half precision small gradients would be lost.
        found = self._gates.of(parts.prediction * (parts.share * self._scale))
        for site, value in found.items():
            self._sums[site] += value.flatten() / self._scale

    def before_step(self, step: int, optimizer: Any, *, scale: float = 1.0) -> None:
        """Take the step's gradients into the moving average; those that are not finite are left out and counted."""
        assert self._gates is not None
        self._scale = scale
        if not self._gates.is_open:
            return
        for site, value in self._gates.collected().items():
            self._sums[site] += value.flatten() / scale
        average_over_processes(self._sums)
        self.statistics.add(self._scored())
        for value in self._sums.values():
            value.zero_()

    def _scored(self) -> dict[str, Tensor]:
        """Gradients of the gates that are ranked, regularised."""
        found = dict(self._sums)
        if self.unit == "heads":
            return {"neurons": found["neurons"], "heads": grouped(found["value"], self.sizes.width)}
        if self.regularisation:
            left = self.masks["value"].float().mean(dim=2, keepdim=True) / self.regularisation
            found["value"] = found["value"] * left.tanh().expand_as(self.masks["value"]).flatten()
        return found

    def _ranked(self) -> dict[str, Tensor]:
        """Masks of what is ranked."""
        if self.unit == "heads":
            return {"neurons": self.masks["neurons"], "heads": self.masks["value"].any(dim=2)}
        return self.masks

    def after_step(self, step: int, optimizer: Any) -> None:
        """Move on to the masks of the next step."""
        ended = self.schedule.value(step) == self.schedule.final
        if self._held is not None and ended:
            return
        self._prune(step + 1, optimizer)
        if self.shrink:
            self._shrink(optimizer, ended=self.schedule.value(step + 1) == self.schedule.final)
        self._measure(step + 1)

    def _shrink(self, optimizer: Any, *, ended: bool) -> None:
        """Cut the model where that takes enough out of it, and for good where no more units will go."""
        held = 1.0 if self._held is None else self._part(self._held)
        if ended or 1.0 - self.sparsity() <= _WORTH_CUTTING * held:
            self._cut(self.units(), optimizer)

    def _cut(self, units: Units, optimizer: Any) -> None:
        assert self._gates is not None
        self._gates.fit(units)
        cut(self.model, units, optimizer, self._held)
        self._held = units

    def _part(self, units: Units) -> float:
        """Of all units' parameters those of some."""
        count = {"neurons": 0, "query": 0, "value": 0}
        for shape in units.shapes:
            count["neurons"] += shape.neurons
            count["query"] += sum(shape.query)
            count["value"] += sum(shape.value)
        costs = self._costs()
        total = sum(costs[site] * mask.numel() for site, mask in self.masks.items())
        return sum(costs[site] * count[site] for site in SITES) / max(total, 1)

    def sparsity(self) -> float:
        """The part of all units' parameters that is gone."""
        costs = self._costs()
        total = sum(costs[site] * mask.numel() for site, mask in self.masks.items())
        return 1.0 - sum(costs[site] * int(mask.sum()) for site, mask in self.masks.items()) / max(total, 1)

    def _costs(self) -> dict[str, int]:
        """Parameters of one unit, biases included."""
        side = 2 * self.sizes.hidden
        costs = {"neurons": side + 1, "query": side + 2, "value": side + 1}
        return costs | {"heads": self.sizes.width * (costs["query"] + costs["value"])}

    def _prune(self, step: int, optimizer: Any) -> None:
        """Masks that hold in the forward pass of ``step``, where its sparsity is a new one."""
        value = self.schedule.value(step)
        if value == (self.schedule.value(step - 1) if step else 0.0):
            return
        masks = self._chosen(value)
        for site, mask in masks.items():
            assert not bool((mask & ~self.masks[site]).any()), "a unit that was gone came back"
        gone = {site: self.masks[site] & ~masks[site] for site in SITES}
        self.masks = masks
        clear(self.model, gone, optimizer, self._held)

    def _chosen(self, sparsity: float) -> dict[str, Tensor]:
        """The lowest scores go until that part of the parameters is gone; what was gone comes first."""
        ranked, costs = self._ranked(), self._costs()
        scores, sizes = [], []
        for site, mask in ranked.items():
            score = self.statistics.average(site) / (costs[site] if self.unit == "heads" else 1)
            scores.append(score.masked_fill(~mask.flatten(), -torch.inf))
            sizes.append(torch.full((mask.numel(),), costs[site], device=mask.device))
        size = torch.cat(sizes)
        order = torch.argsort(torch.cat(scores), stable=True)
        total = int(size.sum())
        gone = torch.cumsum(size[order], dim=0) <= total - kept_count(total, sparsity)
        kept = torch.ones_like(gone)
        kept[order[gone]] = False
        parts = torch.split(kept, [mask.numel() for mask in ranked.values()])
        found = {s: part.reshape(mask.shape) & mask for (s, mask), part in zip(ranked.items(), parts, strict=True)}
        if self.unit == "heads":
            whole = found.pop("heads")[:, :, None].expand_as(self.masks["value"])
            return found | {"query": whole.clone(), "value": whole.clone()}
        found["query"] &= found["value"].any(dim=2, keepdim=True)
        return found

    def units(self) -> Units:
        """What is kept."""
        masks = {site: mask.cpu() for site, mask in self.masks.items()}
        return Units.from_masks(self.sizes.hidden, None, masks["neurons"], query=masks["query"], value=masks["value"])

    def linears(self) -> dict[str, Tensor]:
        """The same as masks of weights, by linear name: bool ``[out, in]`` on the CPU, True = kept; read only."""
        assert self._gates is not None
        return weight_masks(self.model, self._gates.adapter, self.units())

    def check(self) -> None:
        """Raise AssertionError where a weight of the model that belongs to no kept unit is not zero."""
        masks = self.linears()
        if self._held is not None:
            masks = cut_masks(self.model, masks, self._held)
        for name, mask in masks.items():
            weight = self.model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            assert not bool((weight.detach().cpu() != 0)[~mask].any()), f"{name}: weights of pruned units are not zero"

    def state(self) -> State:
        """Masks and moving averages."""
        held = None if self._held is None else self._held.to_json()
        values = {"batches": self.statistics.batches, "excluded": self.statistics.excluded}
        found = State(values=values | {"step": self._step, "scale": self._scale, "held": held})
        found.put("mask", self.masks)
        found.put("average", {site: self.statistics.average(site) for site in self.statistics.sites})
        return found
