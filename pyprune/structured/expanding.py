# SPDX-License-Identifier: Apache-2.0
"""The dense model with zeros that a compact one stands for: what plain transformers loads."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import Adapter
from pyprune.structured.cutting import any_linears, dense_shape, kept_places, resize
from pyprune.structured.embeddings import whole_embeddings
from pyprune.structured.shapes import from_config, to_config
from pyprune.units import LayerShape, LayerUnits, Units


def expand(model: nn.Module, units: Units | None = None) -> nn.Module:
    """Put zeros where :func:`pyprune.compact` has cut, so that all layers have the size of their class again.

    Factored embeddings are multiplied out.

    Parameters
    ----------
    model : nn.Module
        Compact, or with factored embeddings; it is left as it is.
    units : Units, optional
        Where its heads, channels and neurons were. Default: the first places, which computes the same.

    Returns
    -------
    nn.Module
        Of the same class, mode, type and device, which needs nothing of pyprune.

    Raises
    ------
    InputError
        The model is not compact, or has other units.
    """
    adapter, dense = dense_shape(model)
    shapes = from_config(
        model.config, layers=len(dense.layers), heads=dense.heads, width=dense.width, neurons=dense.neurons
    )
    if shapes is None:
        whole = whole_embeddings(model)
        if whole is model:
            raise InputError("the model is not compact: it has all its zeros already")
        return whole
    if units is None:
        units = Units(dense.hidden, dense.heads, dense.width, dense.neurons, tuple(map(_first, shapes)))
    sizes = ("hidden", "heads", "width", "neurons")
    if units.shapes != shapes or any(getattr(units, name) != getattr(dense, name) for name in sizes):
        raise InputError("the units are not those of this model", hint="the folder was put together of two")
    large = copy.deepcopy(model)
    for block, layer, shape in zip(adapter.blocks(large), units.layers, dense.shapes, strict=True):
        fill_block(block, adapter, layer, shape, dense.width)
    to_config(large.config, None)
    return whole_embeddings(large)


def _first(shape: LayerShape) -> LayerUnits:
    query, value = (tuple(tuple(range(count)) for count in counts) for counts in (shape.query, shape.value))
    return LayerUnits(tuple(range(len(value))), query, value, tuple(range(shape.neurons)))


def fill_block(block: nn.Module, adapter: Adapter, layer: LayerUnits, whole: LayerShape, width: int) -> None:
    """Put linears of whole size into a compact block, in place, with zeros where units are gone."""
    old = any_linears(block, adapter)
    resize(block, adapter, whole, width)
    for name, (rows, columns) in kept_places(adapter, layer, width).items():
        new: Any = block.get_submodule(name)
        weight, bias = old[name].weight, old[name].bias
        new.weight = _placed(weight, tuple(new.weight.shape), rows, columns)
        if bias is not None:
            new.bias = _placed(bias, tuple(new.bias.shape), rows)
        new.to(weight.device).train(old[name].training)


def _placed(parameter: Tensor, shape: tuple[int, ...], *kept: Tensor | None) -> nn.Parameter:
    """Zeros of a shape with the entries of a smaller parameter at places along each axis."""
    value = parameter.detach().new_zeros(shape)
    axes = [torch.arange(size) if places is None else places for size, places in zip(shape, kept, strict=True)]
    if parameter.numel():
        value[torch.meshgrid(*(places.to(value.device) for places in axes), indexing="ij")] = parameter.detach()
    return nn.Parameter(value, requires_grad=parameter.requires_grad or not parameter.numel())
