# SPDX-License-Identifier: Apache-2.0
"""A model in training loses units: zeros first, then narrower linears, with what its optimizer remembers; and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.models import adapter_for
from pyprune.structured.cutting import among, any_linears, cut_block, kept_places, places_within
from pyprune.structured.expanding import fill_block
from pyprune.training.gating import SITES
from pyprune.units import LayerUnits, Units


def cut(model: nn.Module, units: Units, optimizer: Any, held: Units | None = None) -> None:
    """Put narrower linears into an encoder, in place; its pruned units are zero, so that it computes the same.

    Parameters
    ----------
    model : nn.Module
        An encoder of transformers.
    units : Units
        What is kept.
    optimizer : torch.optim.Optimizer or None
        Has the new parameters in the places of the old ones afterwards, with the moments of what is kept.
    held : Units, optional
        What the model has been cut to before. Default: it is dense.
    """
    adapter = adapter_for(model)
    for block, layer, there in zip(adapter.blocks(model), units.layers, _layers(units, held), strict=True):
        old = any_linears(block, adapter)
        cut_block(block, adapter, layer, units.width, there)
        new = any_linears(block, adapter)
        if optimizer is None:
            continue
        for name, (rows, columns) in places_within(adapter, layer, units.width, there).items():
            _hand_on(optimizer, old[name].weight, new[name].weight, rows, columns)
            if old[name].bias is not None:
                _hand_on(optimizer, old[name].bias, new[name].bias, rows)


def grow(model: nn.Module, units: Units) -> None:
    """The inverse of :func:`cut`, in place: zeros where units are gone."""
    adapter = adapter_for(model)
    dense = Units.dense(units.hidden, units.heads, units.width, units.neurons, layers=len(units.layers))
    for block, layer, whole in zip(adapter.blocks(model), units.layers, dense.shapes, strict=True):
        fill_block(block, adapter, layer, whole, units.width)


@torch.no_grad()
def clear(model: nn.Module, gone: Mapping[str, Tensor], optimizer: Any, held: Units | None = None) -> None:
    """Zero what belongs to units that go, in place, and what the optimizer remembers of it.

    Units that are zero on both of their sides have no gradient, so that nothing has to be held afterwards.

    Parameters
    ----------
    model : nn.Module
    gone : mapping of str to Tensor of bool
        ``"neurons"`` ``[layers, neurons]``, ``"query"`` and ``"value"`` ``[layers, heads, width]``.
    optimizer : torch.optim.Optimizer or None
    held : Units, optional
        What the model has been cut to, those that go among it. Default: it is dense.
    """
    adapter = adapter_for(model)
    (q, k, v), (out,), (up,), (down,) = adapter.groups
    for layer, block in enumerate(adapter.blocks(model)):
        neuron, query, value = (torch.nonzero(gone[s][layer].flatten().cpu()).flatten() for s in SITES)
        places = {q: (query, None), k: (query, None), v: (value, None), out: (None, value)}
        places |= {up: (neuron, None), down: (None, neuron)}
        there = None if held is None else kept_places(adapter, held.layers[layer], held.width)
        for name, linear in any_linears(block, adapter).items():
            rows, columns = places[name]
            if there is not None:
                rows, columns = among(rows, there[name][0]), among(columns, there[name][1])
            _zero(linear, rows, columns, optimizer)


def cut_masks(model: nn.Module, masks: Mapping[str, Tensor], held: Units) -> dict[str, Tensor]:
    """Masks of the weights of a dense model, by linear name, as masks of what is left in one that has been cut."""
    adapter, found = adapter_for(model), {}
    for index, layer in enumerate(held.layers):
        prefix = adapter.block_name(model, index)
        for name, (rows, columns) in kept_places(adapter, layer, held.width).items():
            mask = masks[f"{prefix}.{name}"]
            mask = mask if rows is None else mask[rows]
            found[f"{prefix}.{name}"] = mask if columns is None else mask[:, columns]
    return found


def _zero(linear: nn.Linear, rows: Tensor | None, columns: Tensor | None, optimizer: Any) -> None:
    """Rows with their biases, or columns."""
    found = rows if rows is not None else columns
    if found is None or not len(found):
        return
    for parameter in (linear.weight, linear.bias):
        if parameter is None or (rows is None and parameter.dim() == 1):
            continue
        remembered = {} if optimizer is None else optimizer.state.get(parameter, {})
        moments = [v for v in remembered.values() if isinstance(v, Tensor) and v.shape == parameter.shape]
        for tensor in (parameter, *moments):
            tensor.index_fill_(0 if rows is not None else 1, found.to(tensor.device), 0.0)


def _layers(units: Units, held: Units | None) -> Sequence[LayerUnits | None]:
    return (None,) * len(units.layers) if held is None else held.layers


def _hand_on(optimizer: Any, old: Tensor, new: Tensor, *places: Tensor | None) -> None:
    """A parameter takes the place of another, of which it is the entries at places along each axis."""
    if new is old:
        return
    for group in optimizer.param_groups:
        kept = [new if parameter is old else parameter for parameter in group["params"]]
        group["params"] = [parameter for parameter in kept if parameter is not new or new.numel()]
    remembered = optimizer.state.pop(old, None)
    if remembered is not None and new.numel():
        optimizer.state[new] = {
            key: _at(value, places) if isinstance(value, Tensor) and value.shape == old.shape else value
            for key, value in remembered.items()
        }


def _at(value: Tensor, places: tuple[Tensor | None, ...]) -> Tensor:
    for axis, kept in enumerate(places):
        if kept is not None:
            value = torch.index_select(value, axis, kept.to(value.device))
    return value
