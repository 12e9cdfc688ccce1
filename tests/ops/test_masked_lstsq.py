# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest
import torch
from problems import features, gram_of
from problems import masked_fit as exact
from tolerances import SOLVE, STORED, relative

from pyprune import ops
from pyprune.errors import InputError, NumericsError


@pytest.mark.parametrize("kind", ["plain", "correlated", "scaled"])
@pytest.mark.parametrize("columns", [1, 2, 31, 48, 97, 200])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
def test_matches_numpy(backend, columns, density, kind, generator):
    gram = gram_of(features(3 * columns + 5, columns, generator, kind), 1e-4)
    rhs = torch.randn(9, columns, dtype=torch.float64, generator=generator) @ gram
    mask = torch.rand(9, columns, generator=generator) < density
    got = ops.masked_lstsq(gram, rhs, mask)
    wanted = exact(gram, rhs, mask)
    assert relative(got, wanted) <= SOLVE
    assert bool((got[~mask] == 0).all())


@pytest.mark.parametrize("columns", [5, 131])
def test_empty_and_full_supports(backend, columns, generator):
    gram = gram_of(features(300, columns, generator))
    rhs = torch.randn(3, columns, dtype=torch.float64, generator=generator)
    mask = torch.zeros(3, columns, dtype=torch.bool)
    mask[1] = True
    mask[2, 0] = True
    assert relative(ops.masked_lstsq(gram, rhs, mask), exact(gram, rhs, mask)) <= SOLVE


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(backend, rows, generator):
    gram = gram_of(features(30, 7, generator))
    rhs = torch.randn(rows, 7, dtype=torch.float64, generator=generator)
    mask = torch.rand(rows, 7, generator=generator) < 0.5
    assert ops.masked_lstsq(gram, rhs, mask).shape == (rows, 7)


def test_no_columns(backend):
    empty = torch.zeros(0, 0)
    assert ops.masked_lstsq(empty, torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)).shape == (3, 0)


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_dtypes(backend, dtype, generator):
    gram = gram_of(features(400, 40, generator)).to(dtype)
    gram = (gram + gram.T) / 2
    rhs = torch.randn(6, 40, generator=generator).to(dtype)
    mask = torch.rand(6, 40, generator=generator) < 0.5
    got = ops.masked_lstsq(gram, rhs, mask)
    assert got.dtype == dtype
    assert relative(got, exact(gram, rhs, mask)) <= STORED[dtype] + SOLVE


@pytest.mark.parametrize("kind", ["deficient", "dead", "scaled"])
@pytest.mark.parametrize("density", [0.3, 0.9])
def test_ridge_centred_on_the_anchor(backend, kind, density, generator):
    gram = gram_of(features(100, 60, generator, kind))
    rhs = torch.randn(8, 60, dtype=torch.float64, generator=generator) @ gram
    anchor = torch.randn(8, 60, dtype=torch.float64, generator=generator)
    mask = torch.rand(8, 60, generator=generator) < density
    got = ops.masked_lstsq(gram, rhs, mask, anchor=anchor, damp=1e-3)
    assert relative(got, exact(gram, rhs, mask, anchor, 1e-3)) <= SOLVE


def test_large_ridge_returns_the_anchor(backend, generator):
    gram = gram_of(features(50, 10, generator))
    anchor = torch.randn(2, 10, dtype=torch.float64, generator=generator)
    got = ops.masked_lstsq(gram, torch.zeros(2, 10).double(), torch.ones(2, 10).bool(), anchor=anchor, damp=1e9)
    assert relative(got, anchor) <= 1e-6


def test_residual_is_orthogonal_to_the_support(generator):
    gram = gram_of(features(900, 120, generator, "correlated"), 1e-4)
    rhs = torch.randn(16, 120, dtype=torch.float64, generator=generator) @ gram
    mask = torch.rand(16, 120, generator=generator) < 0.5
    residual = rhs - ops.masked_lstsq(gram, rhs, mask) @ gram
    assert float(residual[mask].abs().max()) <= 1e-8 * float(rhs.abs().max())


