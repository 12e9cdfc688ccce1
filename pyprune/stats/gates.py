# SPDX-License-Identifier: Apache-2.0
"""Statistics of gates: gradients ``∂L/∂m`` of factors of one in front of a linear, and the energy behind each of them.

A gate ``m_u = 1`` multiplies input ``u`` of a linear, for all tokens. Its gradient is ``Σ_tokens x_u (Wᵀδ)_u``, with
``δ`` that of the linear's output. Importance scores of heads, channels and neurons are sums of functions of it over
batches; a gate of several channels at once has the sum of their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyprune.errors import InputError, NumericsError


class GateGradients:
    """Sums over batches of gate gradients, site by site, in float64.

    A batch with NaN or inf in any site is left out of all, and counted.

    Parameters
    ----------
    sites : mapping of str to int
        Gates of each site.
    decay : float, optional
        Factor ``β`` of a moving average of ``|g|`` over batches; default: none is kept.
    store : bool
        Keep the gradients of every batch.
    device : torch.device or str
        Where the sums live.

    Attributes
    ----------
    batches, excluded : int
        Batches added, and those left out because they were not finite.

    Examples
    --------
    >>> gates = GateGradients({"heads": 2})
    >>> gates.add({"heads": torch.tensor([1.0, -2.0])}), gates.add({"heads": torch.tensor([1.0, torch.nan])})
    (True, False)
    >>> gates.absolute("heads").tolist(), gates.square("heads").tolist(), gates.excluded
    ([1.0, 2.0], [1.0, 4.0], 1)
    """

    def __init__(
        self,
        sites: Mapping[str, int],
        *,
        decay: float | None = None,
        store: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if decay is not None and not 0.0 <= decay < 1.0:
            raise InputError("decay must be at least 0 and below 1", seen=str(decay))
        self.sites = dict(sites)
        self.batches = 0
        self.excluded = 0
        self._decay = decay
        self._absolute, self._square, self._average = (
            {name: torch.zeros(count, dtype=torch.float64, device=device) for name, count in self.sites.items()}
            for _ in range(3)
        )
        self._vectors: dict[str, list[Tensor]] | None = {name: [] for name in self.sites} if store else None

    def add(self, gradients: Mapping[str, Tensor]) -> bool:
        """Add the gradients of one batch, one ``[gates]`` a site; False if it was left out.

        Half precision is widened, but what it has lost is lost: gates should be float32, the loss unscaled.

        Raises
        ------
        InputError
            Sites or sizes do not fit.
        """
        found = {name: tuple(gradient.shape) for name, gradient in gradients.items()}
        if found != {name: (count,) for name, count in self.sites.items()}:
            raise InputError("gate gradients do not fit", asked=str(self.sites), seen=str(found))
        values = {name: gradient.detach().double() for name, gradient in gradients.items()}
        if not all(bool(torch.isfinite(value).all()) for value in values.values()):
            self.excluded += 1
            return False
        self.batches += 1
        for name, value in values.items():
            self._absolute[name] += value.abs()
            self._square[name] += value.square()
            if self._decay is not None:
                self._average[name].lerp_(value.abs(), 1.0 - self._decay)
            if self._vectors is not None:
                self._vectors[name].append(value.float())
        return True

    def check(self) -> GateGradients:
        """Return itself, if there is a batch to go by.

        Raises
        ------
        NumericsError
            Every batch was left out, or there was none.
        """
        if not self.batches:
            raise NumericsError(
                "no batch has finite gate gradients",
                seen=f"{self.excluded} batches with NaN or inf",
                hint="evaluate the model first; run it in float32",
            )
        return self

    def absolute(self, site: str) -> Tensor:
        """``Σ |g|`` over batches, float64 ``[gates]``."""
        return self._absolute[site]

    def square(self, site: str) -> Tensor:
        """``Σ g²`` over batches, float64 ``[gates]``: the diagonal of the empirical Fisher information."""
        return self._square[site]

    def average(self, site: str) -> Tensor:
        """``s ← β s + (1 − β)|g|`` from zero, over batches, float64 ``[gates]``."""
        if self._decay is None:
            raise InputError("no moving average was kept", hint="decay=0.998")
        return self._average[site]

    def vectors(self, site: str) -> Tensor:
        """The gradients of every batch added, float32 ``[batches, gates]``."""
        if self._vectors is None:
            raise InputError("the gradients of single batches were not kept", hint="store=True")
        rows = self._vectors[site]
        return torch.stack(rows) if rows else self._square[site].new_empty(0, self.sites[site], dtype=torch.float32)


def grouped(values: Tensor, width: int, how: str = "sum") -> Tensor:
    """Sum or mean over each ``width`` consecutive entries: ``[..., units · width]`` to ``[..., units]``.

    The gradient of a gate over a whole head is the sum of those of its channels. The square of that sum is not the
    sum of their squares: which of the two a score is made of has to be said.

    >>> gradients = torch.tensor([1.0, -1.0, 2.0, 2.0])
    >>> grouped(gradients, 2).square().tolist(), grouped(gradients.square(), 2).tolist()
    ([0.0, 16.0], [2.0, 8.0])
    """
    if how not in ("sum", "mean") or width < 1 or values.shape[-1] % width:
        raise InputError("groups do not fit", asked=f"{how} of {width}", seen=str(list(values.shape)))
    parts = values.reshape(*values.shape[:-1], -1, width)
    return parts.sum(dim=-1) if how == "sum" else parts.mean(dim=-1)


def energies(squares: Tensor, weight: Tensor) -> Tensor:
    """What each input contributes to a linear's output by itself: ``E[x_u²] · mean_o W[o, u]²``.

    The mean over outputs of the squared error that deleting the input alone makes.

    Parameters
    ----------
    squares : Tensor, shape (in,)
        ``E[x_u²]`` over real tokens: the diagonal of the gram.
    weight : Tensor, shape (out, in)

    Returns
    -------
    Tensor, shape (in,), float64
    """
    return squares.double() * weight.detach().double().square().mean(dim=0)
