# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from tolerances import PRODUCT

from pyprune import ops
from pyprune.errors import InputError

SHAPES = [
    (1, 1, 1),
    (7, 5, 3),
    (2, 600, 49),
    (97, 513, 131),
    (50, 1, 24),
    (8, 1030, 48),
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
]


@pytest.mark.parametrize("dtype", PRODUCT, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(backend, shape, dtype, generator):
    rows, depth, columns = shape
    a, b = torch.randn(rows, depth, generator=generator), torch.randn(depth, columns, generator=generator)
    a, b = a.to(dtype), b.to(dtype)
    exact, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    got = ops.matmul(a, b)
    assert got.dtype == dtype
    assert bool(((got.double() - exact).abs() <= PRODUCT[dtype] * scale).all())
    start = torch.randn(rows, columns, generator=generator).to(dtype)
    added = ops.matmul(a, b, start.clone(), scale=-0.5)
    assert bool(((added.double() - start.double() + exact / 2).abs() <= PRODUCT[dtype] * (scale + start.abs())).all())


def test_rows_may_lie_apart(backend, generator):
    wide = torch.randn(40, 90, generator=generator, dtype=torch.float64)
    a, b = wide[:, 3:33], wide[:30, 40:77]
    assert torch.allclose(ops.matmul(a, b), a.contiguous() @ b.contiguous(), rtol=1e-12, atol=1e-12)
    assert torch.allclose(ops.matmul(a.T, wide[:, :7]), a.T @ wide[:, :7], rtol=1e-12, atol=1e-12)


def test_a_row_depends_on_nothing_else(monkeypatch, generator):
    a, b = torch.randn(77, 600, generator=generator), torch.randn(600, 100, generator=generator)
    whole = ops.matmul(a, b)
    assert torch.equal(ops.matmul(a[13:14], b), whole[13:14])
    monkeypatch.setenv("PYPRUNE_NUM_THREADS", "3")
    assert torch.equal(ops.matmul(a, b), whole)


def test_errors_say_what_was_seen():
    with pytest.raises(InputError, match=r"a \[2, 3\], b \[4, 2\]"):
        ops.matmul(torch.ones(2, 3), torch.ones(4, 2))
    with pytest.raises(InputError, match=r"float64 and torch.float32|float32 and torch.float64"):
        ops.matmul(torch.ones(2, 3), torch.ones(3, 2).double())
    with pytest.raises(InputError, match="out must be contiguous"):
        ops.matmul(torch.ones(2, 3), torch.ones(3, 2), torch.ones(2, 2).T)
    with pytest.raises(InputError, match="both float64"):
        ops.matmul(torch.ones(2, 3).half(), torch.ones(3, 2).half())
