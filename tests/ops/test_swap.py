# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import features, gram_of
from tolerances import GREEDY, GREEDY_LOSS_SINGLE, relative

from pyprune import ops
from pyprune.errors import InputError, NumericsError
from pyprune.ops.swap import swap_reference

DTYPES = [torch.float64, torch.float32]
NEVER = torch.full((1,), torch.inf, dtype=torch.float64)


def fitted(gram, rhs, keep):
    """The least loss on a support, by NumPy's LU."""
    support = np.flatnonzero(keep)
    target = rhs[support]
    return float(-target @ np.linalg.solve(gram[np.ix_(support, support)], target)) if len(support) else 0.0


def with_pair(keep, out, into):
    other = keep.copy()
    other[out], other[into] = False, True
    return other


def pairs(keep, of=0):
    every = [(p, q) for p in np.flatnonzero(keep) for q in np.flatnonzero(~keep)]
    return [(p, q) for p, q in every if of == 0 or p // of == q // of]


def make(rows, columns, generator, density=0.5, kind="correlated"):
    gram = gram_of(features(3 * columns + 5, columns, generator, kind), 1e-3)
    rhs = torch.randn(rows, columns, dtype=torch.float64, generator=generator) @ gram
    return gram, rhs, torch.rand(rows, columns, generator=generator) < density


def check(found, wanted, tolerance=GREEDY):
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    known = torch.isfinite(wanted[2])
    assert torch.equal(torch.isfinite(found[2]), known)
    assert relative(found[2][known], wanted[2][known]) <= tolerance


@pytest.mark.parametrize("of", [0, 4])
@pytest.mark.parametrize("density", [0.3, 0.8])
def test_one_exchange_is_the_best_of_all_pairs(backend, density, of, generator):
    gram, rhs, mask = make(6, 20, generator, density)
    found, exchanged, _ = ops.swap(gram, rhs, mask, most=1, of=of)
    for row in range(6):
        g, c, keep = gram.numpy(), rhs[row].numpy(), mask[row].numpy()
        losses = {pair: fitted(g, c, with_pair(keep, *pair)) for pair in pairs(keep, of)}
        best = min(losses, key=losses.__getitem__, default=None)
        if best is None or losses[best] >= fitted(g, c, keep):
            assert int(exchanged[row]) == 0
            assert torch.equal(found[row], mask[row])
        else:
            assert int(exchanged[row]) == 1
            assert np.array_equal(found[row].numpy(), with_pair(keep, *best))


@pytest.mark.parametrize("of", [0, 3])
def test_ends_where_no_pair_is_left(backend, of, generator):
    gram, rhs, mask = make(4, 24, generator)
    found, exchanged, worth = ops.swap(gram, rhs, mask, of=of)
    assert int(exchanged.min()) > 0
    for row in range(4):
        g, c, keep = gram.numpy(), rhs[row].numpy(), found[row].numpy()
        loss = fitted(g, c, keep)
        assert loss < fitted(g, c, mask[row].numpy())
        assert min(fitted(g, c, with_pair(keep, *pair)) for pair in pairs(keep, of)) >= loss - 1e-9 * abs(loss)
        for j in range(24):  # what one column more or less changes
            other = keep.copy()
            other[j] = not other[j]
            wanted = abs(fitted(g, c, other) - loss)
            assert float(worth[row, j]) == pytest.approx(wanted, rel=1e-6, abs=1e-9 * abs(loss))
    size = of or 24
    assert torch.equal(found.reshape(4, -1, size).sum(dim=2), mask.reshape(4, -1, size).sum(dim=2))


# Around lanes, panels and tiles of every instruction set.
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 13, 24, 25, 47, 97])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_reference(dtype, columns, generator):
    for density in (0.0, 0.1, 0.5, 0.9, 1.0):
        gram, rhs, mask = make(5, columns, generator, density)
        inverse = torch.linalg.inv(gram)
        inverse = (inverse + inverse.T) / 2
        least = 1e-6 * (rhs @ inverse * rhs).sum(dim=1)
        for of in (0, 4, 5, columns):
            if of and columns % of:
                continue
            wanted = swap_reference(gram, rhs, mask, least, columns**2, of, None, None, False)
            for given in (None, inverse):
                found = ops.swap(gram, rhs, mask, least=least, of=of, inverse=given, dtype=dtype)
                check(found, wanted, GREEDY if dtype == torch.float64 else GREEDY_LOSS_SINGLE)


