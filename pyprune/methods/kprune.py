# SPDX-License-Identifier: Apache-2.0
"""K-prune: knowledge-preserving pruning of heads and neurons without retraining (Park et al., ICLR 2024).

Sub-layer by sub-layer from the bottom: the knowledge of every unit there and above is measured in the model as it is by
then, all of them compete for what is left of the budget, the sub-layer is cut accordingly, and the weights that write
its output are fitted to what the dense model has at that place, so that the damage from below is repaired
(arXiv 2308.03449, eq. 4, 5, 10, 11 and algorithm 1).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.methods.kwon import fisher_masks
from pyprune.methods.objectives import Predictions
from pyprune.methods.unit_run import OUT, UnitRun, choose, columns_of, fit, gather_moments, measure
from pyprune.models.sublayers import ResidualStreams, SubLayer
from pyprune.stats import energies, grouped

SEARCHES = ("knowledge", "fisher", "magnitude")


@dataclass(frozen=True)
class KPrune:
    """Settings of K-prune.

    Attributes
    ----------
    energy_weight : float
        ``λ``: weight of what a unit writes, beside what the predictions lose without it.
    head_weight : float, optional
        ``μ``: weight of a head, whose score is the mean over its channels. Default: as many as it has, which makes it
        their sum (64 in BERT, as published).
    temperature : float
        ``γ``, of the predictions compared.
    damping : float
        Ridge of the fit, relative and centred on the dense weight.
    tune : bool
        False: only cut.
    search : {"knowledge", "fisher", "magnitude"}
        How units are chosen: sub-layer by sub-layer as published; or all of them ahead, as :class:`Kwon` or
        :class:`UnitMagnitude` would, which leaves nothing of the method but its fit.
    sample_first : bool
        Measure the first sub-layer against labels drawn from the predictions. There the model is still the dense one,
        and its divergence from itself has no gradient: by default only what units write counts, as published.
    """

    energy_weight: float = 2.5e-4
    head_weight: float | None = None
    temperature: float = 2.0
    damping: float = 1e-4
    tune: bool = True
    search: str = "knowledge"
    sample_first: bool = False

    name = "kprune"
    line = "heads and neurons, sub-layer by sub-layer, what is left refitted to the dense model (Park et al. 2024)"
    resumes = True
    needs_labels = False

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise InputError(f"unknown search {self.search!r}", hint=f"one of {', '.join(SEARCHES)}")
        if min(self.energy_weight, self.damping, self.head_weight or 0.0) < 0 or self.temperature <= 0:
            raise InputError("weights and damping are at least 0, the temperature above 0", seen=str(self))

    def run(self, run: UnitRun) -> None:
        """Prune the run's model in place, bottom up."""
        batches = len(run.calibration.batches)
        left = len(run.dense.layers) - run.resumed
        steps = 2 * left * (batches + 1 if self.search == "knowledge" else 1)
        steps += batches if self.search == "fisher" else 0
        run.progress.start(run.resumed + steps, "embedding the calibration text")
        streams = run.streams()
        ahead = self._ahead(run, streams)
        dense: list[Predictions] = []
        if run.resumed and not ahead:  # else the first measurement is of the dense model, and finds them
            with run.timed("embed"):
                outputs = streams.outputs(0, first_only=run.objective.first_only)
                dense += [run.objective.read(*pair) for pair in zip(outputs, streams.keep, strict=True)]
        budget = run.budget(run.share)
        for number, block in enumerate(run.adapter.blocks(run.model)):
            teacher = copy.deepcopy(block)
            parts = run.parts[2 * number : 2 * number + 2]
            restored = run.restore(number)
            for part in parts:
                if not restored:
                    masks = ahead[part.index] if ahead else None
                    self._prune(run, streams, teacher, part, dense, budget, masks)
                budget -= run.costs.kept(part.half, int(run.masks[part.index].sum()))
            if parts[-1] is not run.parts[-1]:
                with run.timed("advance"):
                    streams.advance(teacher, block)

    def _prune(
        self,
        run: UnitRun,
        streams: ResidualStreams,
        teacher: nn.Module,
        part: SubLayer,
        dense: list[Predictions],
        budget: int,
        kept: Tensor | None,
    ) -> None:
        """One sub-layer; ``budget`` is for it and all above, ``kept`` its mask if that was chosen ahead.

        ``dense`` is filled by the first of all.
        """
        above, block = run.parts[part.index :], run.adapter.blocks(run.model)[part.block]
        notes: list[str] = []
        if kept is None:
            scores, notes = self._scores(run, streams, above, dense)
            with run.timed("search"):
                kept = choose(run, above, scores, budget)[0]
        columns = columns_of(part, kept)
        with run.timed("moments"):
            moments = gather_moments(streams, teacher, block, part, columns)
        with run.timed("solve"):
            found = fit(part, moments, columns, kept, self.damping) if self.tune else {"notes": []}
            part.remove(kept)
            error = moments.error(OUT, part.writes.weight[:, columns], part.writes.bias)
        found["notes"] = notes + found["notes"]
        run.record(part, kept, error=error, **found)

    def _ahead(self, run: UnitRun, streams: ResidualStreams) -> list[Tensor]:
        """Masks of all sub-layers, where they do not depend on what was cut below."""
        if self.search == "fisher":
            return fisher_masks(run, streams, [run.share])[0]
        return magnitude_masks(run) if self.search == "magnitude" else []

    def _scores(
        self, run: UnitRun, streams: ResidualStreams, parts: Sequence[SubLayer], dense: list[Predictions]
    ) -> tuple[list[Tensor], list[str]]:
        """Knowledge of every unit of ``parts``, ``[units]`` each; and notes."""

        def started(_: int, predictions: Predictions) -> Tensor | None:
            dense.append(tuple(part.detach() for part in predictions))
            return run.objective.sampled(predictions, run.generator) if self.sample_first else None

        def lost(number: int, predictions: Predictions) -> Tensor:
            return run.objective.divergence(predictions, dense[number], self.temperature)

        first = parts[0].index == 0
        with run.timed("measure"):
            backward = self.sample_first or not first
            measured = measure(run, streams, parts, started if first else lost, backward=backward)
        scores = []
        for part in parts:
            predicted = 0.5 * measured.gradients.square(part.name) / run.calibration.sentences
            written = energies(measured.squares[part.name], part.writes.weight)
            score = grouped(predicted + self.energy_weight * written, part.width, "mean")
            weight = 1.0 if part.half else (part.width if self.head_weight is None else self.head_weight)
            scores.append(weight * score)
        return scores, measured.notes


@dataclass(frozen=True)
class UnitMagnitude:
    """Units go whose weights are smallest: sum of squares of all that belong to one, by its cost."""

    name = "unit-magnitude"
    line = "heads and neurons of the smallest weights go, the rest stay as they are"
    resumes = False
    needs_labels = False

    def run(self, run: UnitRun) -> None:
        """Prune the run's model in place, all at once."""
        run.progress.start(len(run.parts), "comparing weights")
        for part, kept in zip(run.parts, magnitude_masks(run), strict=True):
            part.remove(kept)
            run.record(part, kept)


def magnitude_masks(run: UnitRun) -> list[Tensor]:
    """Masks ``[units]`` of all sub-layers by the sizes of the model's weights as they are."""
    with run.timed("search"):
        scores = [_sizes(part) for part in run.parts]
        return choose(run, run.parts, scores, run.budget(run.share))


def _sizes(part: SubLayer) -> Tensor:
    squares = part.writes.weight.double().square().sum(dim=0)
    read = torch.stack([linear.weight.double().square().sum(dim=1) for linear in part.reads])
    return grouped(squares + read.sum(dim=0), part.width)
