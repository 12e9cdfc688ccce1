# SPDX-License-Identifier: Apache-2.0
"""What distinguishes methods that prune while a model is fine-tuned: a table, and how each makes its pruner."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.training import (
    PUBLISHED,
    FirstOrderPruning,
    Levels,
    LogitsLoss,
    MagnitudePruning,
    MovementPruning,
    PruningLoss,
    Ramp,
    UnitPruning,
    steps_of,
)
from pyprune.training.loop import Training
from pyprune.training.pruning import WeightPruning
from pyprune.training.rows import NUMBERS, Rows
from pyprune.training.schedules import check_sparsity

_FEW = 2_000  # steps


@dataclass(frozen=True)
class TrainRecipe:
    """What distinguishes one of these methods.

    Attributes
    ----------
    name, line : str
        ``line``: for a person, in a few words.
    pruner : callable
        Makes the pruner of a sparsity, the loss and options.
    hard, soft, hidden : float
        Weights of the losses, where there is a teacher.
    maps : bool
        Learned maps between hidden states.
    logits : LogitsLoss
    training : Training
        Defaults.
    units : bool
        Units go, so that the model that is left is smaller; its embeddings may be, too.
    epochs_each : float
        Of each level of sparsity, with a learning rate of its own; 0: there are no levels. The pruner then takes
        ``rows``, ``settings`` and ``levels`` besides.
    contrast : mapping
        Settings of CAP's terms that differ from their defaults.
    """

    name: str
    line: str
    pruner: Callable[..., WeightPruning | UnitPruning]
    hard: float = 0.1
    soft: float = 0.9
    hidden: float = 0.0
    maps: bool = False
    logits: LogitsLoss = PUBLISHED["movement"]
    training: Training = field(default_factory=Training)
    units: bool = False
    epochs_each: float = 0.0
    contrast: Mapping[str, Any] = field(default_factory=dict)


def _imp(sparsity: float, loss: PruningLoss, **options: Any) -> WeightPruning:
    every = {"every": options.pop("every")} if "every" in options else {}
    return MagnitudePruning(Ramp(sparsity, **_ramp(options), **every), **options)


def _movement(sparsity: float, loss: PruningLoss, **options: Any) -> WeightPruning:
    return MovementPruning(Ramp(sparsity, **_ramp(options)), **options)


def _soft_movement(sparsity: float, loss: PruningLoss, **options: Any) -> WeightPruning:
    options.setdefault("threshold", 0.1)
    ramp = Ramp(options.pop("threshold"), **_ramp(options))
    # How much goes follows from the penalty; there is no formula from the one to the other.
    options.setdefault("soft", 400.0 * sparsity)
    return MovementPruning(ramp, **options)


def _smp(sparsity: float, loss: PruningLoss, **options: Any) -> WeightPruning:
    return _movement(sparsity, loss, **{"frozen": True, "rate": 2e-2, **options})


def _grain(sparsity: float, loss: PruningLoss, *, separate: bool = True, **options: Any) -> UnitPruning:
    ramp = Ramp(sparsity, **{"warm_up": 0.2, "cool_down": 0.6, **_ramp(options)})
    _shrink(loss, options)
    return UnitPruning(ramp, loss=loss if separate else None, **options)


def _first_order(
    sparsity: float, loss: PruningLoss, *, rows: Rows, settings: Training, levels: Sequence[float], **options: Any
) -> UnitPruning:
    _shrink(loss, options)

    def batches(epoch: int) -> Iterator[dict[str, Tensor]]:
        for numbers in rows.order(seed=settings.seed, epoch=epoch, size=settings.batch_size):
            batch = rows.batch(numbers)
            yield batch if loss.contrast is None else batch | {NUMBERS: numbers}

    an_epoch = steps_of(1, len(rows), settings.batch_size, settings.accumulate)
    schedule = _Even(tuple(levels))
    return FirstOrderPruning(schedule, loss=loss, batches=batches, an_epoch=an_epoch, **options)


def _shrink(loss: PruningLoss, options: dict[str, Any]) -> None:
    """A head that is gone has no attention to compare."""
    options.setdefault("shrink", not loss.attention)
    if options["shrink"] and loss.attention:
        raise InputError(
            "attentions of a model that is made smaller have nothing to be compared with", hint="shrink=False"
        )


@dataclass(frozen=True)
class _Even:
    """As many steps for each level."""

    levels: tuple[float, ...]

    def __call__(self, steps: int) -> Levels:
        return Levels.even(self.levels, steps=steps)


def levels_to(sparsity: float, given: Sequence[float] | None) -> tuple[float, ...]:
    """Rising to a sparsity: given ones, or tenths; and itself."""
    check_sparsity(sparsity, "sparsity")
    found = tuple(level / 10 for level in range(1, 10) if level / 10 < sparsity) if given is None else tuple(given)
    found = found if found and found[-1] == sparsity else (*found, sparsity)
    if any(a >= b for a, b in itertools.pairwise(found)):
        raise InputError("levels rise to the sparsity of the end", asked=str(sparsity), seen=str(list(found))[:120])
    return found


def few_steps(pruner: Any, steps: int) -> str | None:
    """What to tell of a run that is too short for its scores; see docs/training.md for what was seen."""
    if not isinstance(pruner, MovementPruning) or pruner.start != "zero" or steps > _FEW:
        return None
    return (
        f"{steps} steps are few for scores that begin alike: models pruned by them in 1,500 knew nothing; scores that "
        'begin at the sizes of weights do with less: --start-scores size, options={"start": "size"}'
    )


def _ramp(options: dict[str, Any]) -> dict[str, Any]:
    """Take the schedule's options out of all options; how often masks or scores are made is the pruner's."""
    return {name: options.pop(name) for name in ("warm_up", "cool_down", "initial") if name in options}


TRAIN_RECIPES = {
    recipe.name: recipe
    for recipe in (
        TrainRecipe("imp", "the smallest weights go on a cubic schedule", _imp),
        TrainRecipe("movement", "weights go that training moves towards zero (Sanh et al. 2020)", _movement),
        TrainRecipe(
            "soft-movement", "the same by a threshold and a penalty; how much goes is up to them", _soft_movement
        ),
        TrainRecipe("smp", "only scores are learned, weights keep their values (Jiang et al. 2023)", _smp),
        TrainRecipe(
            "grain",
            "neurons and channels of heads go by their gates' gradients (Yang et al. 2023)",
            _grain,
            hard=0.0,
            soft=1.0,
            hidden=1.0,
            maps=True,
            logits=PUBLISHED["grain"],
            training=Training(epochs=20),
            units=True,
        ),
        TrainRecipe(
            "first-order",
            "heads and neurons go level by level by their gates' gradients over all rows (CAP-f: Xu et al. 2022)",
            _first_order,
            logits=PUBLISHED["cap"],
            training=Training(batch_size=16, rate=2e-5),
            units=True,
            epochs_each=2.0,
            contrast={"unsupervised": 0.3, "supervised": 3.0, "every": 2},
        ),
    )
}
