# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from problems import features, gram_of

from pyprune import ops
from pyprune.errors import InputError
from pyprune.ops.masked_cg import leading_part, masked_cg_reference

SHAPES = [(1, 1), (5, 7), (50, 49), (97, 131)]


def make(rows, columns, generator, kind="plain"):
    gram = gram_of(features(3 * columns + 2, columns, generator, kind), 1e-2)
    scale = gram.diagonal().sqrt()
    gram = (gram / scale[:, None] / scale).float()
    target = torch.randn(rows, columns, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) > 0.5
    return gram, target, mask, torch.zeros(rows, columns)


def gap(gram, target, mask, x):
    """What is still to be gained, as a part of the energy, in float64."""
    exact = ops.masked_lstsq(gram.double(), target.double(), mask)
    change = x.double() - exact
    lost = ((change @ gram.double()) * change).sum(dim=1)
    return lost / (exact * target).sum(dim=1).clamp(min=1e-30)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["diagonal", "inverse", "low rank"])
def test_matches_float64(backend, shape, kind, generator):
    gram, target, mask, _ = make(*shape, generator)
    start = torch.randn(shape, generator=generator)
    inverse = torch.linalg.inv(gram + 0.1 * torch.eye(shape[1])) if kind == "inverse" else None
    basis = leading_part(gram, min(5, shape[1])) if kind == "low rank" else None
    given = {"precondition": inverse, "basis": basis}
    exact = [None if tensor is None else tensor.double() for tensor in (inverse, basis)]
    got, _ = ops.masked_cg(gram, target, mask, start, steps=5, **given)
    wanted, _ = masked_cg_reference(gram.double(), target.double(), mask, start.double(), 5, 0.0, *exact)
    assert bool((got[~mask] == 0).all())
    assert float((got - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max().clamp(min=1e-3))
    _, worth = ops.masked_cg(gram, target, mask, start, steps=1, **given)
    _, wanted = masked_cg_reference(gram.double(), target.double(), mask, start.double(), 1, 0.0, *exact)
    assert torch.allclose(worth, wanted, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_reaches_the_fit_and_then_stops(backend, preconditioned, generator):
    gram, target, mask, start = make(60, 90, generator, "correlated")
    inverse = torch.linalg.inv(gram + 0.1 * torch.eye(90)) if preconditioned else None
    x, worth = ops.masked_cg(gram, target, mask, start, steps=400, tolerance=1e-9, precondition=inverse)
    assert float(gap(gram, target, mask, x).max()) <= 1e-6
    assert float(worth.max()) <= 1e-9


def test_a_low_rank_preconditioner_saves_steps(backend, generator):
    """On a gram that is a few strong directions and noise, as real ones are."""
    strong = features(400, 6, generator) @ (8 * torch.randn(6, 120, dtype=torch.float64, generator=generator))
    gram = gram_of(strong + features(400, 120, generator))
    scale = gram.diagonal().sqrt()
    gram = (gram / scale[:, None] / scale).float()
    target, mask = torch.randn(30, 120, generator=generator) @ gram, torch.rand(30, 120, generator=generator) > 0.5
    start, basis = torch.zeros(30, 120), leading_part(gram, 6)
    plain, ranked = (
        gap(gram, target, mask, ops.masked_cg(gram, target, mask, start, steps=6, basis=b)[0]) for b in (None, basis)
    )
    assert float(ranked.sum()) < 0.1 * float(plain.sum())


def test_leading_part_is_the_leading_part(generator):
    strong = torch.randn(3, 50, generator=generator)
    system = strong.T @ strong + 0.01 * torch.eye(50)
    basis = leading_part(system, 3)
    assert basis.shape == (3, 50)
    assert float((basis.T @ basis - strong.T @ strong).abs().max()) <= 1e-3
    assert leading_part(torch.eye(2), 5).shape == (2, 2)


def test_with_the_dense_optimum_the_gap_is_relative_to_the_error(backend, generator):
    gram, target, mask, start = make(60, 90, generator, "correlated")
    dense = torch.linalg.solve(gram.double(), target.double().T).T.contiguous()
    x, worth = ops.masked_cg(gram, target, mask, start, steps=400, tolerance=1e-5, dense=dense.float())
    exact = ops.masked_lstsq(gram.double(), target.double(), mask)

    def error(point):
        return ((dense - point) @ gram.double() * (dense - point)).sum(dim=1)

    assert float((error(x.double()) / error(exact) - 1).max()) <= 1e-3
    assert float(worth.max()) <= 1e-5
    first, gained = ops.masked_cg(gram, target, mask, start, steps=1, dense=dense.float())
    wanted = (error(start.double()) - error(first.double())) / error(first.double())
    assert torch.allclose(gained, wanted, rtol=1e-3)


def test_more_steps_never_hurt(backend, generator):
    gram, target, mask, start = make(20, 40, generator)
    gaps = [
        float(gap(gram, target, mask, ops.masked_cg(gram, target, mask, start, steps=n)[0]).sum()) for n in (0, 1, 3, 9)
    ]
    assert gaps == sorted(gaps, reverse=True)


def test_empty_and_full_rows(backend, generator):
    gram, target, mask, start = make(4, 9, generator)
    mask[0], mask[1] = False, True
    x, _ = ops.masked_cg(gram, target, mask, start, steps=50)
    assert bool((x[0] == 0).all())
    assert float((x[1].double() - torch.linalg.solve(gram.double(), target[1].double())).abs().max()) <= 1e-3


def test_same_bits_for_any_thread_count_and_neighbours(monkeypatch, generator):
    gram, target, mask, start = make(130, 61, generator)
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.masked_cg(gram, target, mask, start, steps=7, tolerance=1e-6)[0])
    assert all(torch.equal(results[0], other) for other in results)
    alone, _ = ops.masked_cg(gram, target[77:78], mask[77:78], start[77:78], steps=7, tolerance=1e-6)
    assert torch.equal(alone[0], results[0][77])


def test_errors_say_what_was_seen(generator):
    gram, target, mask, start = make(3, 4, generator)
    with pytest.raises(InputError, match="float32"):
        ops.masked_cg(gram.double(), target, mask, start, steps=1)
    with pytest.raises(InputError, match="system has the wrong shape"):
        ops.masked_cg(gram[:3], target, mask, start, steps=1)
    with pytest.raises(InputError, match="basis does not fit"):
        ops.masked_cg(gram, target, mask, start, steps=1, basis=torch.ones(2, 5))
    with pytest.raises(InputError, match="must not be negative"):
        ops.masked_cg(gram, target, mask, start, steps=-1)
