# SPDX-License-Identifier: Apache-2.0
"""What single weights are worth while a model is trained: size, first-order loss, movement; and masks of scores.

Movement (Sanh et al., NeurIPS 2020): the forward pass uses ``W ∘ M(S)``, and the gradient passes the selection as if
it were the identity: ``∂L/∂S = ∂L/∂(W ∘ M) ∘ W`` for all entries, masked ones too. Scores then rise where weights move
away from zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError


def first_order(weight: Tensor, gradient: Tensor) -> Tensor:
    """``|w · ∂L/∂w|``: how much the loss changes to first order when the weight goes."""
    return (weight.detach() * gradient).abs()


def relative_size(weight: Tensor) -> Tensor:
    """``|w|`` by the root mean square of its matrix; of a matrix of zeros 0.

    >>> relative_size(torch.tensor([[3.0, -4.0]])).square().mean().item()
    1.0
    """
    size = weight.detach().abs()
    return size / size.square().mean().sqrt().clamp_min(torch.finfo(size.dtype).tiny)


def movement(weight: Tensor, gradient: Tensor) -> Tensor:
    """``∂L/∂S = ∂L/∂(W ∘ M) ∘ W``, of every entry.

    Parameters
    ----------
    weight : Tensor
        ``W``: before masking.
    gradient : Tensor
        Of the loss by the *masked* weight.
    """
    return weight.detach() * gradient


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight.masked_fill(~mask, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, mask = ctx.saved_tensors
        (gradient,) = gradients
        return gradient.masked_fill(~mask, 0.0), movement(weight, gradient), None


def straight_through(weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """``W ∘ M`` with gradients for weights (masked) and for scores (straight through), for forward code of one's own.

    :class:`MovementPruning` does the same without another forward code.

    Parameters
    ----------
    weight, scores : Tensor, shape (out, in)
    mask : Tensor of bool, shape (out, in)
        Chosen from the scores.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> scores = torch.tensor([[0.5, -0.5]], requires_grad=True)
    >>> straight_through(weight, scores, top_mask(scores.detach(), 1)).backward(torch.tensor([[3.0, 4.0]]))
    >>> weight.grad.tolist(), scores.grad.tolist()
    ([[3.0, 0.0]], [[3.0, 8.0]])
    """
    masked: Tensor = _StraightThrough.apply(weight, scores, mask)  # type: ignore[no-untyped-call]
    return masked


def top_mask(scores: Tensor, kept: int) -> Tensor:
    """Mask of the ``kept`` largest scores of any shape; among equal ones the earlier is kept.

    Raises
    ------
    InputError
        More than there are.
    NumericsError
        A score is NaN.
    """
    return ops.select(scores.detach().reshape(1, -1), kept, "layer").reshape(scores.shape)


def threshold_mask(scores: Tensor, threshold: float, least: float = 0.005) -> Tensor:
    """``σ(S) > threshold``, but at least a fraction ``least`` of the entries: soft movement.

    Raises
    ------
    InputError
        A threshold or fraction outside 0 to 1.
    """
    if not 0.0 <= threshold <= 1.0 or not 0.0 <= least <= 1.0:
        raise InputError("a threshold of σ(S) is between 0 and 1", seen=f"{threshold}, at least {least}")
    mask = scores.detach().sigmoid() > threshold
    floor = int(least * scores.numel())
    return top_mask(scores, floor) if int(mask.sum()) < floor else mask


def soft_penalty(scores: Tensor) -> tuple[Tensor, Tensor]:
    """``mean σ(S)`` of one matrix, and its gradient by the scores."""
    chances = scores.detach().sigmoid()
    return chances.mean(), chances * (1.0 - chances) / scores.numel()