@pytest.mark.parametrize("side", ["support", "complement"])
def test_more_exchanges_than_one_tableau_takes(side, generator):
    gram, rhs, mask = make(3, 150, generator, 0.35 if side == "support" else 0.65)
    inverse = torch.linalg.inv(gram)
    found = ops.swap(gram, rhs, mask, inverse=(inverse + inverse.T) / 2)
    assert int(found[1].max()) > 32
    check(found, swap_reference(gram, rhs, mask, torch.zeros(3), 10**6, 0, None, None, False))


def test_the_limit_of_exchanges_is_kept(backend, generator):
    gram, rhs, mask = make(4, 40, generator)
    free = ops.swap(gram, rhs, mask)[1]
    for most in (0, 1, 3):
        found, exchanged, _ = ops.swap(gram, rhs, mask, most=most)
        assert torch.equal(exchanged, free.clamp(max=most))
        assert int((found != mask).sum()) <= 2 * int(exchanged.sum())


def test_nothing_below_the_least_gain(backend, generator):
    gram, rhs, mask = make(4, 30, generator)
    found, exchanged, _ = ops.swap(gram, rhs, mask, least=NEVER.expand(4))
    assert torch.equal(found, mask)
    assert not bool(exchanged.any())


@pytest.mark.parametrize("of", [0, 4])
def test_columns_in_question(backend, of, generator):
    """The others keep their weights: the problem is one of these columns alone."""
    gram, rhs, mask = make(3, 40, generator)
    weight = ops.masked_lstsq(gram, rhs, mask)
    blocks = torch.stack([torch.randperm(10, generator=generator)[:6].sort().values for _ in range(3)])
    columns = (blocks[:, :, None] * 4 + torch.arange(4)).flatten(1)
    outside = weight.scatter(1, columns, 0.0)
    rest = rhs - outside @ gram
    found, exchanged, worth = ops.swap(gram, rest, mask, columns=columns, of=of)
    assert int(exchanged.sum()) > 0
    for row in range(3):
        own = columns[row]
        alone = ops.swap(gram[own][:, own], rest[row : row + 1, own], mask[row : row + 1, own], of=of)
        assert torch.equal(found[row, own], alone[0][0])
        assert relative(worth[row, own], alone[2][0]) <= GREEDY
        others = torch.ones(40, dtype=torch.bool)
        others[own] = False
        assert torch.equal(found[row, others], mask[row, others])
        assert torch.equal(worth[row, others], torch.where(mask[row, others], torch.inf, 0.0).double())
        g, c = gram.numpy(), rhs[row].numpy()
        assert fitted(g, c, found[row].numpy()) <= fitted(g, c, mask[row].numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["scaled", "deficient", "dead"])
def test_hard_grams(kind, dtype, generator):
    gram, rhs, mask = make(6, 60, generator, kind=kind)
    least = 1e-5 * (ops.masked_lstsq(gram, rhs, torch.ones_like(mask)) * rhs).sum(dim=1)
    found, _, worth = ops.swap(gram, rhs, mask, least=least, dtype=dtype)
    assert not bool(torch.isnan(worth).any())
    assert torch.equal(found.sum(dim=1), mask.sum(dim=1))
    for row in range(6):
        g, c = gram.numpy(), rhs[row].numpy()
        loss, before = (fitted(g, c, keep[row].numpy()) for keep in (found, mask))
        assert loss <= before
        others = [fitted(g, c, with_pair(found[row].numpy(), *pair)) for pair in pairs(found[row].numpy())]
        assert min(others) >= loss - (1 if dtype == torch.float64 else 2) * float(least[row])


