# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from pyprune import ops
from pyprune.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("k", [0, 1, 5, 31, 32, 33, 100])
def test_matches_torch(backend, k, dtype, generator):
    matrix = torch.randn(k, k, generator=generator).to(dtype)
    found = ops.symmetrise(matrix)
    wide = matrix.double()
    assert torch.equal(found.matrix, (wide + wide.T) / 2)
    assert found.asymmetry == (float((wide - wide.T).abs().max()) if k else 0.0)
    assert found.largest == (float(wide.abs().max()) if k else 0.0)
    assert found.broken == 0


def test_counts_what_is_not_finite(backend):
    matrix = torch.eye(40)
    matrix[3, 3] = torch.nan
    matrix[3, 37] = torch.inf
    matrix[39, 0] = -torch.inf
    found = ops.symmetrise(matrix)
    assert found.broken == 3
    assert found.asymmetry == 0.0
    assert found.largest == 1.0


def test_same_bits_for_any_thread_count_and_layout(monkeypatch, generator):
    matrix = torch.randn(131, 131, generator=generator)
    one = ops.symmetrise(matrix)
    monkeypatch.setenv("PYPRUNE_NUM_THREADS", "3")
    assert torch.equal(ops.symmetrise(matrix.T).matrix, one.matrix)


def test_errors_say_what_was_seen():
    with pytest.raises(InputError, match="square"):
        ops.symmetrise(torch.ones(2, 3))
