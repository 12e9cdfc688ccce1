# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import features, gram_of
from tolerances import GREEDY, relative

from pyprune import ops
from pyprune.errors import InputError, NumericsError


def fitted(gram, weight, live):
    """Loss and weights ``[height, k]`` of the least squares restricted to the columns ``live``, solved anew."""
    fit = np.zeros_like(weight)
    if live.any():
        fit[:, live] = np.linalg.solve(gram[np.ix_(live, live)], (weight @ gram)[:, live].T).T
    change = fit - weight
    return float(np.sum((change @ gram) * change)), fit


def by_definition(gram, weight, count, width):
    """Every block tried at every step: the one that goes is the one whose best weights lose least."""
    live, order, losses, before = np.ones(weight.shape[1], dtype=bool), [], [], 0.0
    for _ in range(count):
        after = {}
        for block in range(weight.shape[1] // width):
            if live[block * width]:
                rest = live.copy()
                rest[block * width : (block + 1) * width] = False
                after[block] = fitted(gram, weight, rest)[0]
        best = min(after, key=after.__getitem__)
        live[best * width : (best + 1) * width] = False
        order.append(best)
        losses.append(after[best] - before)
        before = after[best]
    return fitted(gram, weight, live)[1], order, losses


def explicit(inverse, weight, count, width):
    """One inverse of what is left, made smaller by each step, in NumPy float64."""
    a, w, columns = inverse.copy(), weight.copy(), np.arange(weight.shape[1])
    order, losses = [], []
    for _ in range(count):
        scores = []
        for first in range(0, len(a), width):
            part = slice(first, first + width)
            scores.append(np.sum(w[:, part] * np.linalg.solve(a[part, part], w[:, part].T).T))
        first = int(np.argmin(scores)) * width
        part, rest = slice(first, first + width), np.r_[0:first, first + width : len(a)]
        order.append(int(columns[first]) // width)
        losses.append(min(scores))
        moved = np.linalg.solve(a[part, part], a[part])[:, rest]
        w, a = w[:, rest] - w[:, part] @ moved, a[np.ix_(rest, rest)] - a[rest, part] @ moved
        columns = columns[rest]
    fit = np.zeros_like(weight)
    fit[:, columns] = w
    return fit, order, losses


def problem(rows, columns, generator, kind="correlated", damp=1e-3):
    gram = gram_of(features(2 * columns + 3, columns, generator, kind), damp)
    inverse = torch.linalg.inv(gram)
    weight = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    return gram, (inverse + inverse.T) / 2, weight


def check(found, wanted, group, height):
    got, order, loss = (tensor.numpy() for tensor in found)
    fit, blocks, losses = wanted
    assert order[group].tolist() == blocks
    scale = float(np.abs(fit).max()) or 1.0
    assert np.abs(got[group * height : (group + 1) * height] - fit).max() <= 1e-5 * scale
    assert np.allclose(loss[group], losses, rtol=1e-6, atol=1e-8 * max(losses, default=0.0))


def mask_of(order, height, width, blocks):
    gone = torch.zeros(len(order), blocks, dtype=torch.bool).scatter_(1, order, True)
    return ~gone.repeat_interleave(height, dim=0).repeat_interleave(width, dim=1)


@pytest.mark.parametrize(
    ("height", "width", "groups", "blocks", "count"),
    [(1, 1, 2, 7, 7), (1, 4, 3, 5, 3), (3, 1, 2, 9, 8), (2, 3, 2, 4, 4), (4, 4, 1, 3, 2), (5, 7, 2, 1, 1)],
)
def test_goes_for_the_least_loss(backend, height, width, groups, blocks, count, generator):
    gram, inverse, weight = problem(groups * height, blocks * width, generator)
    found = ops.block_obs(inverse, weight, count, height=height, width=width)
    for group in range(groups):
        rows = weight[group * height : (group + 1) * height].numpy()
        check(found, by_definition(gram.numpy(), rows, count, width), group, height)


# Around and far beyond the panel of the kernel, odd sizes, blocks wider than its panel, one or two blocks in all.
@pytest.mark.parametrize(
    ("height", "width", "blocks", "count"),
    [
        (1, 1, 97, 97),
        (3, 1, 200, 175),
        (1, 2, 131, 131),
        (2, 3, 49, 48),
        (4, 4, 64, 64),
        (1, 5, 61, 33),
        (16, 16, 20, 18),
        (2, 33, 9, 9),
        (1, 100, 4, 4),
        (2, 150, 2, 2),
        (3, 200, 1, 1),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "correlated"])
def test_same_blocks_as_an_explicit_inverse(backend, height, width, blocks, count, kind, generator):
    _, inverse, weight = problem(2 * height, blocks * width, generator, kind)
    found = ops.block_obs(inverse, weight, count, height=height, width=width)
    for group in range(2):
        rows = weight[group * height : (group + 1) * height].numpy()
        check(found, explicit(inverse.numpy(), rows, count, width), group, height)


@pytest.mark.parametrize("columns", [1, 30, 300])
def test_blocks_of_one_weight_are_obs(backend, columns, generator):
    _, inverse, weight = problem(5, columns, generator)
    for one, other in zip(ops.block_obs(inverse, weight, columns), ops.obs(inverse, weight, columns), strict=True):
        assert relative(one, other) <= GREEDY


@pytest.mark.parametrize(("height", "width", "columns"), [(1, 4, 60), (3, 2, 300), (6, 8, 320)])
def test_ends_in_the_restricted_least_squares(height, width, columns, generator):
    gram, inverse, weight = problem(12, columns, generator)
    pruned, order, loss = ops.block_obs(inverse, weight, columns // width * 3 // 4, height=height, width=width)
    refit = ops.masked_lstsq(gram, weight @ gram, mask_of(order, height, width, columns // width))
    assert relative(pruned, refit) <= GREEDY
    # The losses add up to the quadratic objective.
    change = pruned - weight
    objective = ((change @ gram) * change).reshape(12 // height, -1).sum(dim=1)
    assert relative(loss.sum(dim=1), objective) <= GREEDY


def test_rows_of_a_group_lose_the_same_columns(backend, generator):
    _, inverse, weight = problem(6, 32, generator)
    pruned, order, _ = ops.block_obs(inverse, weight, 5, height=3, width=4)
    assert torch.equal(pruned != 0, mask_of(order, 3, 4, 8))


def test_counts_may_differ_by_group(backend, generator):
    _, inverse, weight = problem(8, 160, generator)
    counts = torch.tensor([0, 1, 40, 25])
    pruned, order, loss = ops.block_obs(inverse, weight, counts, height=2, width=4)
    assert ((pruned == 0).reshape(4, -1).sum(dim=1)).tolist() == (8 * counts).tolist()
    assert order.shape == loss.shape == (4, 40)
    for group, count in enumerate(counts.tolist()):
        rows = slice(2 * group, 2 * group + 2)
        assert bool((order[group, count:] == -1).all())
        assert bool((loss[group, count:] == 0).all())
        alone = ops.block_obs(inverse, weight[rows], count, height=2, width=4)
        assert torch.equal(alone[0], pruned[rows])
    assert torch.equal(pruned[:2], weight[:2])


def test_ties_go_to_the_lower_block(backend):
    _, order, loss = ops.block_obs(torch.eye(30), torch.ones(4, 30), 10, height=2, width=3)
    assert order.tolist() == [list(range(10))] * 2
    assert bool((loss == 6).all())


def test_zero_blocks_go_first_at_no_loss(backend, generator):
    _, inverse, weight = problem(2, 40, generator)
    weight[:, 8:12], weight[:, 36:] = 0.0, 0.0
    weight[0, :4] = 0.0  # not of both rows
    pruned, order, loss = ops.block_obs(inverse, weight, 2, height=2, width=4)
    assert sorted(order[0].tolist()) == [2, 9]
    assert float(loss.max()) == 0.0
    assert torch.equal(pruned, weight)


@pytest.mark.parametrize("shape", [(0, 6), (4, 0), (0, 0)], ids=str)
def test_empty(backend, shape):
    pruned, order, loss = ops.block_obs(torch.eye(shape[1]), torch.zeros(shape), 0, height=2, width=3)
    assert pruned.shape == shape
    assert order.shape == loss.shape == (shape[0] // 2, 0)


@pytest.mark.parametrize("kind", ["deficient", "dead", "scaled"])
def test_hard_grams(backend, kind, generator):
    gram, inverse, weight = problem(4, 96, generator, kind, damp=1e-4)
    pruned, order, _ = ops.block_obs(inverse, weight, 16, height=2, width=4)
    refit = ops.masked_lstsq(gram, weight @ gram, mask_of(order, 2, 4, 24))
    change, best = pruned - weight, refit - weight
    loss = float(((change @ gram) * change).sum())
    assert loss <= float(((best @ gram) * best).sum()) * (1 + 1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 4), (3, 8)])
def test_same_bits_for_any_thread_count(height, width, monkeypatch, generator):
    _, inverse, weight = problem(9, 200, generator)
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.block_obs(inverse, weight, 150 // width, height=height, width=width))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_inverse_that_is_not_positive_definite(backend):
    inverse = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]))
    _, order, _ = ops.block_obs(inverse, torch.ones(2, 6), 1, height=2, width=2)
    assert order.tolist() == [[0]]
    with pytest.raises(NumericsError, match="rows 2 to 3"):
        ops.block_obs(inverse, torch.ones(4, 6), torch.tensor([1, 2]), height=2, width=2)


def test_errors_say_what_was_seen():
    with pytest.raises(InputError, match="0 to 2 are possible"):
        ops.block_obs(torch.eye(4), torch.ones(2, 4), 3, height=2, width=2)
    with pytest.raises(InputError, match=r"inverse \[3, 3\]"):
        ops.block_obs(torch.eye(3), torch.ones(1, 4), 1)
    for height, width in ((1, 4), (2, 3), (0, 3), (1, -3)):
        with pytest.raises(InputError, match=r"blocks do not fit.*\n.*\n.*weight \[3, 6\]"):
            ops.block_obs(torch.eye(6), torch.ones(3, 6), 1, height=height, width=width)
    with pytest.raises(InputError, match="one count a group"):
        ops.block_obs(torch.eye(6), torch.ones(4, 6), torch.ones(4, dtype=torch.int64), height=2, width=2)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NumericsError, match="weight holds NaN"):
            ops.block_obs(torch.eye(4), torch.full((1, 4), bad), 1, width=2)
        with pytest.raises(NumericsError, match="inverse holds NaN"):
            ops.block_obs(torch.full((4, 4), bad), torch.ones(1, 4), 1, width=2)