def test_rows_do_not_influence_each_other(generator):
    gram = gram_of(features(300, 50, generator), 1e-4)
    rhs = torch.randn(7, 50, dtype=torch.float64, generator=generator)
    mask = torch.rand(7, 50, generator=generator) < 0.6
    order = torch.randperm(7, generator=generator)
    together = ops.masked_lstsq(gram, rhs, mask)
    assert relative(ops.masked_lstsq(gram, rhs[order], mask[order]), together[order]) <= 1e-14
    alone = torch.cat([ops.masked_lstsq(gram, rhs[i : i + 1], mask[i : i + 1]) for i in range(7)])
    assert relative(alone, together) <= SOLVE


def test_singular_support_is_reported(backend, generator):
    gram = gram_of(features(100, 30, generator, "deficient"))
    rhs = torch.randn(2, 30, dtype=torch.float64, generator=generator)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[0, 3:] = False  # this row's support is regular
    with pytest.raises(NumericsError, match=r"row 1 is singular.*1 of 2") as caught:
        ops.masked_lstsq(gram, rhs, mask)
    assert "damp" in str(caught.value)


@pytest.mark.parametrize("bad", ["gram", "rhs", "anchor"])
def test_not_finite(backend, bad):
    tensors = {"gram": torch.eye(3), "rhs": torch.ones(1, 3), "anchor": torch.ones(1, 3)}
    tensors[bad] = tensors[bad].clone()
    tensors[bad][0, 0] = torch.inf
    with pytest.raises(NumericsError, match=f"{bad} holds NaN or inf"):
        ops.masked_lstsq(tensors["gram"], tensors["rhs"], torch.ones(1, 3).bool(), anchor=tensors["anchor"], damp=0.1)


@pytest.mark.parametrize("kind", ["plain", "scaled"])
def test_same_bits_for_any_thread_count(kind, monkeypatch, generator):
    gram = gram_of(features(400, 131, generator, kind), 1e-4)
    rhs = torch.randn(41, 131, dtype=torch.float64, generator=generator) @ gram
    mask = torch.rand(41, 131, generator=generator) < 0.5
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.masked_lstsq(gram, rhs, mask))
    assert all(torch.equal(results[0], other) for other in results)


def test_errors_say_what_was_seen():
    eye, ones, mask = torch.eye(3), torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(InputError, match=r"rhs \[2, 4\]"):
        ops.masked_lstsq(eye, torch.ones(2, 4), mask)
    with pytest.raises(InputError, match="bool"):
        ops.masked_lstsq(eye, ones, mask.float())
    with pytest.raises(InputError, match="damp"):
        ops.masked_lstsq(eye, ones, mask, damp=-1.0)


@pytest.mark.parametrize("kind", ["plain", "correlated", "deficient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_by_iteration(kind, dtype, monkeypatch, generator):
    """The way very wide layers are solved, taken here by force; rows it cannot carry go the direct way."""
    module = sys.modules["pyprune.ops.masked_lstsq"]
    monkeypatch.setattr(module, "_ITERATION_GAIN", float("inf"))
    taken = []
    iterate = module._by_iteration
    monkeypatch.setattr(module, "_by_iteration", lambda *given: taken.append(iterate(*given)) or taken[-1])
    gram = gram_of(features(400, 97, generator, kind), 1e-3)
    rhs = (torch.randn(50, 97, dtype=torch.float64, generator=generator) @ gram).to(dtype)
    mask = torch.rand(50, 97, generator=generator) < 0.5
    mask[0], mask[1] = False, True
    got = ops.masked_lstsq(gram, rhs, mask)
    assert relative(got, exact(gram, rhs, mask)) <= max(SOLVE, STORED[dtype])
    assert bool((got[~mask] == 0).all())
    ((_, solved),) = taken
    assert kind != "plain" or bool(solved.all())
