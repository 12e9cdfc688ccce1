# SPDX-License-Identifier: Apache-2.0
"""The running mean of outer products of a layer's inputs, which other projects call the Hessian ``H``."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyprune import ops
from pyprune.compat import layers
from pyprune.errors import InputError


class InputStatistics:
    """``H = 2/n · Σ x xᵀ`` over all tokens, where ``n`` counts samples (sequences, images), not tokens.

    The sum is kept in float64. Once ``H`` was read or set, that tensor is what counts until the next inputs, so that
    changing it in place works.

    Attributes
    ----------
    layer : nn.Module
    dev : torch.device
        Where the weight was when this began.
    rows, columns : int
        Of the layer's matrix ``[out, in]``.
    nsamples : int
    """

    _dtype: ClassVar[torch.dtype] = torch.float32  # of H as it is read

    def __init__(self, layer: Any) -> None:
        self.rows, self.columns = layers.shape_of(layer)
        self.layer = layer
        self.dev: torch.device = layer.weight.device
        self.nsamples = 0
        self._sum: Tensor | None = None  # Σ x xᵀ in float64, or else
        self._mean: Tensor | None = torch.zeros(self.columns, self.columns, dtype=self._dtype, device=self.dev)
        self._used_up = False

    @property
    def H(self) -> Tensor | None:
        """Tensor, shape (columns, columns): None after ``free``, no attribute once pruning has used it up."""
        if self._used_up:
            raise AttributeError("H was used up by pruning")
        if self._sum is not None:
            self.H = self._scaled(self._sum).to(self._dtype)
        return self._mean

    @H.setter
    def H(self, value: Tensor | None) -> None:
        self._sum, self._mean, self._used_up = None, value, False

    @H.deleter
    def H(self) -> None:
        self._sum, self._mean, self._used_up = None, None, True

    def _scaled(self, total: Tensor) -> Tensor:
        return total.mul_(2 / self.nsamples)

    def _add(self, inputs: Tensor, samples: int) -> None:
        """Add the outer products of all tokens in ``inputs``, which count as so many samples."""
        tokens = layers.tokens_of(self.layer, inputs)
        if samples == 0:
            return
        if self._sum is None:
            mean = self._needed()
            self._sum, self._mean = (mean.double() * (self.nsamples / 2)).contiguous(), None
        ops.gram(tokens.to(self._sum.device), out=self._sum)
        self.nsamples += samples

    def _needed(self) -> Tensor:
        found = self._sum if self._sum is not None else self._mean
        if found is None:
            raise InputError(
                f"{layers.name_of(self.layer)}: H is gone: it was freed, or used up by pruning",
                hint="a new object for every layer that is pruned",
            )
        return found

    def _hessian(self) -> Tensor:
        """A copy of ``H`` in float64.

        Raises
        ------
        InputError
            It is gone, or no input was ever different from zero: pruning would only destroy the layer.
        """
        found = self._checked()
        return self._scaled(found.clone()) if self._sum is not None else found.double().clone()

    def _take(self) -> Tensor:
        """``H`` in float64, which is then used up; raises as :meth:`_hessian`."""
        found = self._checked()
        hessian = self._scaled(found) if self._sum is not None else found.double()
        del self.H
        return hessian

    def _checked(self) -> Tensor:
        found = self._needed()
        if found.numel() and not bool(found.diagonal().any()):
            raise InputError(
                f"{layers.name_of(self.layer)}: H is zero",
                asked="inputs that are not all zero, by add_batch in a forward hook",
                seen=f"{self.nsamples} samples",
                hint="no token reached this expert, or the hook is on another copy of the layer: leave it dense",
            )
        return found
