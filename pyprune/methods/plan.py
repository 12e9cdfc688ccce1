# SPDX-License-Identifier: Apache-2.0
"""What a run will do, said before it does it: layers, exact counts, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from pyprune import backends
from pyprune.methods.calibration import Calibration
from pyprune.methods.request import Request
from pyprune.models import Adapter
from pyprune.models.skeleton import Skeleton
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
    """Estimated bytes beyond what the process holds before the run. ``total`` is the most needed at one time.

    Attributes
    ----------
    model : int
        The float32 working copy, and the dense twin of one block. Layer by layer: one block twice, and its masks.
    streams : int
        Hidden states of all batches, unless spilled, and attention masks.
    forward : int
        Activations of the largest batch.
    statistics : int
        Moments of the largest group, with the chunk of rows being gathered.
    solver : int
        Factorisations and copies of the largest layer.
    disk : int
        Spilled streams; layer by layer also the journal and the result.
    embeddings : int
        Layer by layer: what is held only while the text is embedded, or while a head is copied.
    storing : int
        Layer by layer: a finished block on its way to or from the journal.
    """

    model: int
    streams: int
    forward: int
    statistics: int
    solver: int
    disk: int
    embeddings: int = 0
    storing: int = 0

    @property
    def total(self) -> int:
        # Activations are gone when a layer is solved, moments when a block is stored.
        block = self.model + max(self.statistics + max(self.forward, self.solver), self.storing)
        return self.streams + max(block, self.embeddings)

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}

    def describe(self, *, streaming: bool = False) -> str:
        """One line for a person."""
        parts = {
            "hidden states": self.streams,
            "blocks" if streaming else "copies": self.model,
            "activations": self.forward,
            "statistics": self.statistics,
            "solver": self.solver,
            "embeddings, at first": self.embeddings,
            "storing": self.storing,
        }
        detail = ", ".join(f"{name} {size / _MIB:,.0f}" for name, size in parts.items() if size)
        where = "in all, the model is never whole in memory" if streaming else "beyond the model"
        return f"memory: about {self.total / _MIB:,.0f} MiB {where} ({detail})"


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
    streaming : bool
        Layer by layer: the model is never whole in memory.
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
    streaming: bool = False

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
            memory.describe(streaming=self.streaming),
        ]
        if memory.disk:
            what = "the journal, the result and spilled hidden states" if self.streaming else "spilled hidden states"
            lines.append(f"disk: {memory.disk / _MIB:,.0f} MiB for {what}")
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
            "streaming": self.streaming,
        }


def make_plan(
    model: nn.Module,
    adapter: Adapter,
    request: Request,
    calibration: Calibration,
    memory: Memory,
    *,
    streaming: bool = False,
) -> Plan:
    """Check the pattern against every layer and count what stays.

    Raises
    ------
    InputError
        The pattern does not fit a layer; the message names it.
    """
    layers = []
    recipe, pattern = request.recipe, request.pattern
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
        memory=memory,
        data=calibration.to_dict(),
        notes=tuple(notes),
        streaming=streaming,
    )


def estimate(model: nn.Module, adapter: Adapter, calibration: Calibration, *, spill: bool, inplace: bool) -> Memory:
    """Bytes a run needs beyond the model as given; meant to be an upper bound of a loose kind."""
    config: Any = model.config
    blocks = adapter.blocks(model)
    copy = 0 if inplace else 4 * sum(p.numel() for p in model.parameters())
    twin = 4 * max(sum(p.numel() for p in block.parameters()) for block in blocks)
    states = 4 * 4 * calibration.padded * int(config.hidden_size)
    block = adapter.linears(blocks[0])
    groups = [[block[name] for name in group] for group in adapter.groups]
    return Memory(
        model=copy + twin,
        streams=(0 if spill else states) + _masks(calibration, adapter, config),
        forward=forward_bytes(calibration, config, _outs(groups[2])),
        statistics=max(statistics_bytes(group[0].in_features, _outs(group)) for group in groups),
        solver=max(_solver(group[0].in_features, _outs(group)) for group in groups),
        disk=states if spill else 0,
    )


def estimate_streaming(skeleton: Skeleton, calibration: Calibration, *, spill: bool) -> Memory:
    """Bytes a run layer by layer needs in all; meant to be a ceiling."""
    model, adapter, specs = skeleton.model, skeleton.adapter, skeleton.specs
    common = estimate(model, adapter, calibration, spill=spill, inplace=True)
    block = adapter.blocks(model)[0]
    whole = sum(p.numel() for p in block.parameters())
    weights = sum(linear.weight.numel() for linear in adapter.linears(block).values())
    # A weight in its stored type is read, perhaps from mapped pages, while its place in the block is there already.
    largest = 2 * max(spec.bytes for name, spec in specs.items() if name.startswith(adapter.block_name(model, 0)))
    embeddings = [p for module in adapter.embedding_modules(model) for p in module.parameters()]
    result = sum(spec.bytes for spec in specs.values()) + len(skeleton) * weights // 8
    return replace(
        common,
        model=2 * 4 * whole + weights + largest,
        # In float32, and as stored in mapped pages and in a copy; float32 as stored needs no other.
        embeddings=max(sum(8 * p.numel() for p in embeddings), *(2 * spec.bytes for spec in specs.values())),
        # Tensors and masks once more, in one piece of bytes.
        storing=4 * whole + weights,
        disk=common.disk + result + len(skeleton) * (4 * whole + weights),
    )


def _outs(group: Sequence[nn.Linear]) -> int:
    return sum(linear.out_features for linear in group)


def fused(config: Any) -> bool:
    """Whether attention scores are never held as a whole."""
    return getattr(config, "_attn_implementation", None) == "sdpa"


def _masks(calibration: Calibration, adapter: Adapter, config: Any) -> int:
    # Of encoders only one row of a mask is kept, and of masks that are alike one (pyprune/models/replay.py).
    if not adapter.causal:
        return 0
    size = 1 if fused(config) else 4
    padded = full = 0
    for batch in calibration.batches:
        sentences, tokens = batch["input_ids"].shape
        mask = size * sentences * tokens * tokens
        if bool(batch["attention_mask"].all()):
            full = max(full, mask)
        else:
            padded += mask
    return padded + full


def forward_bytes(calibration: Calibration, config: Any, inner: int) -> int:
    """Activations of one block of the largest batch."""
    hidden, heads, most = int(config.hidden_size), int(config.num_attention_heads), 0
    for batch in calibration.batches:
        sentences, tokens = batch["input_ids"].shape
        # Query, key, value, context and residuals; the feed-forward before and after its activation; the scores.
        features = sentences * tokens * (10 * hidden + 3 * inner)
        scores = 0 if fused(config) else 2 * sentences * heads * tokens * tokens
        most = max(most, features + scores)
    return 4 * most


def statistics_bytes(inputs: int, outputs: int) -> int:
    """Moments of a group, and the chunk of rows being summed."""
    sums = 8 * (inputs * inputs + inputs * outputs)
    return sums + 4 * CHUNK * (inputs + outputs) + 12 * CHUNK * max(inputs, outputs)


def _solver(inputs: int, outputs: int) -> int:
    # Float64 matrices alive at the peak. Square: gram, its symmetric form, damped, factor, inverse, and two
    # temporaries. Rectangular: cross, right side, rectified, pruned, order, loss and two temporaries. A growing
    # factor per thread in exact OBS, by rows and by columns, is at most square. What kernels keep between calls is
    # bounded.
    matrices = 8 * (7 * inputs * inputs + 8 * inputs * outputs + 2 * backends.threads() * inputs * inputs)
    return matrices + backends.scratch_bytes()
