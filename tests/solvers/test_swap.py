# SPDX-License-Identifier: Apache-2.0
"""Exchanges: what they end in, by brute force over all pairs in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from problems import features, gram_of
from tolerances import SOLVE, relative

from pyprune import NM, Block, LayerProblem, Unstructured, ops, solve
from pyprune.errors import InputError
from pyprune.solvers import exchange
from pyprune.solvers.block_exchange import exchange_blocks
from pyprune.solvers.refit import refit

PATTERNS = [
    Unstructured(0.5),
    Unstructured(0.7, "layer"),
    Unstructured(0.2, "layer"),
    NM(2, 4),
    NM(1, 3),
    Block(2, 3, 0.5, "row"),
    Block(3, 1, 0.6),
    Block(1, 4, 0.4),
]
IDS = [pattern.describe() for pattern in PATTERNS]
DAMPING = 1e-3
COUNTS = 2e-5  # of the loss: what an exchange has to gain, with room for rounding


def make(generator, rows=6, columns=12, **options):
    x = features(4 * columns, columns, generator, "correlated")
    return LayerProblem(torch.randn(rows, columns, dtype=torch.float64, generator=generator), gram_of(x), **options)


def losses(problem, masks):
    """The damped loss of each row on masks ``[..., rows, columns]``: LU, with a unit row for what is not kept."""
    ridge = problem.factorise(DAMPING).ridge
    system = problem.gram + ridge * torch.eye(problem.shape[1], dtype=torch.float64)
    target = problem.rhs() + ridge * problem.weight
    keep = masks.double()
    unit = torch.diag_embed(1 - keep)
    restricted = keep[..., :, None] * system * keep[..., None, :] + unit
    fit = torch.linalg.solve(restricted, (keep * target)[..., None])[..., 0]
    change = fit - problem.start(DAMPING)
    return ((change @ system) * change).sum(dim=-1)


def neighbours(pattern, mask):
    """All masks one exchange away that have the pattern."""
    height, width = (pattern.rows, pattern.cols) if isinstance(pattern, Block) else (1, 1)
    units = mask[::height, ::width]
    for (r, p), (s, q) in itertools.product(units.nonzero().tolist(), (~units).nonzero().tolist()):
        other = mask.clone()
        other[r * height : (r + 1) * height, p * width : (p + 1) * width] = False
        other[s * height : (s + 1) * height, q * width : (q + 1) * width] = True
        if pattern.holds(other):
            yield other


def most_left(problem, pattern, mask):
    """What the best exchange that is left would gain, as a part of the loss."""
    found = losses(problem, mask)
    others = list(neighbours(pattern, mask))
    rows = torch.cat([losses(problem, torch.stack(others[i : i + 500])) for i in range(0, len(others), 500)])
    return float((found - rows).sum(dim=1).max() / found.sum())


@pytest.mark.parametrize("pattern", PATTERNS, ids=IDS)
def test_no_exchange_is_left_that_helps(pattern, generator):
    for _ in range(3):
        problem = make(generator)
        found = solve(problem, pattern, "swap", damping=DAMPING, start="magnitude")
        assert pattern.holds(found.mask)
        assert most_left(problem, pattern, found.mask) <= COUNTS
        start = solve(problem, pattern, "magnitude", damping=DAMPING)
        assert float(losses(problem, found.mask).sum()) < float(losses(problem, start.mask).sum())


@pytest.mark.parametrize("pattern", PATTERNS, ids=IDS)
def test_it_ends_in_the_fit_on_its_mask(pattern, generator):
    problem = make(generator)
    found = solve(problem, pattern, "swap", damping=DAMPING)
    assert relative(found.weight, refit(problem, found.mask, DAMPING).weight) <= SOLVE


@pytest.mark.parametrize("start", ["magnitude", "wanda", "sparsegpt", "obs", "admm", "fast", "best"])
@pytest.mark.parametrize("pattern", [Unstructured(0.6, "layer"), NM(2, 4), Block(2, 2, 0.5)], ids=["60", "2:4", "2x2"])
def test_never_worse_than_the_start(start, pattern, generator):
    problem = make(generator, 12, 24)
    before = losses(problem, solve(problem, pattern, start, damping=DAMPING).mask)
    after = losses(problem, solve(problem, pattern, "swap", damping=DAMPING, start=start).mask)
    assert float(after.sum()) <= float(before.sum())
    if isinstance(pattern, NM):
        assert bool((after <= before * (1 + 1e-9)).all())


def test_rows_that_compete_take_from_each_other(generator):
    """A mask with the same number in every row of very different rows: only exchanges between rows can help."""
    problem = make(generator, 12, 24)
    problem = LayerProblem(problem.weight * torch.logspace(-2, 1, 12)[:, None], problem.gram)
    uniform = solve(problem, Unstructured(0.5), "swap", damping=DAMPING).mask
    layer = exchange.exchange(problem, Unstructured(0.5, "layer"), uniform, DAMPING)
    assert Unstructured(0.5, "layer").holds(layer.mask)
    assert not Unstructured(0.5, "row").holds(layer.mask)
    assert float(losses(problem, layer.mask).sum()) < 0.5 * float(losses(problem, uniform).sum())


def test_the_number_of_exchanges_is_kept(generator):
    problem = make(generator, 12, 24)
    for pattern in (Unstructured(0.5), NM(2, 4), Block(2, 2, 0.5)):
        start = solve(problem, pattern, "magnitude", damping=DAMPING).mask
        for most in (0, 1, 2):
            found = solve(problem, pattern, "swap", damping=DAMPING, start="magnitude", exchanges=most).mask
            size = pattern.cols if isinstance(pattern, Block) else 1
            assert int((found != start).sum(dim=1).max()) <= 2 * most * size
            assert (most > 0) == (not torch.equal(found, start))


@pytest.mark.parametrize("height", [1, 3])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_blocks_go_by_the_exact_gain(width, height, generator):
    gram = gram_of(features(80, 24, generator, "correlated"), 1e-3)
    target = torch.randn(height, 24, dtype=torch.float64, generator=generator) @ gram
    keep = torch.rand(24 // width, generator=generator) < 0.5
    keep[0], keep[1] = True, False

    def loss(blocks):
        mask = blocks.repeat_interleave(width).expand(height, -1)
        return -float((ops.masked_lstsq(gram, target, mask) * target).sum())

    found, exchanged, worth = exchange_blocks(gram, target, keep, width, 0.0, 1)
    options = {}
    for p, q in itertools.product(keep.nonzero()[:, 0].tolist(), (~keep).nonzero()[:, 0].tolist()):
        other = keep.clone()
        other[p], other[q] = False, True
        options[p, q] = loss(other)
    best = min(options, key=options.__getitem__)
    assert exchanged == 1
    assert not bool(found[best[0]])
    assert bool(found[best[1]])
    for j in range(len(keep)):
        other = found.clone()
        other[j] = not other[j]
        assert float(worth[j]) == pytest.approx(abs(loss(other) - loss(found)), rel=1e-6)
    everything, _, _ = exchange_blocks(gram, target, keep, width, 0.0, None)
    assert loss(everything) <= loss(found)


def test_part_of():
    assert exchange.part_of(1, 1) == 1
    assert exchange.part_of(3072, 1536) == 3072  # done at once
    assert exchange.part_of(4096, 2048) == 2048
    assert exchange.part_of(4096, 410) == exchange.part_of(4096, 3686) == 4096  # the smaller side decides
    assert exchange.part_of(1024, 512, blocks=True) == 1024
    assert exchange.part_of(3072, 1536, blocks=True) == 1024


@pytest.mark.parametrize("pattern", [*PATTERNS, Unstructured(1.0), Unstructured(0.0)], ids=[*IDS, "all", "none"])
def test_parts_of_the_columns(pattern, monkeypatch, generator):
    problem = make(generator)
    start = solve(problem, pattern, "magnitude", damping=DAMPING).mask
    monkeypatch.setattr(exchange, "part_of", lambda columns, kept, blocks: 8)
    found = solve(problem, pattern, "swap", damping=DAMPING, start="magnitude")
    assert pattern.holds(found.mask)
    before, after = float(losses(problem, start).sum()), float(losses(problem, found.mask).sum())
    assert after < before if 0.3 < pattern.sparsity < 1 else after <= before
    assert relative(found.weight, refit(problem, found.mask, DAMPING).weight) <= SOLVE


def test_best_ends_in_exchanges_where_the_budget_allows(generator):
    problem, pattern = make(generator), Unstructured(0.7)
    assert exchange.price(problem, pattern) < 4 * 24 - 48
    assert exchange.price(problem, Block(2, 2, 0.5)) == float("inf")
    short, long = [], []
    for _ in range(5):
        problem = make(generator)
        for budget, left in ((2, short), (4, long)):
            found = solve(problem, pattern, "best", damping=DAMPING, budget=budget)
            left.append(most_left(problem, pattern, found.mask))
    assert max(long) <= COUNTS
    assert max(short) > COUNTS  # by itself the search does not end there


def test_rows_that_give_and_rows_that_take():
    give, take = torch.tensor([1.0, 5.0, 2.0, 9.0]), torch.tensor([3.0, 10.0, 1.0, 4.0])
    assert exchange._matched(give, take, 0.0) == ([0, 2], [1, 3])
    assert exchange._matched(give, take, 2.0) == ([0], [1])
    assert exchange._matched(give, take, 9.0) == ([], [])
    assert exchange._matched(give[:1], take[:1], 0.0) == ([], [])  # not from itself


def test_errors(generator):
    problem = make(generator)
    with pytest.raises(InputError, match=r"unknown start 'swap'.*\n.*admm"):
        solve(problem, Unstructured(0.5), "swap", start="swap")
    with pytest.raises(InputError, match="exchanges must not be negative"):
        solve(problem, Unstructured(0.5), "swap", exchanges=-1)
