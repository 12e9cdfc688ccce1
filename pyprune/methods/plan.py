# SPDX-License-Identifier: Apache-2.0
"""What a run will do, said before it does it: layers, exact counts, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pyprune import backends
from pyprune.methods.calibration import Calibration
from pyprune.methods.recipe import Recipe
from pyprune.models import Adapter
from pyprune.patterns import Pattern
from pyprune.stats.moments import CHUNK

_MIB = 2**20


@dataclass(frozen=True)
class PlannedLayer:
    """One linear: full name, shape, and how many of its weights will stay."""

    name: str
    rows: int
    cols: int
    kept: int


@dataclass(frozen=True)
class Memory:
    """Estimated bytes beyond the model as given. ``total`` is the most that is needed at one time.

    Attributes
    ----------
    model : int
        The float32 working copy, and the dense twin of one block.
    streams : int
        Hidden states of all batches; 0 when spilled.
    forward : int
        Activations of the largest batch.
    statistics : int
        Moments of the largest group, with the chunk of rows being gathered.
    solver : int
        Factorisations and copies of the largest layer.
    disk : int
        Spilled streams.
    """

    model: int
    streams: int
    forward: int
    statistics: int
    solver: int
    disk: int

    @property
    def total(self) -> int:
        # Activations are gone when a layer is solved.
        return self.model + self.streams + self.statistics + max(self.forward, self.solver)

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Plan:
    """Layers, counts and memory of a run.

    Attributes
    ----------
    method, solver, pattern : str
    rectify, refit_bias : bool
    layers : tuple of PlannedLayer
    memory : Memory
    data : dict
        :meth:`Calibration.to_dict`.
    notes : tuple of str
        What a person should know before starting.
    """

    method: str
    solver: str
    pattern: str
    rectify: bool
    refit_bias: bool
    layers: tuple[PlannedLayer, ...]
    memory: Memory
    data: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Prunable weights."""
        return sum(layer.rows * layer.cols for layer in self.layers)

    @property
    def kept(self) -> int:
        """Weights that stay; exact."""
        return sum(layer.kept for layer in self.layers)

    def describe(self) -> list[str]:
        """A few lines for a person."""
        memory = self.memory
        lines = [
            f"{self.method}: {self.pattern}, solver {self.solver}, {len(self.layers)} linear layers",
            f"weights: {self.kept:,} of {self.weights:,} stay ({1 - self.kept / self.weights:.2%} removed)",
            f"calibration: {self.data['sentences']:,} sentences, {self.data['tokens']:,} tokens",
            f"memory: about {memory.total / _MIB:,.0f} MiB beyond the model (hidden states "
            f"{memory.streams / _MIB:,.0f}, copies {memory.model / _MIB:,.0f}, activations "
            f"{memory.forward / _MIB:,.0f}, statistics {memory.statistics / _MIB:,.0f}, "
            f"solver {memory.solver / _MIB:,.0f})",
        ]
        if memory.disk:
            lines.append(f"disk: {memory.disk / _MIB:,.0f} MiB for spilled hidden states")
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "method": self.method,
            "solver": self.solver,
            "pattern": self.pattern,
            "rectify": self.rectify,
            "refit_bias": self.refit_bias,
            "layers": [asdict(layer) for layer in self.layers],
            "weights": self.weights,
            "kept": self.kept,
            "memory": self.memory.to_dict(),
            "data": self.data,
            "notes": list(self.notes),
        }


def make_plan(
    model: nn.Module,
    adapter: Adapter,
    recipe: Recipe,
    pattern: Pattern,
    calibration: Calibration,
    *,
    spill: Path | None,
    inplace: bool,
) -> Plan:
    """Check the pattern against every layer and add up what the run needs.

    Raises
    ------
    InputError
        The pattern does not fit a layer; the message names it.
    """
    layers = []
    for index, block in enumerate(adapter.blocks(model)):
        prefix = adapter.block_name(model, index)
        for name, linear in adapter.linears(block).items():
            rows, cols = linear.weight.shape
            pattern.check(rows, cols, f"{prefix}.{name}")
            layers.append(PlannedLayer(f"{prefix}.{name}", rows, cols, pattern.kept(rows, cols)))
    widest = max(layer.cols for layer in layers)
    notes = list(calibration.notes)
    if calibration.tokens < widest and recipe.solver != "magnitude":
        notes.append(
            f"{calibration.tokens} tokens are fewer than the {widest} inputs of the widest layer: "
            "its statistics are rank-deficient and only the damping decides there"
        )
    return Plan(
        method=recipe.name,
        solver=recipe.solver,
        pattern=pattern.describe(),
        rectify=recipe.rectify,
        refit_bias=recipe.refit_bias,
        layers=tuple(layers),
        memory=estimate(model, adapter, calibration, spill=spill is not None, inplace=inplace),
        data=calibration.to_dict(),
        notes=tuple(notes),
    )


def estimate(model: nn.Module, adapter: Adapter, calibration: Calibration, *, spill: bool, inplace: bool) -> Memory:
    """Bytes a run needs beyond the model as given; meant to be an upper bound of a loose kind."""
    config: Any = model.config
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    blocks = adapter.blocks(model)
    copy = 0 if inplace else 4 * sum(p.numel() for p in model.parameters())
    twin = 4 * max(sum(p.numel() for p in block.parameters()) for block in blocks)
    streams = 4 * 4 * calibration.padded * hidden
    block = adapter.linears(blocks[0])
    groups = [[block[name] for name in group] for group in adapter.groups]
    return Memory(
        model=copy + twin,
        streams=0 if spill else streams,
        forward=_forward(calibration, hidden, heads, max(group[0].out_features for group in groups)),
        statistics=max(_statistics(group[0].in_features, _outs(group)) for group in groups),
        solver=max(_solver(group[0].in_features, _outs(group)) for group in groups),
        disk=streams if spill else 0,
    )


def _outs(group: Sequence[nn.Linear]) -> int:
    return sum(linear.out_features for linear in group)


def _forward(calibration: Calibration, hidden: int, heads: int, inner: int) -> int:
    most = 0
    for batch in calibration.batches:
        sentences, tokens = batch["input_ids"].shape
        # Query, key, value, context and residuals; the feed-forward before and after its activation; the scores.
        features = sentences * tokens * (10 * hidden + 3 * inner)
        scores = 2 * sentences * heads * tokens * tokens
        most = max(most, features + scores)
    return 4 * most


def _statistics(inputs: int, outputs: int) -> int:
    sums = 8 * (inputs * inputs + inputs * outputs)
    return sums + 4 * CHUNK * (inputs + outputs) + 12 * CHUNK * max(inputs, outputs)


def _solver(inputs: int, outputs: int) -> int:
    # Float64 matrices alive at the peak. Square: gram, its symmetric form, damped, factor, inverse, and two
    # temporaries. Rectangular: cross, right side, rectified, pruned, order, loss and two temporaries. A growing
    # factor per thread in exact OBS, by rows and by columns, is at most square. What kernels keep between calls is
    # bounded.
    matrices = 8 * (7 * inputs * inputs + 8 * inputs * outputs + 2 * backends.threads() * inputs * inputs)
    return matrices + backends.scratch_bytes()
