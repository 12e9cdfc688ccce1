# SPDX-License-Identifier: Apache-2.0
"""The published algorithms stated again in float64, by definition: no factor is updated, every system is inverted anew.

All work on a matrix ``[out, in]`` and the running mean ``H``; each returns the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def hessian(batches: list[Tensor], samples: int) -> Tensor:
    """``2/n · Σ x xᵀ`` of token matrices ``[tokens, in]``, ``n`` samples in all."""
    tokens = torch.cat([batch.double() for batch in batches])
    return 2 / samples * (tokens.T @ tokens)


def without_dead(weight: Tensor, H: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """Dead inputs: a one on the diagonal, no weights; then the ridge."""
    weight, H = weight.double().clone(), H.double().clone()
    dead = H.diagonal() == 0
    weight[:, dead] = 0
    H += torch.diag(dead.double())
    return weight, H + damp * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)


def smallest(scores: Tensor, count: int) -> Tensor:
    """True for the ``count`` smallest entries."""
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.flatten().argsort()[:count]] = True
    return chosen.reshape(scores.shape)


def sparsegpt(
    weight: Tensor,
    H: Tensor,
    sparsity: float = 0.0,
    *,
    groups: tuple[int, int] | None = None,
    block: int = 128,
    damp: float = 0.01,
    one_extra: bool = False,
    nearest: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Columns in order, each with the inverse of the system of the columns not passed yet.

    ``groups``: (pruned, of). Counts are exact over the columns passed so far; with ``one_extra`` they are those of the
    public code, which compares with the sorted score at ``int(numel * sparsity)`` by ``<=``.
    """
    w, H = without_dead(weight, H, damp)
    rows, cols = w.shape
    pivot = torch.stack([torch.linalg.inv(H[j:, j:])[0, 0] for j in range(cols)]) if cols else w.new_zeros(0)
    gone = torch.zeros(rows, cols, dtype=torch.bool)
    removed = 0
    for j in range(cols):
        if groups is None and j % block == 0:
            part = slice(j, min(j + block, cols))
            scores = w[:, part] ** 2 / pivot[part]
            count = math.floor(rows * part.stop * sparsity + 0.5 - 1e-9) - removed
            count = int(scores.numel() * sparsity) + 1 if one_extra else count
            removed += count
            gone[:, part] = smallest(scores, count)
        if groups is not None and j % groups[1] == 0:
            part = slice(j, j + groups[1])
            for row, scores in enumerate(w[:, part] ** 2 / pivot[part]):
                gone[row, part] = smallest(scores, groups[0])
        target = w[:, j] if nearest is None else nearest(w[:, j, None])[:, 0]
        target = torch.where(gone[:, j], 0.0, target)
        inverse = torch.linalg.inv(H[j:, j:])
        w[:, j:] -= torch.outer((w[:, j] - target) / inverse[0, 0], inverse[0])
        w[:, j] = target
    return w


def fit(weight: Tensor, H: Tensor, live: Tensor) -> Tensor:
    """The weights of one row on its support that come closest to the row itself."""
    support = torch.nonzero(live)[:, 0]
    fitted = torch.zeros_like(weight)
    if len(support):
        fitted[support] = torch.linalg.solve(H[support][:, support], (H @ weight)[support])
    return fitted


