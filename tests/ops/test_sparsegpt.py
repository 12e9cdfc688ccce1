# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from problems import features, gram_of
from tolerances import GREEDY, SWEEP_SINGLE, relative

from pyprune import ops
from pyprune.errors import InputError, NumericsError
from pyprune.ops.sparsegpt import sparsegpt_reference


def factor_of(gram):
    """Upper R with gram = R Rᵀ, by torch alone."""
    return torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1).contiguous()


def compare(weight, factor, **options):
    got, mask = ops.sparsegpt(weight, factor, **options)
    prune = options.get("prune")
    block = options.get("block", 128)
    wanted, wanted_mask = sparsegpt_reference(
        weight.double(),
        factor.double(),
        options.get("mask"),
        torch.zeros(-(-weight.shape[1] // block), dtype=torch.int64) if prune is None else prune,
        options.get("per_row", False),
        options.get("keep", 0),
        options.get("of", 0),
        block,
    )
    assert torch.equal(mask, wanted_mask)
    assert got.dtype == (torch.float64 if weight.dtype == torch.float64 else torch.float32)
    assert relative(got, wanted) <= (GREEDY if got.dtype == torch.float64 else SWEEP_SINGLE)
    assert bool((got[~mask] == 0).all())
    return got, mask


@pytest.mark.parametrize("columns", [1, 31, 128, 131, 300])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("block", [32, 128])
def test_matches_the_reference(backend, columns, per_row, block, generator):
    factor = factor_of(gram_of(features(2 * columns + 5, columns, generator, "correlated"), 1e-2))
    weight = torch.randn(29, columns, dtype=torch.float64, generator=generator)
    widths = torch.tensor([min(block, columns - start) for start in range(0, columns, block)])
    prune = (widths if per_row else widths * 29) // 2
    _, mask = compare(weight, factor, prune=prune, per_row=per_row, block=block)
    assert int((~mask).sum()) == int(prune.sum()) * (29 if per_row else 1)


@pytest.mark.parametrize(
    ("keep", "of", "block", "columns"),
    [(2, 4, 128, 256), (4, 8, 32, 96), (1, 3, 129, 300), (20, 40, 40, 160), (32, 64, 128, 256)],
)
def test_groups(backend, keep, of, block, columns, generator):
    factor = factor_of(gram_of(features(400, columns, generator, "correlated"), 1e-2))
    weight = torch.randn(11, columns, dtype=torch.float64, generator=generator)
    _, mask = compare(weight, factor, keep=keep, of=of, block=block)
    assert bool((mask.reshape(11, -1, of).sum(dim=2) == keep).all())


def test_given_mask(backend, generator):
    factor = factor_of(gram_of(features(400, 200, generator), 1e-2))
    weight = torch.randn(50, 200, dtype=torch.float64, generator=generator)
    mask = torch.rand(50, 200, generator=generator) < 0.5
    _, kept = compare(weight, factor, mask=mask)
    assert torch.equal(kept, mask)


def test_pruning_the_last_column_is_a_least_squares_step(backend):
    # Only the columns to the right may move, so the last one goes at its own cost.
    gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    got, _ = ops.sparsegpt(weight, factor_of(gram), mask=torch.tensor([[False, True]]))
    assert relative(got, torch.tensor([[0.0, 1.5]], dtype=torch.float64)) <= 1e-12
    got, _ = ops.sparsegpt(weight, factor_of(gram), mask=torch.tensor([[True, False]]))
    assert relative(got, torch.tensor([[1.0, 0.0]], dtype=torch.float64)) <= 1e-12


def test_float32_input_and_one_row(backend, generator):
    factor = factor_of(gram_of(features(90, 40, generator), 1e-2)).float()
    weight = torch.randn(1, 40, generator=generator)
    compare(weight, factor, prune=torch.tensor([20]))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)], ids=str)
def test_empty(backend, shape):
    blocks = -(-shape[1] // 128)
    got, mask = ops.sparsegpt(torch.zeros(shape), torch.eye(shape[1]), prune=torch.zeros(blocks, dtype=torch.int64))
    assert got.shape == mask.shape == shape


def test_same_bits_for_any_thread_count(monkeypatch, generator):
    factor = factor_of(gram_of(features(600, 260, generator), 1e-2))
    weight = torch.randn(70, 260, dtype=torch.float64, generator=generator)
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.sparsegpt(weight, factor, prune=torch.tensor([4480, 4480, 140]))[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_errors_say_what_was_seen():
    weight, eye = torch.ones(2, 8), torch.eye(8)
    with pytest.raises(InputError, match="exactly one"):
        ops.sparsegpt(weight, eye)
    with pytest.raises(InputError, match="more weights than a block has"):
        ops.sparsegpt(weight, eye, prune=torch.tensor([17]))
    with pytest.raises(InputError, match="groups"):
        ops.sparsegpt(weight, eye, keep=2, of=4, block=6)
    with pytest.raises(NumericsError, match="diagonal"):
        ops.sparsegpt(weight, -eye, prune=torch.tensor([1]))
