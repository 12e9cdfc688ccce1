# SPDX-License-Identifier: Apache-2.0
"""The dual-stream driver: block by block, group by group, from statistics to new weights."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from pyprune import solvers
from pyprune.methods import accounting
from pyprune.methods.journal import FinishedBlock, Journal, linear_tensors
from pyprune.methods.recipe import Recipe
from pyprune.models import Adapter
from pyprune.models.streams import DualStream
from pyprune.patterns import Pattern
from pyprune.stats import Moments


class Progress(Protocol):
    """What a run reports to; :mod:`pyprune.progress` has the one for a terminal."""

    def start(self, total: int, description: str) -> None:
        """``total`` steps follow."""

    def advance(self, description: str) -> None:
        """One step is done. May raise to stop the run; finished blocks are in the journal by then."""

    def note(self, text: str) -> None:
        """Something a person should read."""

    def finish(self) -> None:
        """No more steps."""


class Silent:
    """Says nothing."""

    def start(self, total: int, description: str) -> None: ...

    def advance(self, description: str) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...


class Blocks(Protocol):
    """Where the blocks of a model are while it is pruned (:class:`pyprune.models.skeleton.Skeleton` is another)."""

    @property
    def model(self) -> nn.Module:
        """What has names and shapes; weights may be elsewhere."""

    def embedding(self) -> AbstractContextManager[nn.Module]:
        """Within it the model can run up to its first block."""

    def open(self, index: int) -> tuple[nn.Module, nn.Module]:
        """A block as it was, and the one to prune; float32."""


@dataclass(frozen=True)
class InMemory:
    """Blocks of a float32 model, pruned in place."""

    model: nn.Module
    adapter: Adapter

    def embedding(self) -> AbstractContextManager[nn.Module]:
        """The model as it is."""
        return nullcontext(self.model)

    def open(self, index: int) -> tuple[nn.Module, nn.Module]:
        """A copy, and the model's own block."""
        block = self.adapter.blocks(self.model)[index]
        return copy.deepcopy(block), block


