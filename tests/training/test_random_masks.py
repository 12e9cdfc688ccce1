# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from pyprune import ops
from pyprune.errors import InputError
from pyprune.patterns import kept_count
from pyprune.training.random_masks import (
    PUBLISHED_DRAWS,
    RATIOS,
    MaskDraw,
    candidate_masks,
    draw_mask,
    draw_masks,
    unlike,
)

# What the released code gives: draws of attention's and of feed-forward matrices of BERT-base, in the order of ratios.
PUBLISHED_COUNTS = {
    (768 * 768, 0.54): (15, 31, 25, 95),
    (3072 * 768, 0.54): (63, 127, 101, 382),
    (768 * 768, 0.9375): (27, 55, 44, 165),
    (3072 * 768, 0.9375): (110, 221, 176, 663),
}


@pytest.fixture
def weight(generator):
    return torch.randn(24, 40, generator=generator)


def by_size(weight, sparsity):
    keep = kept_count(weight.numel(), sparsity)
    return ops.select(weight.abs().reshape(1, -1), keep).reshape(weight.shape)


@pytest.mark.parametrize("number", sorted(PUBLISHED_DRAWS))
@pytest.mark.parametrize("sparsity", [0.0, 0.54, 0.9375, 1.0])
def test_exact_counts_and_the_same_again(weight, number, sparsity):
    draw = PUBLISHED_DRAWS[number]
    mask = draw_mask(weight, sparsity, draw, seed=3)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == kept_count(weight.numel(), sparsity)
    assert torch.equal(mask, draw_mask(weight, sparsity, draw, seed=3))
    random = number != 0 and 0.0 < sparsity < 1.0 and not (number == 6 and sparsity == 0.0)
    others = [draw_mask(weight, sparsity, draw, seed=seed) for seed in range(4, 8)]
    assert any(not torch.equal(mask, other) for other in others) == random


def test_number_of_draws_is_the_published_one():
    for (numel, sparsity), wanted in PUBLISHED_COUNTS.items():
        keep = int(numel * (1 - sparsity))
        assert tuple(MaskDraw(ratio=ratio).count(numel, keep) for ratio in RATIOS) == wanted


def test_more_draws_are_less_random(weight):
    """One draw is a sample; thousands are the mask of sizes, as inclusion grows with size."""
    sure = by_size(weight, 0.6)
    apart = [
        float((draw_mask(weight, 0.6, MaskDraw(draws=draws), seed=1) != sure).float().mean()) for draws in (1, 30, 3000)
    ]
    assert apart[0] > 1.5 * apart[1] > 1.5 * apart[2]
    assert apart[2] < 0.01


def test_one_draw_keeps_what_was_drawn(weight):
    keep = kept_count(weight.numel(), 0.7)
    drawn = ops.draw_counts(weight, keep, 1, 5.0, seed=11) > 0
    assert torch.equal(draw_mask(weight, 0.7, MaskDraw(draws=1), seed=11), drawn)


def test_equal_votes_stay_by_size():
    """Both are always drawn but for one place: the larger of those that are never drawn fills it."""
    weight = torch.tensor([1e6, 1e6, 1e-6, 3e-6, 2e-6, 3e-6])
    votes = ops.draw_counts(weight, 3, 1, 0.0, seed=0)
    mask = draw_mask(weight, 0.5, MaskDraw(exponent=30.0, draws=1), seed=0)
    assert int(votes.sum()) == 3
    assert mask[:2].all()
    weight = torch.full((6,), 2.0)
    weight[4] = 2.5
    assert draw_mask(weight, 0.5, MaskDraw("magnitude")).tolist() == [True, True, False, False, True, False]


def test_pruned_weights_stay_pruned(weight):
    first = draw_mask(weight, 0.5, seed=1)
    for number, draw in PUBLISHED_DRAWS.items():
        second = draw_mask(weight, 0.8, draw, among=first, seed=2)
        assert not bool((second & ~first).any()), number
        assert int(second.sum()) == kept_count(weight.numel(), 0.8)
    with pytest.raises(InputError, match="fewer weights may stay"):
        draw_mask(weight, 0.3, among=first)


def test_the_band_and_the_top_are_held(weight):
    sizes, sure = weight.abs(), by_size(weight, 0.6)
    border = sizes[sure].min()
    mask = draw_mask(weight, 0.6, MaskDraw("band", draws=1, band=1.2), seed=5)
    assert bool(mask[sizes > 1.2 * border].all())
    assert not bool(mask[sizes < border / 1.2].any())
    assert not torch.equal(mask, sure)
    top = by_size(weight, 1 - (int(sure.sum()) - 50) / weight.numel())
    mask = draw_mask(weight, 0.6, MaskDraw("top", draws=1, exponent=1.0, open=50), seed=5)
    assert bool(mask[top].all())
    assert not torch.equal(mask, sure)


def test_uniform_masks_do_not_look_at_sizes(weight):
    kept = [float(weight.abs()[draw_mask(weight, 0.9, MaskDraw("uniform"), seed=s)].mean()) for s in range(20)]
    assert abs(sum(kept) / 20 - float(weight.abs().mean())) < 0.05
    assert float(weight.abs()[draw_mask(weight, 0.9, MaskDraw(draws=1), seed=1)].mean()) > 1.3


def test_candidates_of_a_model(weight):
    weights = {"a": weight, "b": weight.clone()}
    pool = list(candidate_masks(weights, 0.9, 5, seed=2))
    assert len(pool) == 5
    assert all(int(mask.sum()) == kept_count(960, 0.9) for masks in pool for mask in masks.values())
    assert not torch.equal(pool[0]["a"], pool[0]["b"])  # the same weights, but numbers of their own
    assert not torch.equal(pool[0]["a"], pool[4]["a"])  # the same ratio, another candidate
    again = draw_masks(weights, 0.9, MaskDraw(ratio=RATIOS[1]), seed=2, candidate=1)
    assert unlike(again, pool[1]) == 0.0
    assert 0.0 < unlike(pool[0], {name: by_size(value, 0.9) for name, value in weights.items()}) < 0.2


def test_what_does_not_fit_is_said(weight):
    with pytest.raises(InputError, match="kind"):
        MaskDraw("best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one draw"):
        MaskDraw(draws=0)
    with pytest.raises(InputError, match="band"):
        MaskDraw(band=0.5)
    with pytest.raises(InputError, match="among is bool"):
        draw_mask(weight, 0.5, among=weight)
    with pytest.raises(InputError, match="no mask of 'a'"):
        draw_masks({"a": weight}, 0.5, among={})
    with pytest.raises(InputError, match="candidate"):
        next(candidate_masks({"a": weight}, 0.5, 0))
