# SPDX-License-Identifier: Apache-2.0
"""What is left of an encoder whose heads, channels and neurons were cut: which, how many, and what they cost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError

_LARGEST = 2**31  # of a size that is read from a file
_LAYERS = 2**16


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one layer, whichever units they are.

    Attributes
    ----------
    query : tuple of int
        Channels of queries and of keys, by head. A head may have none: it then looks at all tokens alike.
    value : tuple of int
        Channels of values, by head; at least one each.
    neurons : int
        Of the feed-forward half.
    """

    query: tuple[int, ...]
    value: tuple[int, ...]
    neurons: int

    def padded(self, width: int) -> int:
        """Channels of every head in an attention that wants them all alike: those of a dense one, or of the widest."""
        if all(channels == width for channels in (*self.query, *self.value)):
            return width
        return max(1, *self.query, *self.value)

    def parameters(self, hidden: int) -> int:
        """Parameters of the layer, biases and both norms included, of hidden states of so many features."""
        attention = sum(self.query) * 2 * (hidden + 1) + sum(self.value) * (2 * hidden + 1)
        return attention + self.neurons * (2 * hidden + 1) + 6 * hidden

    def macs(self, hidden: int, tokens: float) -> float:
        """Multiply-adds of linears and attention, of one sequence of ``tokens`` tokens."""
        channels = sum(self.query) + sum(self.value)
        return tokens * 2 * hidden * (channels + self.neurons) + tokens**2 * channels


@dataclass(frozen=True)
class LayerUnits:
    """The units of one layer that are kept, by their numbers in the dense layer; all in ascending order.

    Attributes
    ----------
    heads : tuple of int
        Kept heads. None of them: attention adds its output bias, ``LN(x + b)``.
    query : tuple of tuple of int
        For each kept head its channels of queries and keys, from 0 within the head. There may be none.
    value : tuple of tuple of int
        For each kept head its channels of values, at least one.
    neurons : tuple of int
        Kept neurons. None of them: the feed-forward half adds its output bias.
    """

    heads: tuple[int, ...]
    query: tuple[tuple[int, ...], ...]
    value: tuple[tuple[int, ...], ...]
    neurons: tuple[int, ...]

    @property
    def shape(self) -> LayerShape:
        """How many of each."""
        query, value = (tuple(map(len, channels)) for channels in (self.query, self.value))
        return LayerShape(query, value, len(self.neurons))


