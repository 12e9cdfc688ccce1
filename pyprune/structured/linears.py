# SPDX-License-Identifier: Apache-2.0
"""Linears of layers whose heads differ in width, or of which nothing is left; weights are as narrow as they are stored.

Attention of transformers takes heads of one width. Here they are filled up with zeros on the way in, which changes no
product of query and key and no sum of values, and the zeros are dropped on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class CutLinear(nn.Linear):
    """A linear whose parameters are given later; its weight and bias are those of what was kept."""

    def reset_parameters(self) -> None:
        """Leave them: there may be none to draw, and no random state is to be moved."""


class HeadsIn(CutLinear):
    """A projection to heads of different widths, each filled up with zeros.

    Parameters
    ----------
    in_features : int
    widths : sequence of int
        Of the heads; there may be heads without channels.
    width : int
        What each is filled up to.
    factor : float
        Of the outputs.
    **options
        ``bias``, ``device`` and ``dtype`` of :class:`torch.nn.Linear`.
    """

    places: Tensor

    def __init__(
        self, in_features: int, widths: Sequence[int], width: int, *, factor: float = 1.0, **options: Any
    ) -> None:
        super().__init__(in_features, sum(widths), **options)
        self.factor = factor
        # Where the outputs are; all others are the zero behind the last one.
        places = torch.full((len(widths), width), self.out_features, dtype=torch.int64)
        for head, (place, count) in enumerate(zip(_starts(widths), widths, strict=True)):
            places[head, :count] = torch.arange(place, place + count)
        self.register_buffer("places", places.flatten(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., heads · width]``."""
        if not self.out_features:
            return input.new_zeros((*input.shape[:-1], len(self.places)))
        found = functional.pad(super().forward(input), (0, 1)).index_select(-1, self.places)
        return found if self.factor == 1.0 else found * self.factor


class HeadsOut(CutLinear):
    """The linear that reads what heads of different widths, filled up with zeros, give.

    Parameters
    ----------
    widths : sequence of int
        Of the heads.
    width : int
        What each is filled up to.
    out_features : int
    **options
        ``bias``, ``device`` and ``dtype`` of :class:`torch.nn.Linear`.
    """

    places: Tensor

    def __init__(self, widths: Sequence[int], width: int, out_features: int, **options: Any) -> None:
        super().__init__(sum(widths), out_features, **options)
        places = torch.full((self.in_features,), 0, dtype=torch.int64)
        for head, (place, count) in enumerate(zip(_starts(widths), widths, strict=True)):
            places[place : place + count] = torch.arange(head * width, head * width + count)
        self.register_buffer("places", places, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., heads · width]`` to ``[..., out]``."""
        return super().forward(input.index_select(-1, self.places))


class NoOutputs(CutLinear):
    """A linear all of whose outputs are gone."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., 1]``: some column, which nobody reads. Tensors without elements trip too much up."""
        return input[..., :1]


class NoInputs(CutLinear):
    """A linear all of whose inputs are gone: its bias is left."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., anything]`` to ``[..., out]``."""
        shape = (*input.shape[:-1], self.out_features)
        return input.new_zeros(shape) if self.bias is None else self.bias.expand(shape)


def no_heads(hidden_states: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """What an attention without heads hands to its output, which adds its bias only; and the weights of no head."""
    sequences, length = hidden_states.shape[:2]
    return hidden_states[..., :1], hidden_states.new_zeros((sequences, 0, length, length))


def no_attention(out: nn.Module, *given: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    """The same of an attention that holds its output itself."""
    hidden_states = given[0] if given else named["query" if "query" in named else "hidden_states"]
    inputs, weights = no_heads(hidden_states)
    return out(inputs), weights


def factor_of(width: int, dense: int) -> float:
    """What queries are multiplied by, where attention scales by the width it sees instead of the dense one."""
    return math.sqrt(width / dense)


def _starts(widths: Sequence[int]) -> list[int]:
    return [sum(widths[:head]) for head in range(len(widths))]
