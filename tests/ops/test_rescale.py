# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from pyprune import ops
from pyprune.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [0, 1, 7, 100])
def test_matches_float64(backend, k, dtype, generator):
    matrix = torch.randn(k, k, dtype=torch.float64, generator=generator)
    matrix, scale = matrix + matrix.T, torch.rand(k, generator=generator, dtype=torch.float64)
    got = ops.rescale(matrix, scale, ridge=0.3, shift=-0.2, dtype=dtype)
    eye = torch.eye(k, dtype=torch.float64)
    wanted = torch.diag(scale) @ (matrix + 0.3 * eye) @ torch.diag(scale) - 0.2 * eye
    assert got.dtype == dtype
    assert torch.allclose(got.double(), wanted, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=1e-7)
    assert torch.equal(got, got.T)


def test_same_bits_for_any_thread_count(monkeypatch, generator):
    matrix, scale = torch.randn(131, 131, generator=generator), torch.rand(131, generator=generator)
    one = ops.rescale(matrix, scale)
    monkeypatch.setenv("PYPRUNE_NUM_THREADS", "3")
    assert torch.equal(ops.rescale(matrix, scale), one)


def test_errors_say_what_was_seen():
    with pytest.raises(InputError, match="square"):
        ops.rescale(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(InputError, match="scale has the wrong shape"):
        ops.rescale(torch.ones(2, 2), torch.ones(3))
    with pytest.raises(InputError, match="dtype"):
        ops.rescale(torch.ones(2, 2), torch.ones(2), dtype=torch.float16)
