# SPDX-License-Identifier: Apache-2.0
"""What a method does while others train: before an optimizer step, and after it; and pruning by size, the simplest.

A loop of one's own looks like this, and :class:`pyprune.training.PruningCallback` does the same within ``Trainer``::

    pruner.begin(model, steps)
    for step, batch in enumerate(batches):
        loss.of(model, batch).backward()
        pruner.before_step(step, optimizer)
        optimizer.step()
        pruner.after_step(step, optimizer)
        optimizer.zero_grad()
    pruner.end()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyprune.errors import InputError
from pyprune.patterns import kept_count
from pyprune.training.masks import Masks, parameters_of, prunable, unwrapped
from pyprune.training.schedules import Cubic, Schedule, check_sparsity
from pyprune.training.scores import top_mask

Scope = Literal["matrix", "global"]


@dataclass(frozen=True)
class Ramp:
    """A cubic schedule in parts of a run, for when the number of steps is not known yet.

    Parameters
    ----------
    final : float
        Sparsity of the end.
    warm_up, cool_down : float
        Parts of the run before the first and after the last change.
    initial : float
    every : int
        Steps between changes.

    Examples
    --------
    >>> Ramp(0.9, warm_up=0.1, cool_down=0.3)(1000)
    Cubic(final=0.9, start=100, end=700, initial=0.0, every=1)
    """

    final: float
    warm_up: float = 0.1
    cool_down: float = 0.3
    initial: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        check_sparsity(self.final, "final")
        if min(self.warm_up, self.cool_down) < 0 or self.warm_up + self.cool_down > 1:
            raise InputError(
                "warm-up and cool-down are parts of a run", seen=f"{self.warm_up} and {self.cool_down} of it"
            )

    def __call__(self, steps: int) -> Cubic:
        """For so many steps."""
        start, end = round(self.warm_up * steps), steps - round(self.cool_down * steps)
        return Cubic(self.final, min(start, end), end, self.initial, self.every)


@dataclass
class State:
    """What a pruner has to remember: tensors, and values for JSON."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin with ``prefix/``, without it."""
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.tensors.items() if k.startswith(f"{prefix}/")}

    def put(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Enter tensors under a prefix."""
        self.tensors |= {f"{prefix}/{name}": value for name, value in tensors.items()}


@runtime_checkable
class Pruner(Protocol):
    """What takes part in a training."""

    def settings(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint has to agree with."""

    def begin(self, model: nn.Module, steps: int, state: State | None = None) -> None:
        """Take hold of a model for a training of so many optimizer steps, from its first step or from a state on."""

    def before_step(self, step: int, optimizer: Any, *, scale: float = 1.0) -> None:
        """All gradients of optimizer step ``step`` are there; ``scale``: what the loss was multiplied by."""

    def after_step(self, step: int, optimizer: Any) -> None:
        """The optimizer has moved the weights, or left the step out because it overflowed."""

    def end(self) -> None:
        """Let go of the model, as it is."""

    def sparsity(self) -> float:
        """What is gone now, as a fraction."""

    def linears(self) -> dict[str, Tensor]:
        """Masks by linear name: bool ``[out, in]`` on the CPU, True = kept."""

    def check(self) -> None:
        """Raise AssertionError where a pruned weight of the model is not zero."""

    def state(self) -> State:
        """Between two steps: everything that :meth:`begin` needs to go on from there."""


class WeightPruning:
    """Base of methods that prune single weights.

    Parameters
    ----------
    schedule : Schedule or callable
        What it makes of the number of steps, if it is no schedule: :class:`Ramp`.
    names : sequence of str, optional
        Parameters to prune. Default: the weights of all linears of the model's blocks.
    scope : {"matrix", "global"}
        Every matrix to the same sparsity, or all of them competing.

    Attributes
    ----------
    masks : Masks
        From ``begin`` on.
    """

    name = ""
    monotone = True

    def __init__(
        self,
        schedule: Schedule | Callable[[int], Schedule],
        *,
        names: Sequence[str] | None = None,
        scope: Scope = "matrix",
    ) -> None:
        if scope not in ("matrix", "global"):
            raise InputError(f"unknown scope {scope!r}", hint='"matrix" or "global"')
        self._given, self._names, self.scope = schedule, names, scope
        self.masks = Masks({})
        self._handles: list[RemovableHandle] = []

    def settings(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint has to agree with."""
        names = None if self._names is None else list(self._names)
        return {"name": self.name, "schedule": repr(self._given), "scope": self.scope, "names": names}

    def begin(self, model: nn.Module, steps: int, state: State | None = None) -> None:
        """Take hold of a model, with the masks of step 0 or of a state.

        Raises
        ------
        InputError
            Parameters that are not there or are not trained, or a state of others.
        """
        self.end()
        self.model = unwrapped(model)
        self.schedule = self._given if isinstance(self._given, Schedule) else self._given(steps)
        names = prunable(self.model) if self._names is None else self._names
        self.masks = Masks.dense(self.model, names, monotone=self.monotone)
        self.parameters = parameters_of(self.model, self.masks)
        frozen = [name for name, parameter in self.parameters.items() if not parameter.requires_grad]
        if frozen:
            raise InputError(
                f"{frozen[0]} is not trained, so that it has no gradient", hint="parameter.requires_grad_(True)"
            )
        if state is None:
            self._take_hold()
            self._prune(0, None)
            return
        stored = Masks.unpacked(state.under("mask"), state.values["shapes"])
        if list(stored) != list(self.masks):
            seen = ", ".join(list(stored)[:3])
            raise InputError("the state is of a training that prunes other parameters", seen=seen)
        self.masks = Masks(stored, monotone=self.monotone)
        self.masks.move_to(self.model)
        self._take_hold()
        self._restore(state)

    def _take_hold(self) -> None:
        self._handles = self.masks.hook(self.model)

    def _restore(self, state: State) -> None:
        """What there is besides masks."""

    def end(self) -> None:
        """Let go of the model, as it is."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_step(self, step: int, optimizer: Any, *, scale: float = 1.0) -> None:
        """All gradients of the step are there."""

    def after_step(self, step: int, optimizer: Any) -> None:
        """Hold the masks, and move on to those of the next step."""
        self.masks.apply(self.model)
        self._prune(step + 1, optimizer)

    def sparsity(self) -> float:
        """What is gone now, as a fraction of the weights that may go."""
        return self.masks.sparsity

    def linears(self) -> dict[str, Tensor]:
        """Masks by linear name, as :class:`pyprune.PruneResult` has them: bool ``[out, in]`` on the CPU."""
        return self.masks.linears()

    def check(self) -> None:
        """Raise AssertionError where a pruned weight of the model is not zero."""
        self.masks.check(self.model)

    def _prune(self, step: int, optimizer: Any) -> None:
        """Masks that hold in the forward pass of ``step``, where its sparsity is a new one."""
        before = self.schedule.value(step - 1) if step else 0.0
        if self.schedule.value(step) == before:
            return
        masks, counts = self.chosen(self._scores(), self.schedule.value(step))
        self.masks.update(masks, counts=counts)
        self.masks.apply(self.model)
        if optimizer is not None:
            self.masks.apply_moments(self.model, optimizer)

    def _scores(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def chosen(self, scores: Mapping[str, Tensor], sparsity: float) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Masks of the largest scores, and how many weights each keeps."""
        if self.scope == "matrix":
            counts = {name: kept_count(value.numel(), sparsity) for name, value in scores.items()}
            return {name: top_mask(value, counts[name]) for name, value in scores.items()}, counts
        flat = torch.cat([value.detach().flatten() for value in scores.values()])
        whole = top_mask(flat, kept_count(flat.numel(), sparsity))
        parts = torch.split(whole, [value.numel() for value in scores.values()])
        masks = {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
        return masks, {name: int(mask.sum()) for name, mask in masks.items()}

    def state(self) -> State:
        """Everything that :meth:`begin` needs to go on; weights and the optimizer are kept by whoever trains."""
        bits, shapes = self.masks.packed()
        found = State(values={"shapes": shapes})
        found.put("mask", bits)
        return found


class MagnitudePruning(WeightPruning):
    """The smallest weights go, step by step, and stay gone (Zhu and Gupta, 2017).

    Parameters
    ----------
    schedule, names, scope
        See :class:`WeightPruning`.

    Examples
    --------
    >>> linear = nn.Linear(8, 4, bias=False)
    >>> optimizer = torch.optim.Adam(linear.parameters())
    >>> pruner = MagnitudePruning(Ramp(0.75, warm_up=0.0, cool_down=0.5), names=["weight"])
    >>> pruner.begin(linear, steps=4)
    >>> for step in range(4):
    ...     linear(torch.ones(1, 8)).sum().backward()
    ...     pruner.before_step(step, optimizer)
    ...     optimizer.step()
    ...     pruner.after_step(step, optimizer)
    ...     optimizer.zero_grad()
    >>> pruner.end()
    >>> pruner.masks.kept, int((linear.weight != 0).sum())
    (8, 8)
    """

    name = "magnitude"

    def _scores(self) -> dict[str, Tensor]:
        return {name: parameter.detach().abs() for name, parameter in self.parameters.items()}
