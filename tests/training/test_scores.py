# SPDX-License-Identifier: Apache-2.0
"""Straight-through gradients against the formula written out; masks of scores."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pyprune.errors import InputError, NumericsError
from pyprune.training import first_order, movement, soft_penalty, straight_through, threshold_mask, top_mask


def test_straight_through_gradients_are_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, scores, x, target = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (4, 6), (5, 6), (5, 4))
    )
    weight.requires_grad_()
    scores.requires_grad_()
    mask = top_mask(scores, 9)
    (functional.linear(x, straight_through(weight, scores, mask)) - target).square().sum().backward()
    assert weight.grad is not None
    assert scores.grad is not None
    for o in range(4):
        for i in range(6):
            # ∂L/∂(W ∘ M)[o, i] = Σ_n 2 (y − t)[n, o] x[n, i]
            slope = 0.0
            for n in range(5):
                y = sum(weight[o, k].item() * float(mask[o, k]) * float(x[n, k]) for k in range(6))
                slope += 2 * (y - float(target[n, o])) * float(x[n, i])
            assert weight.grad[o, i].item() == pytest.approx(slope * float(mask[o, i]), rel=1e-10)
            assert scores.grad[o, i].item() == pytest.approx(slope * weight[o, i].item(), rel=1e-10)
    assert int(mask.sum()) == 9
    assert (scores.grad[~mask] != 0).all()  # also where nothing passes forward


def test_scores_of_single_weights() -> None:
    weight, gradient = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
    assert first_order(weight, gradient).tolist() == [3.0, 1.0]
    assert movement(weight, gradient).tolist() == [3.0, -1.0]


def test_masks_of_scores() -> None:
    scores = torch.tensor([[0.0, -1.0, 0.0], [2.0, 0.0, -3.0]])
    assert top_mask(scores, 3).tolist() == [[True, False, True], [True, False, False]]
    assert int(threshold_mask(scores, 0.0).sum()) == 6
    assert threshold_mask(scores, 0.3).tolist() == [[True, False, True], [True, True, False]]
    assert threshold_mask(scores, 0.99, least=0.34).tolist() == [[True, False, False], [True, False, False]]
    with pytest.raises(InputError, match="between 0 and 1"):
        threshold_mask(scores, 1.5)
    with pytest.raises(InputError, match="out of range"):
        top_mask(scores, 7)
    with pytest.raises(NumericsError, match="NaN"):
        top_mask(scores * torch.nan, 2)


def test_the_penalty_s_gradient_is_that_of_autograd() -> None:
    scores = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    scores.sigmoid().mean().backward()
    value, gradient = soft_penalty(scores)
    assert value == pytest.approx(scores.detach().sigmoid().mean().item())
    assert torch.allclose(gradient, scores.grad, rtol=1e-12)  # type: ignore[arg-type]
