# SPDX-License-Identifier: Apache-2.0
"""Which of the weights that a training passes by are kept: those that do best on text that is held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.training.pruning import Pruner, State


class Choice:
    """The best of the last weights, judged at intervals once the schedule of sparsity has ended, and at the end.

    Of equal ones the later. Text that is trained on or reported on is not for choosing.

    Parameters
    ----------
    score : callable
        Higher is better; of a model in evaluation mode. A pure function of its weights, so that runs can be resumed.
    every : int
        Optimizer steps from one judgement to the next.

    Attributes
    ----------
    scores : list of (int, float)
        Steps done, and the score then.
    step : int or None
        Of the best; None before the first judgement.

    Examples
    --------
    >>> choice = Choice(accuracy_on_held_out_rows, every=100)  # doctest: +SKIP
    >>> train(model, rows, loss, pruner, settings, choice=choice).steps, choice.step  # doctest: +SKIP
    """

    def __init__(self, score: Callable[[nn.Module], float], *, every: int) -> None:
        if every < 1:
            raise InputError("a choice needs at least a step from one judgement to the next", seen=str(every))
        self._score, self.every = score, every
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.scores: list[tuple[int, float]] = []
        self.step: int | None = None
        self._weights: dict[str, Tensor] = {}
        self._masks = State()

    def settings(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint has to agree with. What the score is, is up to the caller."""
        return {"every": self.every}

    def see(self, model: nn.Module, pruner: Pruner, done: int, steps: int) -> None:
        """After each step: judge where it is time."""
        schedule = getattr(pruner, "schedule", None)
        if schedule is not None and schedule.value(done) != schedule.final:
            return
        if done % self.every and done != steps:
            return
        value = self._judged(model)
        self.scores.append((done, value))
        if self.step is not None and value < max(score for _, score in self.scores[:-1]):
            return
        self.step = done
        self._weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        inner = pruner.state()
        self._masks = State(
            {name: tensor.detach().cpu().clone() for name, tensor in inner.tensors.items()}, inner.values
        )

    def _judged(self, model: nn.Module) -> float:
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                value = float(self._score(model))
        finally:
            model.train(training)
        if value != value:
            raise InputError("a score is a number", seen="NaN", hint="check the rows held out, and the model")
        return value

    def put_back(self, model: nn.Module, pruner: Pruner, steps: int) -> None:
        """The best weights and their masks, in place of the last ones."""
        if self.step is None or self.step == steps:
            return
        pruner.begin(model, steps, self._masks)
        model.load_state_dict(self._weights)

    def state(self) -> State:
        """Everything that :meth:`restore` needs."""
        found = State(values={"scores": self.scores, "step": self.step, "masks": self._masks.values})
        found.put("weights", self._weights)
        found.put("masks", self._masks.tensors)
        return found

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.scores = [(int(step), float(score)) for step, score in state.values["scores"]]
        self.step = state.values["step"]
        self._weights = state.under("weights")
        self._masks = State(state.under("masks"), state.values["masks"])
