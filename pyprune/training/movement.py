# SPDX-License-Identifier: Apache-2.0
"""Movement and soft-movement pruning (Sanh, Wolf and Rush, NeurIPS 2020) in a model that stays as it is.

The model's weights are ``W ∘ M(S)``; what is behind the mask is kept beside it. A hook on each weight takes the
gradient by the masked weight, before it is clipped or averaged: its product with ``W`` is the gradient of the scores,
and its masked part that of ``W``. Around the optimizer step ``W`` is put back. That is exactly the straight-through
gradient (:func:`pyprune.training.straight_through`), and masks are found once a step instead of in each forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.training.pruning import Scope, State, WeightPruning
from pyprune.training.schedules import Schedule
from pyprune.training.scores import movement, relative_size, soft_penalty, threshold_mask

Start = Literal["zero", "size"]


class MovementPruning(WeightPruning):
    """Weights go that training moves towards zero. They may come back until the schedule ends.

    Parameters
    ----------
    schedule, names, scope
        See :class:`WeightPruning`. With ``soft`` the schedule is of the threshold of ``σ(S)``, such as from 0 to 0.1.
    rate : float
        Learning rate of the scores, by Adam. It follows the optimizer's: ``lr / initial_lr`` of its first group.
    soft : float, optional
        Weight ``λ`` at the end of the penalty ``λ(t) · mean over matrices of mean σ(S)``, which rises with the
        threshold. The masks are then ``σ(S) > threshold``, and how much is left follows from the penalty.
    frozen : bool
        Weights keep their values and only scores are learned: SMP (Jiang et al., ACL 2023).
    every : int
        Steps between masks.
    start : {"zero", "size"}
        Scores at the beginning: all alike, as published, so that what a mask keeps is decided by movement alone, which
        takes thousands of steps to tell weights apart; or ``|w|`` by the root mean square of its matrix, for short
        runs: the first masks are those of the largest weights, and movement of about ``1 / rate`` steps decides.

    Attributes
    ----------
    scores : dict of str to Tensor
        By parameter name.
    excluded : int
        Steps without finite gradients, which changed no score.
    """

    name = "movement"
    monotone = False

    def __init__(
        self,
        schedule: Schedule | Callable[[int], Schedule],
        *,
        names: Sequence[str] | None = None,
        scope: Scope = "matrix",
        rate: float = 1e-2,
        soft: float | None = None,
        frozen: bool = False,
        every: int = 1,
        start: Start = "zero",
    ) -> None:
        super().__init__(schedule, names=names, scope=scope)
        if not rate > 0 or (soft is not None and not soft >= 0) or every < 1:
            raise InputError(
                "movement needs a rate above 0, a penalty of at least 0 and masks every step or less often",
                seen=f"rate {rate}, soft {soft}, every {every}",
            )
        if start not in ("zero", "size"):
            raise InputError(f"scores cannot start from {start!r}", hint='"zero" or "size"')
        self.rate, self.soft, self.frozen, self.every, self.start = rate, soft, frozen, every, start
        self.scores: dict[str, nn.Parameter] = {}
        self.excluded = 0

    def settings(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint has to agree with."""
        names = ("rate", "soft", "frozen", "every", "start")
        return super().settings() | {name: getattr(self, name) for name in names}

    def _take_hold(self) -> None:
        self.dense = {name: value.detach().clone() for name, value in self.parameters.items()}
        first = torch.zeros_like if self.start == "zero" else relative_size
        self.scores = {name: nn.Parameter(first(value)) for name, value in self.dense.items()}
        self._gradients = {name: torch.zeros_like(value) for name, value in self.dense.items()}
        self._optimizer = torch.optim.Adam(self.scores.values(), lr=self.rate)
        self.excluded = 0

        def collect(name: str) -> Callable[[Tensor], Tensor]:
            def hook(gradient: Tensor) -> Tensor:
                self._gradients[name] += movement(self.dense[name], gradient)
                # A product, not a choice: an overflow behind the mask has to be seen by the loss scaler too.
                return gradient * (0.0 if self.frozen else self.masks[name])

            return hook

        found: dict[str, Any] = dict(self.parameters)
        self._handles = [parameter.register_hook(collect(name)) for name, parameter in found.items()]

    @torch.no_grad()
    def before_step(self, step: int, optimizer: Any, *, scale: float = 1.0) -> None:
        """Move the scores, and put the weights behind the mask in place for the optimizer."""
        self._average()
        finite = all(bool(torch.isfinite(value).all()) for value in self._gradients.values())
        if finite:
            for name, score in self.scores.items():
                score.grad = self._gradients[name] / scale
                if self.soft is not None:
                    score.grad.add_(soft_penalty(score)[1], alpha=self.penalty(step) / len(self.scores))
            self._optimizer.param_groups[0]["lr"] = self.rate * _share(optimizer)
            self._optimizer.step()
            self._optimizer.zero_grad()
        self.excluded += not finite
        for name, parameter in self.parameters.items():
            self._gradients[name].zero_()
            parameter.copy_(self.dense[name])

    @torch.no_grad()
    def after_step(self, step: int, optimizer: Any) -> None:
        """Keep the weights, and mask them by the new scores."""
        if not self.frozen:
            for name, parameter in self.parameters.items():
                self.dense[name].copy_(parameter)
        self._prune(step + 1, optimizer)

    def penalty(self, step: int) -> float:
        """``λ(t)``: the soft penalty's weight, which is its last one times the threshold by its last one."""
        if self.soft is None or not self.schedule.final:
            return 0.0
        return self.soft * self.schedule.value(step) / self.schedule.final

    def _prune(self, step: int, optimizer: Any) -> None:
        value = self.schedule.value(step)
        if value and (step % self.every == 0 or value != self.schedule.value(step - 1)):
            counts = None
            if self.soft is not None:
                masks = {name: threshold_mask(score, value) for name, score in self.scores.items()}
            else:
                masks, counts = self.chosen(self.scores, value)
            self.masks.update(masks, counts=counts)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                torch.mul(self.dense[name], self.masks[name], out=parameter.data)

    def _average(self) -> None:
        """The same scores in every process; what hooks see is a process's own."""
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            for value in self._gradients.values():
                distributed.all_reduce(value)
                value /= distributed.get_world_size()

    def state(self) -> State:
        """Masks, scores with their moments, and the weights behind the masks."""
        found = super().state()
        found.put("dense", self.dense)
        found.put("score", {name: score.detach() for name, score in self.scores.items()})
        for key in ("exp_avg", "exp_avg_sq", "step"):
            stored = {n: self._optimizer.state[s][key] for n, s in self.scores.items() if s in self._optimizer.state}
            found.put(key, stored)
        found.values["excluded"] = self.excluded
        return found

    @torch.no_grad()
    def _restore(self, state: State) -> None:
        self.excluded = int(state.values["excluded"])
        moments = {key: state.under(key) for key in ("exp_avg", "exp_avg_sq", "step")}
        scores, dense = state.under("score"), state.under("dense")
        for name, score in self.scores.items():
            score.copy_(scores[name])
            self.dense[name].copy_(dense[name])
            if name in moments["step"]:
                self._optimizer.state[score] = {
                    "step": moments["step"][name].clone(),
                    **{key: moments[key][name].to(score.device).clone() for key in ("exp_avg", "exp_avg_sq")},
                }
        for name, parameter in self.parameters.items():
            torch.mul(self.dense[name], self.masks[name], out=parameter.data)


def _share(optimizer: Any) -> float:
    """The learning rate of an optimizer's first group as a share of its highest, which schedulers note."""
    group = optimizer.param_groups[0] if optimizer is not None else {}
    initial = group.get("initial_lr")
    return float(group["lr"]) / float(initial) if initial else 1.0
