# SPDX-License-Identifier: Apache-2.0
"""What methods that prune heads and neurons share: the run they work in, measuring, and fitting what is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.budgets import UnitCosts, allowance
from pyprune.latency import LatencyCosts
from pyprune.methods.accounting import timed
from pyprune.methods.calibration import Calibration
from pyprune.methods.driver import Progress
from pyprune.methods.journal import FinishedBlock, Journal, linear_tensors
from pyprune.methods.objectives import Objective, Predictions
from pyprune.models import Adapter
from pyprune.models.sublayers import KINDS, ResidualStreams, SubLayer, gated, sub_layers
from pyprune.solvers import LayerProblem
from pyprune.stats import GateGradients, Moments
from pyprune.structured import dense_units
from pyprune.units import Units

# Losses are divided by the sentences of a batch as published, whatever the batches here: squares of a batch's gradient
# then keep their size beside other terms (Park et al., ICLR 2024, and Kwon et al., NeurIPS 2022).
_PUBLISHED_BATCH = 32
_CONSTANT = 1e-10  # part of an input's second moment; with less variance it is one with the bias
OUT = "out"  # the one target of a sub-layer's moments


@dataclass
class UnitRun:
    """A model being pruned, within :func:`pyprune.models.replay.quiet`.

    Attributes
    ----------
    model, adapter
        In float32, pruned in place.
    calibration : Calibration
    costs : UnitCosts or LatencyCosts
    share : float
        Part of the dense encoder's cost that may be left.
    objective : Objective
    generator : torch.Generator
        For drawn labels.
    progress : Progress
    journal : Journal, optional
        Of finished blocks.
    parts : list of SubLayer
        Of the model, bottom up.
    dense : Units
        All units there were.
    masks : list of Tensor of bool, shape (units,)
        Of finished sub-layers, on the CPU.
    records : list of dict
        One per finished sub-layer, for the report.
    seconds : dict of str to float
        By stage.
    notes : list of str
    resumed : int
        Blocks that the journal holds.
    """

    model: nn.Module
    adapter: Adapter
    calibration: Calibration
    costs: UnitCosts | LatencyCosts
    share: float
    objective: Objective
    generator: torch.Generator
    progress: Progress
    journal: Journal | None = None
    masks: list[Tensor] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = sub_layers(self.model, self.adapter)
        self.dense = dense_units(self.model)
        self.resumed = 0 if self.journal is None else self.journal.finished(len(self.dense.layers))

    def budget(self, share: float) -> int:
        """Cost of a part of the dense encoder, rounded down, without what is left even without units."""
        return max(allowance(share, self.costs.total(self.dense)) - self.costs.fixed, 0)

    def streams(self) -> ResidualStreams:
        """Both streams at the first block; asked for while the model is dense."""
        with self.timed("embed"):
            return ResidualStreams(self.model, self.adapter, self.calibration.batches)

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the time spent within to a stage."""
        return timed(self.seconds, stage)

    def note(self, text: str) -> None:
        """Something a person should read."""
        self.notes.append(text)
        self.progress.note(text)

    def record(self, part: SubLayer, kept: Tensor, **more: Any) -> None:
        """Write down what became of a sub-layer, into the journal too where its block is finished, and that it is done.

        Parameters
        ----------
        part : SubLayer
            Already cut.
        kept : Tensor of bool, shape (units,)
        **more
            For its record.
        """
        entry = {"name": part.name, "kind": part.kind, "units": part.units, "kept": int(kept.sum())}
        self.records.append({**entry, **more})
        self.masks.append(kept)
        if self.journal is not None and part.half:
            with self.timed("journal"):
                linears = self.adapter.linears(self.adapter.blocks(self.model)[part.block])
                masks = dict(zip(KINDS, self.masks[-2:], strict=True))
                block = FinishedBlock(linear_tensors(linears), masks, self.records[-2:])
                self.journal.save(part.block, block)
        # Told only now: whoever stops the run here finds the block in the journal.
        self.progress.advance(part.name)

    def restore(self, block: int) -> bool:
        """Fill a block from the journal, if it is there."""
        if self.journal is None or block >= self.resumed:
            return False
        with self.timed("resume"):
            prefix = self.adapter.block_name(self.model, block)
            shapes = {kind: (self.parts[2 * block + half].units,) for half, kind in enumerate(KINDS)}
            finished = self.journal.load(block)
            finished.fill(self.adapter.linears(self.adapter.blocks(self.model)[block]), shapes, prefix)
        self.masks += [finished.masks[kind] for kind in KINDS]
        self.records += finished.records
        self.progress.advance(f"{prefix} (from the journal)")
        return True

    def units(self) -> Units:
        """What is kept, of all sub-layers."""
        heads, neurons = (torch.stack(self.masks[half::2]) for half in (0, 1))
        return Units.from_masks(self.dense.hidden, heads, neurons, width=self.dense.width)


@dataclass
class Measured:
    """Gates of a few sub-layers over all batches.

    Attributes
    ----------
    gradients : GateGradients
        Of single channels and neurons, by the sub-layers' names.
    squares : dict of str to Tensor
        ``E[x²]`` over real tokens of what each gate multiplies, float64 ``[in]``.
    notes : list of str
        What a person should read.
    """

    gradients: GateGradients
    squares: dict[str, Tensor]
    notes: list[str]


