# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from problems import features, gram_of
from tolerances import PRODUCT

from pyprune import ops
from pyprune.errors import InputError
from pyprune.ops.admm_step import admm_step_reference

SHAPES = [(1, 1), (5, 7), (50, 49), (97, 131), (3, 600), (0, 4), (4, 0)]


def make(rows, columns, generator):
    z, start = torch.randn(2, rows, columns, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) > 0.5
    return z, mask, start, torch.randn(columns, columns, generator=generator) / max(columns, 1) ** 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("relax", "momentum"), [(1.0, 0.0), (1.7, 0.3), (0.4, -0.1)])
def test_matches_float64(backend, shape, relax, momentum, generator):
    z, mask, start, multiplier = make(*shape, generator)
    old, previous = z.clone(), torch.randn(shape, generator=generator)
    wanted = z.double()
    admm_step_reference(wanted, previous.double(), mask, start.double(), multiplier.double(), relax, momentum)
    scale = relax * (start.abs() + (z.abs() + start.abs()).double() @ multiplier.double().abs())
    scale = scale + 2 * z.abs() + previous.abs()
    got = ops.admm_step(z, mask, start, multiplier, relax, momentum=momentum, previous=previous)
    assert got is z
    assert torch.equal(previous, old)
    assert bool(((got.double() - wanted).abs() <= 4 * PRODUCT[torch.float32] * scale).all())


def test_converges_to_the_restricted_least_squares_fit(backend, generator):
    """With a mask that stays, ADMM is a splitting for the fit on it (Boyd et al. 2011): an oracle of its own."""
    gram = gram_of(features(200, 24, generator), 1e-2)
    gram = gram / gram.diagonal().mean()
    start = torch.randn(6, 24, generator=generator)
    mask = torch.rand(6, 24, generator=generator) > 0.5
    multiplier = (0.5 * torch.linalg.inv(gram + 0.5 * torch.eye(24, dtype=torch.float64))).float()
    z = start.clone()
    for _ in range(300):
        ops.admm_step(z, mask, start, multiplier, 1.5)
    fit = ops.masked_lstsq(gram, start.double() @ gram, mask)
    assert float((torch.where(mask, z, 0.0) - fit).abs().max()) <= 1e-5


def test_same_bits_for_any_thread_count(monkeypatch, generator):
    z, mask, start, multiplier = make(150, 97, generator)
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.admm_step(z.clone(), mask, start, multiplier, 1.6))
    assert all(torch.equal(results[0], other) for other in results)


def test_errors_say_what_was_seen(generator):
    z, mask, start, multiplier = make(3, 4, generator)
    with pytest.raises(InputError, match="float32"):
        ops.admm_step(z.double(), mask, start, multiplier)
    with pytest.raises(InputError, match="multiplier has the wrong shape"):
        ops.admm_step(z, mask, start, multiplier[:3])
    with pytest.raises(InputError, match="previous state"):
        ops.admm_step(z, mask, start, multiplier, momentum=0.1)
    with pytest.raises(InputError, match="contiguous"):
        ops.admm_step(z.T.contiguous().T, mask, start, multiplier)