@dataclass(frozen=True)
class Units:
    """What is kept of an encoder.

    Parameters
    ----------
    hidden : int
        Features of the hidden states.
    heads, width, neurons : int
        Of every dense layer: heads, channels of a head, neurons.
    layers : tuple of LayerUnits

    Raises
    ------
    InputError
        An index out of range, out of order or twice; channels that are not one list a head; a head without values.

    Examples
    --------
    >>> neurons = torch.tensor([[True, False, True]])
    >>> units = Units.from_masks(4, torch.tensor([[True, False]]), neurons, width=2)
    >>> units.layers[0]
    LayerUnits(heads=(0,), query=((0, 1),), value=((0, 1),), neurons=(0, 2))
    >>> units.parameters(), Units.dense(4, 2, 2, 3, layers=1).parameters()
    (80, 127)
    >>> Units.from_json(units.to_json()) == units
    True
    """

    hidden: int
    heads: int
    width: int
    neurons: int
    layers: tuple[LayerUnits, ...]

    def __post_init__(self) -> None:
        for index, layer in enumerate(self.layers):
            where = f"layer {index}"
            _hold(layer.heads, self.heads, f"{where}: heads")
            _hold(layer.neurons, self.neurons, f"{where}: neurons")
            if not len(layer.query) == len(layer.value) == len(layer.heads):
                seen = f"{len(layer.heads)} heads, {len(layer.query)} and {len(layer.value)} lists"
                raise InputError(f"{where}: channels are one list for each kept head", seen=seen)
            for head, query, value in zip(layer.heads, layer.query, layer.value, strict=True):
                _hold(query, self.width, f"{where}: query channels of head {head}")
                _hold(value, self.width, f"{where}: value channels of head {head}")
                if not value:
                    raise InputError(f"{where}: head {head} has no value channels", hint="leave the head out")

    @classmethod
    def dense(cls, hidden: int, heads: int, width: int, neurons: int, *, layers: int) -> Units:
        """Everything kept."""
        channels = (tuple(range(width)),) * heads
        layer = LayerUnits(tuple(range(heads)), channels, channels, tuple(range(neurons)))
        return cls(hidden, heads, width, neurons, (layer,) * layers)

    @classmethod
    def from_masks(
        cls,
        hidden: int,
        heads: Tensor | None,
        neurons: Tensor,
        *,
        width: int | None = None,
        query: Tensor | None = None,
        value: Tensor | None = None,
    ) -> Units:
        """The units that masks keep; True = kept.

        Parameters
        ----------
        hidden : int
        heads : Tensor of bool, shape (layers, heads), optional
            Default: all that have a value channel.
        neurons : Tensor of bool, shape (layers, neurons)
        width : int, optional
            Channels of a head, where neither ``query`` nor ``value`` says it.
        query, value : Tensor of bool, shape (layers, heads, width), optional
            Channels; default all. A head without values is left out, whatever ``heads`` says.

        Raises
        ------
        InputError
            Shapes that do not fit each other, or masks that are not bool.
        """
        given = [mask for mask in (query, value) if mask is not None]
        if any(mask.dim() != 3 for mask in given):
            raise InputError("masks of channels are [layers, heads, width]", seen=str([list(m.shape) for m in given]))
        if given:
            count, width = given[0].shape[1:]
        elif heads is None or width is None:
            raise InputError("units without masks of channels need heads and width")
        else:
            count = heads.shape[-1]
        layers = len(neurons)
        whole = torch.ones(layers, count, width, dtype=torch.bool)
        query, value = (whole if mask is None else mask.cpu() for mask in (query, value))
        heads = torch.ones(layers, count, dtype=torch.bool) if heads is None else heads.cpu()
        for name, mask, shape in (
            ("heads", heads, (layers, count)),
            ("neurons", neurons, (layers, neurons.shape[-1])),
            ("query", query, tuple(whole.shape)),
            ("value", value, tuple(whole.shape)),
        ):
            if mask.dtype != torch.bool or tuple(mask.shape) != shape:
                raise InputError(
                    f"the mask of {name} does not fit",
                    asked=f"bool {list(shape)}",
                    seen=f"{mask.dtype} {list(mask.shape)}",
                )
        heads = heads & value.any(dim=2)
        found = tuple(
            LayerUnits(
                kept := _indices(heads[layer]),
                tuple(_indices(query[layer, head]) for head in kept),
                tuple(_indices(value[layer, head]) for head in kept),
                _indices(neurons[layer]),
            )
            for layer in range(layers)
        )
        return cls(hidden, count, width, neurons.shape[-1], found)

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """Sizes of the layers."""
        return tuple(layer.shape for layer in self.layers)

    def masks(self) -> tuple[Tensor, Tensor]:
        """Kept heads ``[layers, heads]`` and neurons ``[layers, neurons]``, bool, True = kept."""
        heads = torch.zeros(len(self.layers), self.heads, dtype=torch.bool)
        neurons = torch.zeros(len(self.layers), self.neurons, dtype=torch.bool)
        for index, layer in enumerate(self.layers):
            heads[index, list(layer.heads)] = True
            neurons[index, list(layer.neurons)] = True
        return heads, neurons

    def parameters(self) -> int:
        """Parameters of all layers, biases and norms included."""
        return sum(shape.parameters(self.hidden) for shape in self.shapes)

    def macs(self, tokens: float) -> float:
        """Multiply-adds of all layers, of one sequence of ``tokens`` tokens. FLOPs are twice that."""
        return sum(shape.macs(self.hidden, tokens) for shape in self.shapes)

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        sizes = {name: getattr(self, name) for name in ("hidden", "heads", "width", "neurons")}
        layers = [
            {
                "heads": list(layer.heads),
                "query": [list(channels) for channels in layer.query],
                "value": [list(channels) for channels in layer.value],
                "neurons": list(layer.neurons),
            }
            for layer in self.layers
        ]
        return {**sizes, "layers": layers}

    @classmethod
    def from_json(cls, value: object) -> Units:
        """Units as :meth:`to_json` wrote them.

        Raises
        ------
        InputError
            Anything else.
        """
        record = _record(value, cls)
        sizes = {name: _size(record[name], name) for name in ("hidden", "heads", "width", "neurons")}
        layers = []
        for index, item in enumerate(_items(record["layers"], "layers")):
            layer, where = _record(item, LayerUnits), f"layer {index}"
            query, value = (
                tuple(_sizes(channels, f"{where}: {name}") for channels in _items(layer[name], f"{where}: {name}"))
                for name in ("query", "value")
            )
            heads, neurons = (_sizes(layer[name], f"{where}: {name}") for name in ("heads", "neurons"))
            layers.append(LayerUnits(heads, query, value, neurons))
        return cls(**sizes, layers=tuple(layers))


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


def _hold(indices: Sequence[int], count: int, what: str) -> None:
    """Raise unless these are different numbers below ``count``, in ascending order."""
    if any(not 0 <= index < count for index in indices):
        raise InputError(f"{what} out of range", asked=f"0 to {count - 1}", seen=_few(indices))
    if any(second <= first for first, second in itertools.pairwise(indices)):
        raise InputError(f"{what} are not in ascending order, each once", seen=_few(indices))


def _few(values: Sequence[int]) -> str:
    return ", ".join(str(value)[:20] for value in values[:8]) + (" …" if len(values) > 8 else "")


def _record(value: object, kind: type) -> Mapping[str, Any]:
    names = {field.name for field in fields(kind)}
    if not isinstance(value, dict) or value.keys() != names:
        seen = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise InputError("not a description of units", asked=", ".join(sorted(names)), seen=str(seen)[:200])
    return value


def _items(value: object, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > _LAYERS:
        raise InputError(f"{what}: not a list", seen=type(value).__name__)
    return value


def _size(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise InputError(f"{what}: not a size", seen=repr(value)[:80])
    return value


def _sizes(value: object, what: str) -> tuple[int, ...]:
    return tuple(_size(item, what) for item in _items(value, what))
