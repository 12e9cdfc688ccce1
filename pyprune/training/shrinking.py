# SPDX-License-Identifier: Apache-2.0
"""A model in training is cut to the units that it keeps, with what its optimizer remembers of them; and grown back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyprune.models import adapter_for
from pyprune.structured.cutting import any_linears, cut_block, kept_places
from pyprune.structured.expanding import fill_block
from pyprune.units import Units


def cut(model: nn.Module, units: Units, optimizer: Any) -> None:
    """Put narrower linears into a dense encoder, in place; its pruned units are zero, so that it computes the same.

    Parameters
    ----------
    model : nn.Module
        An encoder of transformers.
    units : Units
        What is kept.
    optimizer : torch.optim.Optimizer or None
        Has the new parameters in the places of the old ones afterwards, with the moments of what is kept.
    """
    adapter = adapter_for(model)
    for block, layer in zip(adapter.blocks(model), units.layers, strict=True):
        old = any_linears(block, adapter)
        cut_block(block, adapter, layer, units.width)
        new = any_linears(block, adapter)
        if optimizer is None:
            continue
        for name, (rows, columns) in kept_places(adapter, layer, units.width).items():
            _hand_on(optimizer, old[name].weight, new[name].weight, rows, columns)
            if old[name].bias is not None:
                _hand_on(optimizer, old[name].bias, new[name].bias, rows)


def grow(model: nn.Module, units: Units) -> None:
    """The inverse of :func:`cut`, in place: zeros where units are gone."""
    adapter = adapter_for(model)
    dense = Units.dense(units.hidden, units.heads, units.width, units.neurons, layers=len(units.layers))
    for block, layer, whole in zip(adapter.blocks(model), units.layers, dense.shapes, strict=True):
        fill_block(block, adapter, layer, whole, units.width)


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
