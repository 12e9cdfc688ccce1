# SPDX-License-Identifier: Apache-2.0
"""Gates of one on neurons, value channels and query channels of an encoder that is being trained.

The gradient of a gate is what a first-order score of its unit is made of: ``∂L/∂m_u = Σ_{w ∈ u} w ∂L/∂w`` over the
weights of one side of the unit (the rows of the query side and of the key side give the same number).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyprune.models import Adapter
from pyprune.models.sublayers import sub_layers

SITES = ("neurons", "query", "value")


class UnitGates:
    """Gates on every layer of an encoder; while they are closed they cost nothing.

    Parameters
    ----------
    model : nn.Module
    adapter : Adapter

    Attributes
    ----------
    gates : dict of str to Tensor
        ``"neurons"`` float32 ``[layers, neurons]``, ``"query"`` and ``"value"`` ``[layers, heads · width]``: all one.
        Empty while they are closed.
    """

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self.parts = sub_layers(model, adapter)
        self.gates: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        """Put the gates in place."""
        if self.gates:
            return
        attention, feed = self.parts[0::2], self.parts[1::2]
        device = attention[0].writes.weight.device
        sizes = {"neurons": feed[0].writes.in_features}
        sizes |= dict.fromkeys(("query", "value"), attention[0].writes.in_features)
        self.gates = {
            site: torch.ones(len(feed), size, device=device, requires_grad=True) for site, size in sizes.items()
        }
        for layer, (first, second) in enumerate(zip(attention, feed, strict=True)):
            for site, linear in (("value", first.writes), ("neurons", second.writes)):
                self._handles.append(linear.register_forward_pre_hook(self._before(site, layer)))
            # The product of a query and a key channel is gated once: on the query, its bias included.
            self._handles.append(first.reads[0].register_forward_hook(self._after(layer)))

    def _before(self, site: str, layer: int) -> Callable[..., tuple[Any, ...]]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (_times(args[0], self.gates[site][layer]), *args[1:])

        return hook

    def _after(self, layer: int) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return _times(output, self.gates["query"][layer])

        return hook

    def close(self) -> None:
        """Take them away."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.gates = [], {}

    def of(self, loss: Tensor) -> dict[str, Tensor]:
        """Gradients of a loss, without those of any weight; the graph is kept for a backward pass that follows."""
        found = torch.autograd.grad(loss, list(self.gates.values()), retain_graph=True, allow_unused=True)
        pairs = zip(self.gates.items(), found, strict=True)
        return {site: torch.zeros_like(gate) if value is None else value for (site, gate), value in pairs}

    def collected(self) -> dict[str, Tensor]:
        """Gradients that backward passes have added up since the last call."""
        found = {}
        for site, gate in self.gates.items():
            found[site] = torch.zeros_like(gate) if gate.grad is None else gate.grad
            gate.grad = None
        return found


def _times(value: Tensor, gate: Tensor) -> Tensor:
    """The value itself, as a gate is one; in float32, so that its gradient is summed in that."""
    return (value * gate).to(value.dtype)