def measure(
    run: UnitRun,
    streams: ResidualStreams,
    parts: Sequence[SubLayer],
    loss: Callable[[int, Predictions], Tensor | None],
    *,
    backward: bool = True,
    store: bool = False,
) -> Measured:
    """Gate gradients and energies of ``parts``, which begin in the block where the student's stream is.

    Every batch is a step of the run's progress.

    Parameters
    ----------
    run, streams, parts
    loss : callable
        Of a batch's number and its predictions, summed over sentences.
    backward : bool
        False: only energies; what ``loss`` gives is not looked at.
    store : bool
        Keep the gradients of every batch.

    Raises
    ------
    NumericsError
        No batch had finite gradients.
    """
    device = parts[0].writes.weight.device
    sizes = {part.name: part.writes.in_features for part in parts}
    gradients = GateGradients(sizes, store=store, device=device)
    squares = {name: torch.zeros(count, dtype=torch.float64, device=device) for name, count in sizes.items()}
    real = [torch.nonzero(keep.flatten())[:, 0] for keep in streams.keep]
    where = real[0]

    def see(part: SubLayer, inputs: Tensor) -> None:
        rows = inputs.flatten(0, -2)
        rows = rows if len(where) == len(rows) else rows.index_select(0, where)
        squares[part.name] += rows.square().sum(dim=0, dtype=torch.float64)

    first_only = run.objective.first_only
    read_first = [part for part in parts if part.block == run.parts[-1].block] if first_only else []
    with gated(parts, see, first_only=read_first) as gates, torch.set_grad_enabled(backward):
        outputs = streams.outputs(parts[0].block, first_only=first_only)
        for number, keep in enumerate(streams.keep):
            where = real[number]
            value = loss(number, run.objective.read(next(outputs), keep))
            if backward:
                assert value is not None
                found = torch.autograd.grad(value / _PUBLISHED_BATCH, list(gates.values()))
                gradients.add(dict(zip(gates, found, strict=True)))
            run.progress.advance(f"{parts[0].name}: measuring")
    notes = []
    if backward and gradients.check().excluded:
        notes.append(f"{gradients.excluded} batches without finite gradients were left out")
        run.progress.note(f"{parts[0].name}: {notes[0]}")
    return Measured(gradients, {name: value / run.calibration.tokens for name, value in squares.items()}, notes)


def choose(run: UnitRun, parts: Sequence[SubLayer], scores: Sequence[Tensor], budget: int) -> list[Tensor]:
    """Masks of units ``[units]`` that keep the best scores of all parts together, within a budget; on the CPU."""
    return run.costs.by_threshold(scores, [part.half for part in parts], budget)


def columns_of(part: SubLayer, kept: Tensor) -> Tensor:
    """Inputs of a sub-layer's writing linear by number, those of kept units ``[units]``; one where none is kept."""
    return torch.nonzero(part.inputs(kept))[:, 0] if bool(kept.any()) else part.inputs(kept).new_zeros(1).long()


def gather_moments(
    streams: ResidualStreams, teacher: nn.Module, student: nn.Module, part: SubLayer, columns: Tensor
) -> Moments:
    """Moments of a student's sub-layer: some inputs of its writing linear, and the residual-corrected target."""
    linear = part.writes
    moments = Moments(len(columns), {OUT: linear.out_features}, name=part.name, device=linear.weight.device)
    for inputs, targets, keep in streams.half(teacher, student, part.half):
        moments.add(inputs[..., columns], {OUT: targets}, keep)
    return moments.finish()


def fit(part: SubLayer, moments: Moments, columns: Tensor, kept: Tensor, damping: float) -> dict[str, Any]:
    """Refit the writing linear of a sub-layer on the inputs of kept units, and its bias; all outputs share the columns.

    ``min E‖y − Ŵx − b‖² + λ‖Ŵ − W₀‖²`` over the kept columns, the others zero. The bias absorbs the means, and all of
    the target that can be said where nothing is kept. Inputs that do not vary keep their weights.

    Parameters
    ----------
    part : SubLayer
        Changed in place.
    moments : Moments
        Of the inputs ``columns``, in their order.
    columns : Tensor of int64, shape (kept inputs,)
        :func:`columns_of` ``kept``.
    kept : Tensor of bool, shape (units,)
    damping : float
        Ridge relative to the mean diagonal; raised where the system is singular.

    Returns
    -------
    dict
        ``damping`` used, and ``notes``.
    """
    linear, centred = part.writes, moments.centred()
    gram = centred.gram
    varying = gram.diagonal() > _CONSTANT * moments.gram.diagonal()
    fitted = linear.weight.detach()[:, columns].double() * part.inputs(kept)[columns]
    used = torch.nonzero(part.inputs(kept)[columns] & varying)[:, 0]
    found: dict[str, Any] = {"damping": 0.0, "notes": []}
    if len(used):
        some = linear.weight[:, columns[used]]
        problem = LayerProblem(some, gram[used][:, used], centred.cross(OUT)[:, used], name=part.name)
        fitted[:, used] = problem.start(damping)
        factor = problem.factorise(damping)
        found = {"damping": factor.damping, "notes": list(factor.notes)}
    linear.weight.data.zero_()
    linear.weight.data[:, columns] = fitted.to(linear.weight.dtype)
    linear.bias.data.copy_(centred.bias(OUT, fitted))
    return found
