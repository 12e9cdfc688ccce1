# SPDX-License-Identifier: Apache-2.0
"""Gradients of gates of one on neurons, value channels and query channels of an encoder that is being trained.

The gradient of a gate is what a first-order score of its unit is made of: ``∂L/∂m_u = Σ_{w ∈ u} w ∂L/∂w`` over the
weights of one side of the unit (the rows of the query side and of the key side give the same number). A gate of one
need not be there to have a gradient: it is ``Σ_tokens x_u ∂L/∂x_u`` of what it would multiply, and both of these are
at hand in a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyprune.models import Adapter
from pyprune.models.sublayers import sub_layers
from pyprune.structured.cutting import any_linears
from pyprune.units import LayerUnits, Units

SITES = ("neurons", "query", "value")


class UnitGates:
    """Gates on every layer of an encoder; while they are closed they cost nothing.

    Parameters
    ----------
    model : nn.Module
    adapter : Adapter
    follow : bool
        Every backward pass adds to what :meth:`collected` gives.

    Attributes
    ----------
    parts : list of SubLayer
        Of the dense model.
    adapter : Adapter
    is_open : bool
    """

    def __init__(self, model: nn.Module, adapter: Adapter, *, follow: bool = False) -> None:
        self.parts = sub_layers(model, adapter)
        self.is_open = False
        self._model, self.adapter, self._following = model, adapter, follow
        self._handles: list[RemovableHandle] = []
        self._seen: dict[tuple[str, int], Tensor] = {}
        attention, feed = self.parts[0::2], self.parts[1::2]
        self._sizes = {"neurons": (len(feed), feed[0].writes.in_features)}
        self._sizes |= dict.fromkeys(("query", "value"), (len(feed), attention[0].writes.in_features))
        self._weight = (torch.promote_types(feed[0].writes.weight.dtype, torch.float32), feed[0].writes.weight.device)
        self._sums: dict[str, Tensor] = {}
        self.fit(None)

    def fit(self, units: Units | None) -> None:
        """Close, and know from here on that the model has been cut to these units; None: it is dense."""
        self.close()
        self._places: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for layer, kept in enumerate(units.layers if units is not None else ()):
            neurons = torch.tensor(kept.neurons, dtype=torch.int64)
            self._places["neurons", layer] = (torch.arange(len(neurons)), neurons)
            for site, channels in (("query", kept.query), ("value", kept.value)):
                assert units is not None
                self._places[site, layer] = _channels(kept, channels, units.width)

    def open(self) -> None:
        """Look at each forward pass from here on."""
        if self.is_open:
            return
        self.is_open = True
        self._sums = self._zeros()
        (query, _, _), (out,), _, (down,) = self.adapter.groups
        for layer, block in enumerate(self.adapter.blocks(self._model)):
            linears = any_linears(block, self.adapter)
            for site, name in (("value", out), ("neurons", down)):
                self._handles.append(linears[name].register_forward_pre_hook(self._before(site, layer)))
            # The product of a query and a key channel is gated once: on the query, its bias included.
            self._handles.append(linears[query].register_forward_hook(self._after(layer)))

    def _zeros(self) -> dict[str, Tensor]:
        dtype, device = self._weight
        return {site: torch.zeros(size, dtype=dtype, device=device) for site, size in self._sizes.items()}

    def _before(self, site: str, layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._see(site, layer, args[0])

        return hook

    def _after(self, layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._see("query", layer, output)

        return hook

    def _see(self, site: str, layer: int, value: Tensor) -> None:
        if not value.requires_grad:
            return
        self._seen[site, layer] = value
        if self._following:
            self._follow(site, layer, value)

    def _follow(self, site: str, layer: int, value: Any) -> None:
        known = value.detach()  # a hook that held the tensor itself would keep the graph alive

        def add(gradient: Tensor) -> None:
            self._add(self._sums, site, layer, _by_unit(known, gradient))

        value.register_hook(add)

    def _add(self, sums: dict[str, Tensor], site: str, layer: int, value: Tensor) -> None:
        """Add one number for each unit that the layer has to those of all; units that were cut away have none."""
        if (site, layer) not in self._places:
            sums[site][layer] += value
            return
        there, whole = (places.to(value.device) for places in self._places[site, layer])
        sums[site][layer].index_add_(0, whole, value[there])

    def follow(self) -> None:
        """The next backward pass of the last forward pass adds to what :meth:`collected` gives."""
        for (site, layer), value in self._seen.items():
            self._follow(site, layer, value)
        self._seen.clear()

    def close(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.is_open = [], False
        self._seen.clear()

    def of(self, loss: Tensor) -> dict[str, Tensor]:
        """Gradients of a loss of the last forward pass; the graph is kept for a backward pass that follows.

        No gradient of any weight is computed on the way.

        Returns
        -------
        dict of str to Tensor
            ``"neurons"`` ``[layers, neurons]``, ``"query"`` and ``"value"`` ``[layers, heads · width]``, float32 at
            least.
        """
        found = self._zeros()
        values = list(self._seen.values())
        gradients = torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True) if values else ()
        for (site, layer), value, gradient in zip(self._seen, values, gradients, strict=True):
            if gradient is not None:
                self._add(found, site, layer, _by_unit(value.detach(), gradient))
        self._seen.clear()
        return found

    def collected(self) -> dict[str, Tensor]:
        """What backward passes that were followed have added up since the last call."""
        found, self._sums = self._sums, self._zeros()
        self._seen.clear()
        return found


def _channels(kept: LayerUnits, channels: tuple[tuple[int, ...], ...], width: int) -> tuple[Tensor, Tensor]:
    """Where channels of heads are in an attention whose heads are all as wide as the widest; and where they were."""
    padded = kept.shape.padded(width)
    there = [head * padded + at for head, some in enumerate(channels) for at in range(len(some))]
    whole = [head * width + at for head, some in zip(kept.heads, channels, strict=True) for at in some]
    return torch.tensor(there, dtype=torch.int64), torch.tensor(whole, dtype=torch.int64)


def _by_unit(value: Tensor, gradient: Tensor) -> Tensor:
    """``Σ x_u ∂L/∂x_u`` over tokens, float32 ``[units]`` at least: half precision would lose digits in the sum."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    return (value.to(dtype) * gradient).flatten(0, -2).sum(dim=0)
