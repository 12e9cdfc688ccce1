# SPDX-License-Identifier: Apache-2.0
"""The protocol of other projects' quantizers, and rounding to their grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]  # [rows, width] -> the nearest points of each row's grid, [rows, width]


class Quantizer(Protocol):
    """What the published classes ask of their ``quantizer`` attribute."""

    scale: Tensor
    zero: Tensor
    maxq: Any

    def ready(self) -> Any:
        """Whether scale and zero are known."""

    def find_params(self, x: Tensor, weight: bool = False) -> Any:
        """Set scale and zero, ``[rows, 1]``, from the weights ``[rows, columns]``."""


def rounding_of(scale: Tensor, zero: Tensor, maxq: Any) -> Rounding:
    """Nearest point of each row's uniform grid ``scale · (0 − zero, …, maxq − zero)``, in float64.

    ``scale`` and ``zero`` are ``[rows, 1]``, ``maxq`` is the highest level.
    """
    step, origin, highest = scale.double(), zero.double(), float(maxq)

    def nearest(values: Tensor) -> Tensor:
        level = torch.clamp(torch.round(values.double() / step) + origin, 0.0, highest)
        return step * (level - origin)

    return nearest


def grid_of(quantizer: Quantizer, rows: int) -> tuple[Tensor, Tensor]:
    """Scale and zero as ``[rows, 1]``, also where all rows share one."""
    scale, zero = (torch.as_tensor(part).reshape(-1, 1).expand(rows, 1) for part in (quantizer.scale, quantizer.zero))
    return scale, zero