@dataclass
class Outcome:
    """What a run found.

    Attributes
    ----------
    masks : dict of str to Tensor
        By full linear name; empty where the driver was told not to keep them.
    records : list of dict
        One per linear, in order.
    units : dict of str to int
        Heads and neurons, ``removed`` and ``total``.
    seconds : dict of str to float
        By stage.
    resumed : int
        Blocks that came from the journal.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    units: dict[str, int] = field(default_factory=lambda: {"removed": 0, "total": 0})
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    resumed: int = 0


@dataclass
class Driver:
    """Everything a run needs, fixed before it starts.

    Attributes
    ----------
    blocks : Blocks
        Run within :func:`pyprune.models.replay.quiet` of their model.
    adapter, recipe, pattern
    batches : sequence of dict of str to Tensor
    damping : float, optional
        Default: the solver's own.
    options : mapping
        For the solver.
    spill : Path, optional
        Folder for hidden states.
    journal : Journal, optional
    progress : Progress
    keep_masks : bool
        False: they are in the journal, and need not be in memory.
    """

    blocks: Blocks
    adapter: Adapter
    recipe: Recipe
    pattern: Pattern
    batches: Sequence[Mapping[str, Tensor]]
    damping: float | None
    options: Mapping[str, Any]
    spill: Path | None
    journal: Journal | None
    progress: Progress
    keep_masks: bool = True

    def run(self) -> Outcome:
        """Prune all blocks.

        Raises
        ------
        NumericsError
            A layer could not be solved; the message names it.
        """
        outcome = Outcome()
        model = self.blocks.model
        shapes = self.adapter.blocks(model)
        outcome.resumed = 0 if self.journal is None else self.journal.finished(len(shapes))
        steps = len(self.adapter.linears(shapes[0])) * (len(shapes) - outcome.resumed) + outcome.resumed
        self.progress.start(steps, "embedding the calibration text")
        try:
            with accounting.timed(outcome.seconds, "embed"), self.blocks.embedding() as ready:
                stream = DualStream(ready, self.adapter, self.batches, spill=self.spill)
            with stream:
                for index in range(len(shapes)):
                    self._block(stream, outcome, index, last=index + 1 == len(shapes))
        finally:
            self.progress.finish()
        return outcome

    def _block(self, stream: DualStream, outcome: Outcome, index: int, *, last: bool) -> None:
        prefix = self.adapter.block_name(self.blocks.model, index)
        with accounting.timed(outcome.seconds, "load"):
            dense, block = self.blocks.open(index)
        if self.journal is not None and index < outcome.resumed:
            self._restore(block, prefix, self.journal.load(index), outcome)
            if not last:
                with accounting.timed(outcome.seconds, "resume"):
                    stream.skip(dense, block)
            self.progress.advance(f"{prefix} (from the journal)")
            return
        self._prune_block(stream, dense, block, prefix, outcome, index)
        if not last:
            with accounting.timed(outcome.seconds, "advance"):
                stream.advance(block)

    def _restore(self, block: nn.Module, prefix: str, finished: FinishedBlock, outcome: Outcome) -> None:
        linears = self.adapter.linears(block)
        finished.fill(linears, {name: tuple(linear.weight.shape) for name, linear in linears.items()}, prefix)
        # In the model's order, as in a run of one piece: the saved files are then the same byte for byte.
        self._enter(prefix, {name: finished.masks[name] for name in linears}, finished.records, outcome)

    def _enter(self, prefix: str, masks: Mapping[str, Tensor], records: list[dict[str, Any]], outcome: Outcome) -> None:
        for key, count in accounting.units(self.blocks.model, self.adapter, masks).items():
            outcome.units[key] += count
        if self.keep_masks:
            outcome.masks |= {f"{prefix}.{name}": mask for name, mask in masks.items()}
        outcome.records += records

    def _prune_block(
        self, stream: DualStream, dense: nn.Module, block: nn.Module, prefix: str, outcome: Outcome, index: int
    ) -> None:
        linears = self.adapter.linears(block)
        masks: dict[str, Tensor] = {}
        records: list[dict[str, Any]] = []
        for number in range(len(self.adapter.groups)):
            for name, record, mask in self._group(stream, dense, block, prefix, outcome, number):
                masks[name] = mask
                records.append(record)
                if len(records) < len(linears):
                    self.progress.advance(record["name"])
        if self.journal is not None:
            with accounting.timed(outcome.seconds, "journal"):
                self.journal.save(index, FinishedBlock(linear_tensors(linears), masks, records))
        self._enter(prefix, masks, records, outcome)
        # Told only now: whoever stops the run here finds the block in the journal.
        self.progress.advance(records[-1]["name"])

    def _group(
        self, stream: DualStream, dense: nn.Module, block: nn.Module, prefix: str, outcome: Outcome, number: int
    ) -> Iterator[tuple[str, dict[str, Any], Tensor]]:
        # A function of its own, so that the moments of one group are gone before those of the next are summed.
        group = self.adapter.groups[number]
        linears = self.adapter.linears(block)
        members = {name: linears[name] for name in group}
        site = f"{prefix}.{group[0]}" + (f" (and {len(group) - 1} more)" if len(group) > 1 else "")
        with accounting.timed(outcome.seconds, "statistics"):
            moments = self._measure(stream, dense, block, number, members, site)
        yield from self._solve(moments, members, prefix, outcome)

    def _measure(
        self,
        stream: DualStream,
        dense: nn.Module,
        block: nn.Module,
        number: int,
        members: Mapping[str, nn.Linear],
        site: str,
    ) -> Moments:
        first = next(iter(members.values()))
        outputs = {name: linear.out_features for name, linear in members.items()}
        moments = Moments(first.in_features, outputs, name=site, device=first.weight.device)
        for inputs, targets, keep in stream.group(dense, block, number):
            moments.add(inputs, targets, keep)
        return moments.finish()

    def _solve(
        self, moments: Moments, members: Mapping[str, nn.Linear], prefix: str, outcome: Outcome
    ) -> Iterator[tuple[str, dict[str, Any], Tensor]]:
        names = {name: f"{prefix}.{name}" for name in members}
        problems = self.recipe.problems(moments, members, names)
        for name, linear in members.items():
            with accounting.timed(outcome.seconds, "solve"):
                solution = solvers.solve(
                    problems.pop(name), self.pattern, self.recipe.solver, damping=self.damping, **self.options
                )
                bias = self.recipe.bias(moments, name, linear, solution.weight)
                linear.weight.data.copy_(solution.weight)
                if bias is not None:
                    linear.bias.data.copy_(bias)
                error = moments.error(name, linear.weight, linear.bias)
            for note in solution.notes:
                self.progress.note(f"{names[name]}: {note}")
            rows, cols = linear.weight.shape
            kept = int(solution.mask.sum())
            yield (
                name,
                {
                    "name": names[name],
                    "rows": rows,
                    "cols": cols,
                    "kept": kept,
                    "sparsity": 1.0 - kept / (rows * cols),
                    "error": error,
                    "local_error": solution.error,
                    "damping": solution.damping,
                    "condition": solution.condition,
                    "seconds": solution.seconds,
                    "notes": list(solution.notes),
                },
                solution.mask.cpu(),
            )
