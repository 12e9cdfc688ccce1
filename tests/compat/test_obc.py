# SPDX-License-Identifier: Apache-2.0
"""The drop-in ``TrueOBS`` against greedy OBS by definition: every candidate, every fit solved anew."""

from __future__ import annotations

import copy
import logging

import published
import pytest
import torch
from published import build, inputs, matrix, tokens
from tolerances import MOMENTS, relative
from torch import nn

from pyprune.compat.obc import TrueOBS
from pyprune.errors import InputError, NumericsError

SPARSITIES = [0.0, 0.1, 0.5, 0.75, 1.0]
# H is float32 products; OBS on it amplifies by its condition, a few hundred here.
CLOSE = 1e-3


def gathered(layer, batches, rel_damp=0.0):
    pruner = TrueOBS(layer, rel_damp=rel_damp)
    for batch in batches:
        pruner.add_batch(batch, None)
    return pruner


def problem(kind, rows, cols, generator, dead=(), zeros=0.0):
    layer = build(kind, rows, cols, generator)
    weight = layer.weight.data
    weight[torch.rand(weight.shape, generator=generator) < zeros] = 0.0
    batches = inputs(layer, 6, generator, dead)
    return layer, batches, published.hessian([tokens(layer, batch) for batch in batches], 18)


def permutation(layer):
    """Column order with the input channels innermost."""
    _, channels, height, width = layer.weight.shape
    return [
        (c * height + i) * width + j for i in range(height) for j in range(width) for c in range(channels)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_gathers_what_is_published(kind, generator):
    layer, batches, H = problem(kind, 5, 12, generator)
    pruner = gathered(layer, batches)
    assert pruner.H.dtype == torch.float64
    assert relative(pruner.H, H) <= 2 * MOMENTS[torch.float32]
    assert (pruner.nsamples, pruner.rows, pruner.columns) == (18, 5, 12)


def test_rows_of_a_matrix_are_samples(generator):
    layer, _, _ = problem("linear", 5, 12, generator)
    x = torch.randn(30, 12, generator=generator)
    pruner = gathered(layer, [x[:10], x[10:]])
    assert pruner.nsamples == 30
    assert relative(pruner.H, published.hessian([x], 30)) <= 2 * MOMENTS[torch.float32]


@pytest.mark.parametrize("damp", [0.0, 0.1])
@pytest.mark.parametrize(
    ("kind", "shape", "dead", "zeros"),
    [
        ("linear", (6, 12), (), 0.0),
        ("conv1d", (5, 9), (), 0.0),
        ("conv2d", (4, 12), (), 0.0),
        ("linear", (1, 10), (), 0.0),
        ("linear", (7, 1), (), 0.0),
        ("linear", (5, 12), (0, 7), 0.0),
        ("linear", (6, 12), (), 0.4),
    ],
    ids=str,
)
def test_unstructured(kind, shape, dead, zeros, damp, generator):
    layer, batches, H = problem(kind, *shape, generator, dead, zeros)
    before = layer.weight.clone()
    pruner = gathered(layer, batches, damp)
    pruner.prepare_unstr()
    found = pruner.prune_unstr(SPARSITIES)
    assert torch.equal(layer.weight, before)
    dense, system = published.without_dead(matrix(layer), H, 0.0)
    if damp:  # an input that is damped is not dead any more
        dense, system = matrix(layer).double(), H + damp * H.diagonal().mean() * torch.eye(len(H))
    orders, losses = published.greedy(dense, system)
    assert relative(pruner.Losses[:, 1:], losses) <= CLOSE
    assert bool((pruner.Losses[:, 0] == 0).all())
    for sparsity, weight in zip(SPARSITIES, found, strict=True):
        wanted = published.at_sparsity(dense, system, orders, losses, sparsity)
        assert weight.dtype == torch.float32
        assert torch.equal(weight != 0, wanted != 0), sparsity
        assert relative(weight, wanted) <= CLOSE, sparsity


def test_any_sparsity_costs_no_weights_to_keep(generator):
    layer, batches, _ = problem("linear", 16, 48, generator)
    pruner = gathered(layer, batches)
    pruner.prepare_unstr()
    held = [value for value in vars(pruner._removals).values() if isinstance(value, torch.Tensor)]
    assert max(tensor.numel() for tensor in [*held, pruner.Losses]) <= 48 * 49


def test_counts_are_rounded_up_and_exact(generator):
    layer, batches, _ = problem("linear", 10, 10, generator)
    pruner = gathered(layer, batches)
    pruner.prepare_unstr()
    found = pruner.prune_unstr([0.07, 0.071, 0.29])  # 100 * 0.07 is 7.000000000000001 in floats
    assert [int((weight == 0).sum()) for weight in found] == [7, 8, 29]


def test_zeros_stay_zero(generator):
    layer, batches, _ = problem("linear", 8, 16, generator, zeros=0.5)
    zeros = layer.weight == 0
    pruner = gathered(layer, batches)
    pruner.prepare_unstr()
    few, many = pruner.prune_unstr([0.2, 0.8])
    assert torch.equal(few, layer.weight)
    assert bool((many[zeros] == 0).all())
    assert int((many == 0).sum()) == 103


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_groups_count_what_is_pruned(kind, n, generator):
    layer, batches, H = problem(kind, 5, 24 if kind == "conv2d" else 12, generator)
    dense = matrix(layer).double()
    order = permutation(layer) if kind == "conv2d" else list(range(dense.shape[1]))
    gathered(layer, batches).nmprune(n, 4)
    ours = matrix(layer)[:, order]
    orders, _ = published.greedy(dense[:, order], H[order][:, order], most=n)
    for row, gone in enumerate(orders):
        live = torch.ones(len(order), dtype=torch.bool)
        live[gone] = False
        assert torch.equal(ours[row] != 0, live)
        assert relative(ours[row], published.fit(dense[row, order], H[order][:, order], live)) <= CLOSE
    zeros = (ours == 0).reshape(5, -1, 4).sum(dim=2)
    assert bool((zeros == n).all())


@pytest.mark.parametrize(("kind", "size"), [("linear", 4), ("linear", 3), ("linear", 1), ("conv2d", 2), ("conv1d", 12)])
def test_blocks(kind, size, generator):
    layer, batches, H = problem(kind, 5, 12, generator)
    dense = matrix(layer).double()
    order = permutation(layer) if kind == "conv2d" else list(range(12))
    pruner = gathered(layer, batches)
    pruner.prepare_blocked(size, parallel=2)
    orders, losses = published.greedy(dense[:, order], H[order][:, order], size)
    assert pruner.Losses.shape == (5, 12 // size + 1)
    assert relative(pruner.Losses[:, 1:], losses) <= CLOSE
    for sparsity, weight in zip(SPARSITIES, pruner.prune_blocked(SPARSITIES), strict=True):
        wanted = published.at_sparsity(dense[:, order], H[order][:, order], orders, losses, sparsity)
        assert torch.equal(weight[:, order] != 0, wanted != 0), sparsity
        assert relative(weight[:, order], wanted) <= CLOSE, sparsity


@pytest.mark.parametrize(
    ("kind", "dead", "zeros"), [("linear", (), 0.0), ("conv2d", (), 0.0), ("linear", (2,), 0.0), ("linear", (), 0.3)]
)
@pytest.mark.parametrize("bits", [2, 4])
def test_quantize(kind, dead, zeros, bits, generator):
    layer, batches, H = problem(kind, 6, 12, generator, dead, zeros)
    # Far from the grid, so that some weights are pushed beyond its ends.
    dense, system = published.without_dead(matrix(layer), H, 0.0)
    pruner = gathered(layer, batches)
    pruner.quantizer = published.MinMax(bits)
    pruner.quantize(parallel=4)
    wanted = published.quantised(dense, system, pruner.quantizer.nearest, pruner.quantizer.scale[:, 0])
    assert relative(matrix(layer), wanted) <= CLOSE
    assert bool((matrix(layer)[dense == 0] == 0).all())
    rounded = pruner.quantizer.nearest(dense)
    assert published.error(matrix(layer), dense, H) < published.error(rounded, dense, H)


def test_parts_are_at_hand(generator):
    layer, batches, H = problem("conv2d", 4, 12, generator)
    weight, system, inverse, losses = gathered(layer, batches).prepare()
    assert torch.equal(weight, matrix(layer).double())
    assert relative(inverse @ H, torch.eye(12)) <= CLOSE
    assert losses.shape == (4, 13)
    *_, order = gathered(layer, batches).prepare(columnslast=True)
    assert order.tolist() == permutation(layer)
    again = gathered(layer, batches, rel_damp=0.5).prepare()[1]
    assert relative(again - system, 0.5 * H.diagonal().mean() * torch.eye(12)) <= 1e-5


def test_singular_gets_the_identity_and_says_so(generator, caplog):
    layer = nn.Linear(12, 4)
    pruner = gathered(layer, [torch.randn(5, 12, dtype=torch.float64, generator=generator)])
    with caplog.at_level(logging.WARNING, "pyprune.compat"):
        pruner.prepare_unstr()
    assert "H is singular, the identity is added" in caplog.text
    dense, H = matrix(layer).double(), pruner.H + torch.eye(12)
    orders, losses = published.greedy(dense, H)
    (half,) = pruner.prune_unstr([0.5])
    assert relative(half, published.at_sparsity(dense, H, orders, losses, 0.5)) <= CLOSE


def test_half_precision(generator):
    layer, batches, _ = problem("linear", 6, 16, generator)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    pruner = gathered(half, [batch.bfloat16() for batch in batches])
    pruner.prepare_unstr()
    (found,) = pruner.prune_unstr([0.5])
    assert found.dtype == torch.bfloat16
    assert int((found == 0).sum()) == 48
    pruner.nmprune(2, 4)
    assert half.weight.dtype == torch.bfloat16
    assert int((half.weight == 0).sum()) == 48


def test_prints_nothing(generator, capsys):
    layer, batches, _ = problem("linear", 4, 8, generator)
    pruner = gathered(layer, batches)
    pruner.prepare_unstr()
    pruner.prune_unstr([0.5])
    pruner.nmprune()
    assert capsys.readouterr() == ("", "")


class TestBadInput:
    def test_order_of_calls(self, generator):
        layer, batches, _ = problem("linear", 4, 8, generator)
        with pytest.raises(InputError, match="H is zero"):
            TrueOBS(layer).prepare_unstr()
        pruner = gathered(layer, batches)
        with pytest.raises(InputError, match="nothing has been prepared"):
            pruner.prune_unstr([0.5])
        with pytest.raises(InputError, match="needs a quantizer"):
            pruner.quantize()
        pruner.prepare_unstr()
        pruner.free()
        assert pruner.H is None
        assert pruner.Losses is None
        with pytest.raises(InputError, match="nothing has been prepared"):
            pruner.prune_unstr([0.5])
        with pytest.raises(InputError, match="H is gone"):
            pruner.prepare_unstr()

    def test_numbers(self, generator):
        layer, batches, _ = problem("linear", 4, 10, generator)
        pruner = gathered(layer, batches)
        with pytest.raises(InputError, match="groups do not fit"):
            pruner.nmprune(2, 4)
        with pytest.raises(InputError, match="n of every m"):
            pruner.nmprune(5, 4)
        with pytest.raises(InputError, match="blocks do not fit"):
            pruner.prepare_blocked(4)
        with pytest.raises(InputError, match="blocks do not fit"):
            pruner.prepare_blocked(0)
        pruner.prepare_unstr()
        with pytest.raises(InputError, match="outside 0 to 1"):
            pruner.prune_unstr([1.2])
        with pytest.raises(InputError, match="rel_damp"):
            TrueOBS(layer, rel_damp=-1)

    def test_not_finite(self, generator):
        layer, batches, _ = problem("linear", 4, 8, generator)
        layer.weight.data[1, 1] = float("inf")
        with pytest.raises(NumericsError, match=r"Linear\[4, 8\]: weight holds NaN or inf"):
            gathered(layer, batches).prepare_unstr()
        batches[0][0, 0, 0] = float("nan")
        with pytest.raises(NumericsError, match=r"Linear\[3, 8\]: H holds NaN or inf"):
            gathered(nn.Linear(8, 3), batches).nmprune()