def test_twin_columns_are_not_exchanged_for_ever(generator):
    x = features(200, 30, generator)
    x[:, 1::2] = x[:, ::2]
    gram = gram_of(x, 1e-8)
    rhs = torch.randn(4, 30, dtype=torch.float64, generator=generator) @ gram
    mask = torch.rand(4, 30, generator=generator) < 0.5
    for dtype in DTYPES:
        found, exchanged, _ = ops.swap(gram, rhs, mask, least=1e-4, most=1000, dtype=dtype)
        assert int(exchanged.max()) < 100
        assert torch.equal(found.sum(dim=1), mask.sum(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_inputs_of_other_dtypes_and_strides(backend, dtype, generator):
    gram, rhs, mask = make(4, 18, generator)
    gram, rhs = (gram + 0.1 * gram.diagonal().mean() * torch.eye(18)).to(dtype), rhs.to(dtype)
    wanted = ops.swap(gram.double(), rhs.double(), mask)
    spread = torch.zeros(18, 8, dtype=dtype)[:, ::2].copy_(rhs.T).T
    flags = torch.zeros(18, 8, dtype=torch.bool)[:, ::2].copy_(mask.T).T
    assert not spread.is_contiguous()
    before = flags.clone()
    found = ops.swap(gram.T, spread, flags)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(flags, before)


def test_same_bits_for_any_number_of_threads(monkeypatch, generator):
    gram, rhs, mask = make(31, 50, generator)
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.swap(gram, rhs, mask, dtype=torch.float32))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
def test_empty(backend, shape):
    found, exchanged, worth = ops.swap(torch.eye(shape[1]), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    assert found.shape == worth.shape == shape
    assert exchanged.tolist() == [0] * shape[0]


def test_float32_that_does_not_suffice_is_done_in_float64(generator):
    x = features(80, 24, generator) @ torch.diag(torch.logspace(0, -5, 24, dtype=torch.float64))
    turn, _ = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64, generator=generator))
    gram = gram_of(x @ turn)
    rhs = torch.randn(3, 24, dtype=torch.float64, generator=generator) @ gram
    mask = torch.ones(3, 24, dtype=torch.bool)
    mask[:, 0] = False
    found, wanted = (ops.swap(gram, rhs, mask, least=1e-6, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_errors(backend):
    eye, rhs, mask = torch.eye(4), torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool)
    mask[:, 0] = False
    for match, options in (
        ("groups", {"of": 3}),
        ("most", {"most": -1}),
        ("least", {"least": -1.0}),
        ("least", {"least": float("nan")}),
        ("dtype", {"dtype": torch.float16}),
        ("columns must be int64", {"columns": torch.zeros(2, 2)}),
        ("out of range", {"columns": torch.tensor([[0, 4], [0, 1]])}),
        ("must rise", {"columns": torch.tensor([[1, 1], [0, 1]])}),
        ("inverse is of no use", {"columns": torch.tensor([[0, 1], [0, 1]]), "inverse": eye}),
        ("inverse has the wrong shape", {"inverse": torch.eye(3)}),
    ):
        with pytest.raises(InputError, match=match):
            ops.swap(eye, rhs, mask, **options)
    with pytest.raises(InputError, match="shapes do not fit"):
        ops.swap(torch.eye(3), rhs, mask)
    with pytest.raises(InputError, match="mask has the wrong shape"):
        ops.swap(eye, rhs, mask[:1])
    with pytest.raises(InputError, match="mask must be bool"):
        ops.swap(eye, rhs, mask.float())
    with pytest.raises(InputError, match="no gradient"):
        ops.swap(eye, rhs.clone().requires_grad_(), mask)
    with pytest.raises(NumericsError, match="rhs holds NaN"):
        ops.swap(eye, rhs * float("nan"), mask)
    with pytest.raises(NumericsError, match="row 0 is not positive definite"):
        ops.swap(torch.ones(4, 4) - 2 * eye, rhs, mask)
