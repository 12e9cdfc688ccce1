# SPDX-License-Identifier: Apache-2.0
"""How long layers of an encoder take on this machine, by the heads and neurons that are left of them."""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pyprune import backends
from pyprune.errors import InputError
from pyprune.latency import WAYS, LatencyTable
from pyprune.models import Adapter, adapter_for
from pyprune.models.replay import BlockCall, capture_call, quiet
from pyprune.sparse.packed import pack_blocks
from pyprune.structured import dense_units
from pyprune.structured.cutting import cut_block
from pyprune.units import LayerShape, LayerUnits, Units

_MOST_HEADS = 16  # numbers of heads that are timed; between them the line is straight
_NEURONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # parts of all neurons that are timed
_TURN = 0.004  # seconds that a candidate is called again and again in its turn


def measure_latency(
    model: nn.Module,
    *,
    batch: int = 32,
    length: int = 128,
    way: str = "optimized",
    rounds: int = 7,
) -> LatencyTable:
    """Time a layer of an encoder by the number of its heads, and of its neurons, in the real modules.

    For every number a layer is cut that has so many heads and no neurons, or so many neurons and no heads; what it
    takes longer than one without either is the time of that half. All take turns, round after round, and the median of
    each counts. The rest of a call is timed in the model without layers.

    Parameters
    ----------
    model : nn.Module
        A dense encoder of transformers, left as it is. With "optimized" in float32 on the CPU.
    batch, length : int
        Sequences of a call, and tokens of each; none of them padding.
    way : {"optimized", "eager"}
        What a pruned model will be used as: in the form of :func:`pyprune.optimize`, or as it is.
    rounds : int
        Measured ones; more are slower and less noisy.

    Raises
    ------
    InputError
        An unknown way, sizes below 1, or a model that cannot be cut.
    """
    if way not in WAYS:
        raise InputError(f"no latencies of {way!r}", hint=", ".join(WAYS))
    if min(batch, length, rounds) < 1:
        raise InputError("batch, length and rounds are at least 1", seen=f"{batch}, {length}, {rounds}")
    units, adapter, config = dense_units(model), adapter_for(model), _config(model)
    longest = int(getattr(config, "max_position_embeddings", length + 2)) - 2
    if length > longest:
        raise InputError("sequences are too long for the model", asked=f"at most {longest}", seen=str(length))
    # Any words will do but for the padding, of which RoBERTa counts none into its positions.
    word = 0 if getattr(config, "pad_token_id", None) != 0 else 1
    inputs = {"input_ids": torch.full((batch, length), word, dtype=torch.int64, device=next(model.parameters()).device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    heads = sorted({-(-units.heads * step // min(units.heads, _MOST_HEADS)) for step in range(1, _MOST_HEADS + 1)})
    heads = [count for count in heads if count <= units.heads]
    neurons = sorted({max(1, round(part * units.neurons)) for part in _NEURONS})
    with quiet(model), torch.inference_mode():
        hidden, call = capture_call(model, adapter.blocks(model)[0], inputs)
        candidates: dict[str, Callable[[], object]] = {}
        for name, shapes in _shapes(heads, neurons).items():
            blocks = [_cut(model, adapter, units, *shape) for shape in shapes]
            candidates[name] = _caller(model, adapter, blocks, call, hidden, way)
        without = _without_layers(model, adapter)
        candidates["rest"] = lambda: without(**inputs)
        took = _medians(candidates, rounds)
    one, two = took["empty"], took["two empty"]
    empty = min(max(two - one, 0.0), one)
    return LatencyTable(
        way=way,
        batch=batch,
        length=length,
        threads=torch.get_num_threads() if way == "eager" else backends.threads(),
        heads={count: max(took[f"{count} heads"] - one, 0.0) for count in heads},
        neurons={count: max(took[f"{count} neurons"] - one, 0.0) for count in neurons},
        empty=empty,
        rest=took["rest"] + one - empty,  # what a stack of layers takes once: packing and unpacking
        machine=f"{platform.machine()}, {backends.instructions()}",
    )


def _shapes(heads: list[int], neurons: list[int]) -> dict[str, list[tuple[int, int]]]:
    found = {"empty": [(0, 0)], "two empty": [(0, 0), (0, 0)]}
    return (
        found
        | {f"{count} heads": [(count, 0)] for count in heads}
        | {f"{count} neurons": [(0, count)] for count in neurons}
    )


def _config(model: nn.Module) -> Any:
    return model.config


def _cut(model: nn.Module, adapter: Adapter, units: Units, heads: int, neurons: int) -> nn.Module:
    channels = (tuple(range(units.width)),) * heads
    layer = LayerUnits(tuple(range(heads)), channels, channels, tuple(range(neurons)))
    block = copy.deepcopy(adapter.blocks(model)[0])
    cut_block(block, adapter, layer, units.width)
    return block


def _caller(
    model: nn.Module, adapter: Adapter, blocks: list[nn.Module], call: BlockCall, hidden: torch.Tensor, way: str
) -> Callable[[], object]:
    if way == "optimized":
        packed = pack_blocks(model, adapter, blocks, [_layer_shape(block, adapter, model) for block in blocks])
        packed.eval()
        return lambda: packed(hidden)

    def run() -> None:
        for block in blocks:
            call.run(block, hidden)

    return run


def _layer_shape(block: nn.Module, adapter: Adapter, model: nn.Module) -> LayerShape:
    width = _config(model).hidden_size // _config(model).num_attention_heads
    value, up = (block.get_submodule(adapter.groups[group][0]) for group in (0, 2))
    heads = (width,) * (int(value.out_features) // width)  # type: ignore[arg-type, call-overload]
    return LayerShape(heads, heads, int(up.out_features))  # type: ignore[arg-type, call-overload]


def _without_layers(model: nn.Module, adapter: Adapter) -> nn.Module:
    """A model that shares everything with another but the layers, of which it has none."""
    base: Any = getattr(model, "base_model", model)
    path = adapter.path.rpartition(".")
    stack = base.get_submodule(path[0])
    layers = getattr(stack, path[2])
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    memo[id(layers)] = nn.ModuleList()
    return copy.deepcopy(model, memo)


def _medians(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of a call of each; they take turns, and one call of each goes before."""
    names, calls = list(candidates), {}
    for name in names:
        candidates[name]()
        start = time.perf_counter()
        candidates[name]()
        calls[name] = max(1, round(_TURN / max(time.perf_counter() - start, 1e-6)))
    measured: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            for _ in range(calls[name]):
                candidates[name]()
            measured[name].append((time.perf_counter() - start) / calls[name])
    return {name: statistics.median(values) for name, values in measured.items()}
