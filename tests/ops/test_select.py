# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprune import ops
from pyprune.errors import InputError, NumericsError
from pyprune.ops.select import select_reference


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_equals_a_stable_sort(data):
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    # Few distinct values, so that ties are the rule; infinities and both zeros among them.
    value = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.5, float("inf"), float("-inf")])
    scores = torch.tensor(data.draw(st.lists(value, min_size=rows * cols, max_size=rows * cols))).reshape(rows, cols)
    per_row = data.draw(st.booleans())
    count = data.draw(st.integers(0, cols if per_row else rows * cols))
    mask = ops.select(scores, count, "row" if per_row else "layer")
    assert torch.equal(mask, select_reference(scores, count, per_row))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 131), (64, 257), (3, 0), (0, 5)], ids=str)
def test_exact_counts(backend, shape, dtype, generator):
    scores = torch.randn(shape, generator=generator).to(dtype)
    count = shape[1] // 3
    assert bool((ops.select(scores, count).sum(dim=1) == count).all())
    total = scores.numel() // 2
    mask = ops.select(scores, total, "layer")
    assert int(mask.sum()) == total
    if 0 < total < scores.numel():
        assert float(scores[mask].min()) >= float(scores[~mask].max())


def test_ties_keep_the_earlier(backend):
    assert ops.select(torch.ones(2, 5), 2).tolist() == [[True, True, False, False, False]] * 2
    assert ops.select(torch.ones(2, 3), 4, "layer").tolist() == [[True] * 3, [True, False, False]]


def test_non_contiguous(backend, generator):
    scores = torch.randn(30, 20, generator=generator).T
    assert torch.equal(ops.select(scores, 7), select_reference(scores.contiguous(), 7, True))


@pytest.mark.parametrize("scope", ["row", "layer"])
def test_same_mask_for_any_thread_count(scope, monkeypatch, generator):
    scores = torch.randint(0, 9, (151, 97), generator=generator).float()
    count = 40 if scope == "row" else 6001
    for threads in ("1", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        assert torch.equal(ops.select(scores, count, scope), select_reference(scores, count, scope == "row"))


def test_errors_say_what_was_seen():
    with pytest.raises(InputError, match="5 candidates"):
        ops.select(torch.ones(2, 5), 6)
    with pytest.raises(InputError, match="scope"):
        ops.select(torch.ones(2, 5), 1, "column")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="matrix"):
        ops.select(torch.ones(5), 1)
    with pytest.raises(NumericsError, match="NaN"):
        ops.select(torch.tensor([[1.0, torch.nan]]), 1)
