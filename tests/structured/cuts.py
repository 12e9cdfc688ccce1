# SPDX-License-Identifier: Apache-2.0
"""What may be cut out of the tiny models: 2 layers of 4 heads of 8 channels, 48 neurons."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyprune.units import Units

LAYERS, HEADS, WIDTH, NEURONS = 2, 4, 8, 48


def _random(*shape: int, seed: int, share: float) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def _units(
    heads: Tensor | None = None, neurons: Tensor | None = None, query: Tensor | None = None, value: Tensor | None = None
) -> Units:
    heads = _random(LAYERS, HEADS, seed=3, share=0.7) if heads is None else heads
    neurons = _random(LAYERS, NEURONS, seed=4, share=0.4) if neurons is None else neurons
    return Units.from_masks(HEADS * WIDTH, heads, neurons, width=WIDTH, query=query, value=value)


def _channels(share: float, seed: int) -> Tensor:
    return _random(LAYERS, HEADS, WIDTH, seed=seed, share=share)


def _some(shape: tuple[int, ...], chosen: Callable[[Tensor], None]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    chosen(mask)
    return mask


def _one(mask: Tensor) -> None:
    mask[0, 2] = mask[1, 0] = True


def _uneven(*, empty: bool = False) -> Units:
    query, value = _channels(0.5, 5), _channels(0.4, 6)
    query[0, 1] = False  # a head that looks at all tokens alike
    value[0, 1, 0] = True
    value[1, 3] = False  # and one that goes without its values
    neurons = _random(LAYERS, NEURONS, seed=4, share=0.4)
    if empty:
        value[1] = neurons[0] = False
    return _units(torch.ones(LAYERS, HEADS, dtype=torch.bool), neurons, query, value)


CUTS = {
    "whole heads": _units(),
    "uneven heads": _uneven(),
    "no queries": _units(query=_channels(0.0, 0), value=_channels(0.5, 7)),
    "wide queries": _units(query=_channels(1.0, 0), value=_channels(0.2, 8)),
    "empty halves": _uneven(empty=True),
    "nothing": _units(_some((LAYERS, HEADS), lambda mask: None), _some((LAYERS, NEURONS), lambda mask: None)),
    "one of each": _units(_some((LAYERS, HEADS), _one), _some((LAYERS, NEURONS), _one)),
    "everything": Units.dense(HEADS * WIDTH, HEADS, WIDTH, NEURONS, layers=LAYERS),
}