def greedy(weight: Tensor, H: Tensor, size: int = 1, most: int | None = None) -> tuple[list[list[int]], Tensor]:
    """Greedy OBS on each row, zeros first where ``size`` is 1: order of the blocks, and half the loss of each step.

    ``most``: of 4 consecutive weights at most so many may go.
    """
    orders, losses = [], []
    for row in weight:
        live = torch.ones(len(row), dtype=torch.bool)
        order, loss = [], []
        steps = len(row) // size if most is None else len(row) * most // 4
        for _ in range(steps):
            current, best = fit(row, H, live), (math.inf, -1)
            support = torch.nonzero(live)[:, 0]
            inverse = torch.zeros_like(H)
            inverse[support[:, None], support] = torch.linalg.inv(H[support][:, support])
            for unit in range(len(row) // size):
                here = torch.arange(unit * size, (unit + 1) * size)
                group = slice(unit // 4 * 4, unit // 4 * 4 + 4)
                if not bool(live[here].all()) or (most is not None and int((~live[group]).sum()) >= most):
                    continue
                w = current[here]
                cost = float(w @ torch.linalg.solve(inverse[here][:, here], w))
                zero = size == 1 and most is None and float(row[unit]) == 0.0
                best = min(best, (-1.0 if zero else cost, unit))
            order.append(best[1])
            loss.append(max(best[0], 0.0) / 2)
            live[best[1] * size : (best[1] + 1) * size] = False
        orders.append(order)
        losses.append(loss)
    return orders, torch.tensor(losses, dtype=torch.float64)


def at_sparsity(weight: Tensor, H: Tensor, orders: list[list[int]], losses: Tensor, sparsity: float) -> Tensor:
    """The cheapest steps over all rows, then each row's best fit."""
    rows, steps = losses.shape
    size = weight.shape[1] // steps
    cheapest = losses.flatten().argsort(stable=True)[: math.ceil(rows * steps * sparsity - 1e-9)]
    found = torch.zeros_like(weight)
    for row in range(rows):
        live = torch.ones(weight.shape[1], dtype=torch.bool)
        for unit in orders[row][: int((cheapest // steps == row).sum())]:
            live[unit * size : (unit + 1) * size] = False
        found[row] = fit(weight[row], H, live) if bool((~live).any()) else weight[row]
    return found


def quantised(weight: Tensor, H: Tensor, nearest: Callable[[Tensor], Tensor], step: Tensor) -> Tensor:
    """Greedy quantisation of each row's weights that are not zero; what is half a step beyond the grid goes first."""
    w = weight.double().clone()
    for row in range(len(w)):
        live = w[row] != 0
        while bool(live.any()):
            support = torch.nonzero(live)[:, 0]
            inverse = torch.linalg.inv(H[support][:, support])
            miss = (w - nearest(w))[row, support]
            far = miss.abs() > 0.5 * step[row]
            index = int(miss.abs().argmax() if bool(far.any()) else (miss**2 / inverse.diagonal()).argmin())
            target = nearest(w)[row, support[index]]
            w[row, support] -= inverse[index] * miss[index] / inverse[index, index]
            w[row, support[index]] = target
            live[support[index]] = False
    return w


class MinMax:
    """A quantizer of the published protocol: an asymmetric grid from each row's smallest to its largest weight."""

    def __init__(self, bits: int) -> None:
        self.maxq = torch.tensor(2**bits - 1)
        self.scale = self.zero = torch.zeros(1)
        self.seen: list[Tensor] = []

    def ready(self) -> bool:
        return bool((self.scale != 0).all())

    def find_params(self, x: Tensor, weight: bool = False) -> None:
        assert weight
        self.seen.append(x)
        low, high = x.amin(dim=1, keepdim=True).clamp(max=0), x.amax(dim=1, keepdim=True).clamp(min=0)
        self.scale = (high - low) / self.maxq
        self.zero = torch.round(-low / self.scale)

    def nearest(self, values: Tensor) -> Tensor:
        scale, zero = self.scale.double(), self.zero.double()
        return scale * ((values / scale).round().add(zero).clamp(0, float(self.maxq)) - zero)


def error(weight: Tensor, dense: Tensor, H: Tensor) -> float:
    """Relative error of the outputs."""
    weight, dense, H = weight.double(), dense.double(), H.double()
    return float((((weight - dense) @ H) * (weight - dense)).sum() / ((dense @ H) * dense).sum())


# Layers and inputs

LAYERS = ("linear", "conv1d", "conv2d")


def build(kind: str, rows: int, cols: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A layer whose matrix is ``[rows, cols]``; a convolution of 1 x 1 where ``cols`` is no multiple of 6."""
    if kind == "linear":
        layer: nn.Module = nn.Linear(cols, rows)
    elif kind == "conv1d":
        from transformers.pytorch_utils import Conv1D

        layer = Conv1D(rows, cols)
    else:
        kernel = (3, 2) if cols % 6 == 0 else (1, 1)
        layer = nn.Conv2d(cols // (kernel[0] * kernel[1]), rows, kernel, stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.to(dtype)


def matrix(layer: nn.Module) -> Tensor:
    """The layer's weight as ``[out, in]``."""
    weight = layer.weight.detach()
    return weight.T.clone() if type(layer).__name__ == "Conv1D" else weight.flatten(1).clone()


def inputs(layer: nn.Module, count: int, generator: torch.Generator, dead: tuple[int, ...] = ()) -> list[Tensor]:
    """Batches of three samples with correlated features; those named in ``dead`` are always zero."""
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else matrix(layer).shape[1]
    mix = torch.randn(channels, channels, generator=generator) + torch.eye(channels)
    found = []
    for _ in range(count):
        shape = (3, 6, 7, channels) if isinstance(layer, nn.Conv2d) else (3, 40, channels)
        x = torch.randn(shape, generator=generator) @ mix
        x[..., list(dead)] = 0.0
        found.append((x.movedim(-1, 1) if isinstance(layer, nn.Conv2d) else x).to(layer.weight.dtype))
    return found


def tokens(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output reads, ``[tokens, in]`` in float64; a convolution's by convolving with unit kernels."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1]).double()
    cols = layer.weight[0].numel()
    units = nn.Conv2d(
        layer.in_channels,
        cols,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=False,
        padding_mode=layer.padding_mode,
        dtype=torch.float64,
    )
    units.weight.data = torch.eye(cols, dtype=torch.float64).reshape(units.weight.shape)
    return units(x.double()).detach().movedim(1, -1).reshape(-1, cols)
