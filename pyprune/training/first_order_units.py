# SPDX-License-Identifier: Apache-2.0
"""Heads and neurons go level by level, by first-order importance over all training rows (CAP-f: Xu et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.patterns import kept_count
from pyprune.stats import GateGradients, grouped
from pyprune.training.distillation import PruningLoss
from pyprune.training.processes import average_over_processes
from pyprune.training.schedules import Schedule
from pyprune.training.unit_pruning import UnitPruning

_TINY = 1e-20  # beside a layer's norm


class FirstOrderPruning(UnitPruning):
    """At each level the units of least importance go, ``I_u = Σ_batches |∂L/∂m_u|`` over the rows as they are then.

    ``m_u`` is a gate of one on a head or a neuron, ``L`` the whole loss (labels, teacher, contrast) without dropout; a
    head's gradient is the sum of those of its value channels. Importances are divided by the norm of those of their
    layer, heads and neurons apart, and each kind has a quota of its own: the lowest in all layers go, but the best head
    left in a layer stays. Then training goes on with moments from zero.

    Parameters
    ----------
    schedule : Schedule or callable
        Of the part of the heads, and of the neurons, that is gone; or what makes one of the number of steps.
        Importances are summed anew wherever it rises, so that it is one of :class:`Levels`.
    loss : PruningLoss
        Attached to the model before the pruner begins.
    batches : callable
        Gives all rows in batches for an epoch's number, as ``loss`` takes them; in every process the same, or a part.
    an_epoch : int, optional
        Steps of an epoch. A contrast's snapshot of an epoch that begins with a level is then taken before units go.
    shrink : bool
        As of :class:`UnitPruning`.

    Attributes
    ----------
    statistics : GateGradients
        Of ``"neurons"`` and ``"heads"``, of the last level.
    """

    name = "first-order"

    def __init__(
        self,
        schedule: Schedule | Callable[[int], Schedule],
        *,
        loss: PruningLoss,
        batches: Callable[[int], Iterable[Mapping[str, Tensor]]],
        an_epoch: int | None = None,
        shrink: bool = False,
    ) -> None:
        super().__init__(schedule, unit="heads", decay=0.0, regularisation=0.0, shrink=shrink)
        if an_epoch is not None and an_epoch < 1:
            raise InputError("an epoch has at least one step", seen=str(an_epoch))
        self._whole, self._batches, self._an_epoch = loss, batches, an_epoch

    def settings(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint has to agree with."""
        return {"name": self.name, "shrink": self.shrink, "schedule": repr(self._given), "an_epoch": self._an_epoch}

    def _measure(self, step: int) -> None:
        self._step = step

    def _prune(self, step: int, optimizer: Any) -> None:
        if self.schedule.value(step) == (self.schedule.value(step - 1) if step else 0.0):
            return
        self._sum_up(step)
        super()._prune(step, optimizer)
        if optimizer is not None:
            optimizer.state.clear()

    def _sum_up(self, step: int) -> None:
        """Importances of the model as it is before a step; then a contrast keeps it as a snapshot."""
        assert self._gates is not None
        epoch, begins = divmod(step, self._an_epoch) if self._an_epoch else (0, 1)
        contrast, device = self._whole.contrast, self.masks["neurons"].device
        self.statistics = GateGradients(self.statistics.sites, decay=self.decay, device=device)
        if contrast is not None:
            contrast.draw(step)
        with _without_dropout(self.model), _one_batch(self._whole):
            self._gates.open()
            for batch in self._batches(epoch):
                inputs = {name: value.to(device) for name, value in batch.items()}
                found = self._gates.of(self._whole.of(self.model, inputs))
                heads = grouped(found["value"].flatten(), self.sizes.width)
                self.statistics.add({"neurons": found["neurons"].flatten(), "heads": heads})
            self._gates.close()
        self.statistics.check()
        average_over_processes(dict(self._importances()))
        if contrast is not None and not begins:
            contrast.ahead(self.model, epoch)

    def _importances(self) -> Iterator[tuple[str, Tensor]]:
        for site in self.statistics.sites:
            yield site, self.statistics.absolute(site)

    def _chosen(self, sparsity: float) -> dict[str, Tensor]:
        """The lowest of each kind go; what was gone stays gone."""
        found = {}
        for site, alive in self._ranked().items():
            sums = self.statistics.absolute(site).reshape(alive.shape)
            found[site] = lowest_gone(layer_normalised(sums), alive, sparsity, floor=site == "heads")
        whole = found.pop("heads")[:, :, None].expand_as(self.masks["value"])
        return found | {"query": whole.clone(), "value": whole.clone()}


def layer_normalised(importances: Tensor) -> Tensor:
    """Each layer's ``[layers, units]`` divided by its norm.

    >>> layer_normalised(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norms: Tensor = importances.norm(dim=1, keepdim=True)
    return importances / (norms + _TINY)


def lowest_gone(scores: Tensor, alive: Tensor, sparsity: float, *, floor: bool) -> Tensor:
    """Of what is alive the lowest go, until that part of all is gone.

    Parameters
    ----------
    scores : Tensor, shape (layers, units)
    alive : Tensor of bool, same shape
    sparsity : float
        Rounded to whole units.
    floor : bool
        The best of each layer that is alive stays, even if less goes then.

    Returns
    -------
    Tensor of bool, same shape

    Examples
    --------
    >>> scores, alive = torch.tensor([[0.1, 0.2, 0.0], [0.9, 0.8, 0.7]]), torch.ones(2, 3, dtype=torch.bool)
    >>> lowest_gone(scores, alive, 0.5, floor=True).tolist()
    [[False, True, False], [True, True, False]]
    """
    held = torch.zeros_like(alive)
    if floor:
        best = scores.masked_fill(~alive, -torch.inf).argmax(dim=1, keepdim=True)
        held.scatter_(1, best, alive.gather(1, best))
    open_to_all = (alive & ~held).flatten()
    wanted = kept_count(alive.numel(), sparsity)
    count = min(max(int(alive.sum()) - wanted, 0), int(open_to_all.sum()))
    order = torch.argsort(scores.flatten().masked_fill(~open_to_all, torch.inf), stable=True)
    kept = alive.flatten().clone()
    kept[order[:count]] = False
    return kept.reshape(alive.shape)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """All parts in evaluation mode, while the model itself is in training, so that its whole loss is there."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    model.training = True
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _one_batch(loss: PruningLoss) -> Iterator[None]:
    """Every batch counts whole."""
    before, loss.accumulate = loss.accumulate, 1.0
    try:
        yield
    finally:
        loss.accumulate = before
