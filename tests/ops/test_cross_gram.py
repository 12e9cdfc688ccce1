# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from tolerances import MOMENTS, relative

from pyprune import ops
from pyprune.errors import InputError

SHAPES = [(1, 1, 1), (257, 3, 131), (1031, 97, 48), (600, 131, 1), (0, 3, 4), (9, 0, 4), (5000, 24, 49)]


@pytest.mark.parametrize("dtype", MOMENTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(backend, shape, dtype, generator):
    tokens, targets, columns = shape
    y = torch.randn(tokens, targets, generator=generator, dtype=torch.float64).to(dtype)
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64).to(dtype)
    out = torch.zeros(targets, columns, dtype=torch.float64)
    assert ops.cross_gram(y, x, out=out) is out
    # The scale of cancellation: the sum of magnitudes that went into an entry.
    magnitude = y.double().abs().T @ x.double().abs()
    scale = float(magnitude.max()) if magnitude.numel() else 1.0
    assert relative(out, y.double().T @ x.double(), scale) <= MOMENTS[dtype]


def test_padding_never_enters(backend, generator):
    y, x = torch.randn(4, 9, 13, generator=generator), torch.randn(4, 9, 50, generator=generator)
    keep = torch.rand(4, 9, generator=generator) > 0.5
    wanted = y[keep].double().T @ x[keep].double()
    y[~keep], x[~keep] = torch.nan, torch.inf
    assert relative(ops.cross_gram(y, x, keep), wanted) <= MOMENTS[torch.float32]


def test_non_contiguous_and_accumulating(backend, generator):
    y, x = torch.randn(60, 100, generator=generator)[:, 3:40], torch.randn(80, 60, generator=generator).T
    out = torch.ones(37, 80)
    ops.cross_gram(y, x, out=out)
    assert relative(out, 1 + y.double().T @ x.double()) <= MOMENTS[torch.float32]


def test_equals_gram_on_itself(backend, generator):
    x = torch.randn(700, 60, generator=generator)
    assert relative(ops.cross_gram(x, x), ops.gram(x).double()) <= MOMENTS[torch.float32]


def test_same_bits_for_any_thread_count(monkeypatch, generator):
    y, x = torch.randn(3000, 31, generator=generator), torch.randn(3000, 99, generator=generator)
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.cross_gram(y, x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_errors_say_what_was_seen():
    with pytest.raises(InputError, match="same tokens"):
        ops.cross_gram(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(InputError, match="same dtype"):
        ops.cross_gram(torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bfloat16))
    with pytest.raises(InputError, match=r"asked: +\[2, 5\]"):
        ops.cross_gram(torch.ones(3, 2), torch.ones(3, 5), out=torch.zeros(5, 2))
