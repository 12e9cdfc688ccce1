# SPDX-License-Identifier: Apache-2.0
"""What a solver's inner function hands back, before it is checked and measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyprune.solvers.factorisation import Factorisation


@dataclass(frozen=True)
class Outcome:
    """``weight`` ``[out, in]``, float32 or float64 and exactly zero outside ``mask``; and the system used."""

    weight: Tensor
    mask: Tensor
    factor: Factorisation | None
