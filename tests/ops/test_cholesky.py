# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from problems import features, gram_of
from tolerances import FACTOR, relative

from pyprune import ops
from pyprune.errors import InputError

SIZES = [1, 2, 23, 24, 25, 48, 95, 96, 97, 193, 300]


@pytest.mark.parametrize("dtype", FACTOR, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("k", SIZES)
def test_factor_and_inverse(backend, k, reverse, dtype, generator):
    gram = gram_of(features(2 * k + 3, k, generator))
    damped = gram + 0.01 * torch.eye(k, dtype=torch.float64)
    found = ops.cholesky(gram, ridge=0.01, inverse=True, reverse=reverse, dtype=dtype)
    assert found.failed == -1
    assert found.inverse is not None
    assert found.factor.dtype == found.inverse.dtype == dtype
    factor = found.factor.double()
    assert bool((factor.tril(-1) == 0).all())
    assert relative(factor @ factor.T if reverse else factor.T @ factor, damped) <= FACTOR[dtype]
    # Scaled by the condition of the problems above, at most 100.
    assert relative(found.inverse, torch.linalg.inv(damped)) <= 100 * FACTOR[dtype]
    assert torch.equal(found.inverse, found.inverse.T)
    assert ops.cholesky(gram, ridge=0.01, dtype=dtype).inverse is None


@pytest.mark.parametrize("at", [0, 100, 199])
@pytest.mark.parametrize("reverse", [False, True])
def test_says_where_it_failed(backend, at, reverse):
    matrix = torch.eye(200, dtype=torch.float64)
    matrix[at, at] = -1.0
    assert ops.cholesky(matrix, reverse=reverse).failed == at
    assert ops.cholesky(matrix, ridge=2.0, reverse=reverse).failed == -1


@pytest.mark.parametrize("reverse", [False, True])
def test_nan_is_no_positive_pivot(backend, reverse):
    matrix = torch.eye(50, dtype=torch.float64)
    matrix[20, 20] = torch.nan
    assert ops.cholesky(matrix, reverse=reverse).failed == 20


def test_only_the_upper_triangle_is_read_and_nothing_changed(backend, generator):
    gram = gram_of(features(300, 110, generator))
    upper = gram.triu()
    before = upper.clone()
    assert relative(ops.cholesky(upper).factor, ops.cholesky(gram).factor) <= 1e-12
    assert torch.equal(upper, before)


def test_same_bits_for_any_thread_count(monkeypatch, generator):
    gram = gram_of(features(900, 301, generator))
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.cholesky(gram, inverse=True))
    assert all(torch.equal(results[0].factor, other.factor) for other in results)
    assert all(torch.equal(results[0].inverse, other.inverse) for other in results)


def test_empty(backend):
    found = ops.cholesky(torch.zeros(0, 0), inverse=True)
    assert found.factor.shape == found.inverse.shape == (0, 0)
    assert found.failed == -1


def test_errors_say_what_was_seen():
    with pytest.raises(InputError, match="square"):
        ops.cholesky(torch.ones(2, 3))
    with pytest.raises(InputError, match="float32 or float64"):
        ops.cholesky(torch.eye(2), dtype=torch.float16)
    with pytest.raises(InputError, match="ridge"):
        ops.cholesky(torch.eye(2), ridge=float("nan"))
