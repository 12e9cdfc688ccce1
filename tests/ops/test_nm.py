# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from pyprune import ops
from pyprune.errors import InputError, NumericsError
from pyprune.ops.nm import nm_reference


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (4, 8), (1, 4), (0, 3), (3, 3), (1, 1), (32, 64), (7, 23)])
def test_equals_the_reference(backend, keep, of, generator):
    scores = torch.randn(17, of * 6, generator=generator)
    mask = ops.nm(scores, keep, of)
    assert torch.equal(mask, nm_reference(scores, keep, of))
    assert bool((mask.reshape(17, 6, of).sum(dim=2) == keep).all())


@pytest.mark.parametrize("of", [4, 32])
def test_ties_keep_the_earlier(backend, of):
    mask = ops.nm(torch.ones(1, of), of // 2, of)
    assert mask.tolist() == [[True] * (of // 2) + [False] * (of // 2)]


@pytest.mark.parametrize("of", [4, 32])
def test_many_ties_equal_the_reference(backend, of, generator):
    scores = torch.randint(0, 3, (50, of * 4), generator=generator).float()
    assert torch.equal(ops.nm(scores, of // 2, of), nm_reference(scores, of // 2, of))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_and_empty(backend, dtype, generator):
    scores = torch.randn(5, 12, generator=generator).to(dtype)
    assert torch.equal(ops.nm(scores, 2, 4), nm_reference(scores, 2, 4))
    assert ops.nm(scores[:0], 2, 4).shape == (0, 12)


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (7, 23)])
def test_same_mask_for_any_thread_count(keep, of, monkeypatch, generator):
    scores = torch.randint(0, 9, (151, of * 6), generator=generator).float()
    for threads in ("1", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        assert torch.equal(ops.nm(scores, keep, of), nm_reference(scores, keep, of))


def test_errors_say_what_was_seen():
    with pytest.raises(InputError, match="rows of 10"):
        ops.nm(torch.ones(1, 10), 2, 4)
    with pytest.raises(InputError, match="keep 5 of every 4"):
        ops.nm(torch.ones(1, 8), 5, 4)
    with pytest.raises(NumericsError, match="NaN"):
        ops.nm(torch.full((1, 4), torch.nan), 2, 4)
