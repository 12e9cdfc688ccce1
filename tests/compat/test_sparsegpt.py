# SPDX-License-Identifier: Apache-2.0
"""The drop-in ``SparseGPT`` against the published algorithm stated again."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys

import published
import pytest
import torch
from published import LAYERS, build, inputs, matrix, tokens
from tolerances import GREEDY, MOMENTS, STORED, relative
from torch import nn

from pyprune.compat.sparsegpt import SparseGPT
from pyprune.errors import InputError, NumericsError
from pyprune.solvers import available

SHAPES = [(12, 24), (7, 31), (1, 17), (9, 1), (5, 150)]


def gathered(layer, batches, **options):
    pruner = SparseGPT(layer, **options)
    for batch in batches:
        pruner.add_batch(batch, None)
    return pruner


def problem(kind, rows, cols, generator, dtype=torch.float32, dead=(), count=6):
    layer = build(kind, rows, cols, generator, dtype)
    batches = inputs(layer, count, generator, dead)
    H = published.hessian([tokens(layer, batch) for batch in batches], 3 * count)
    return layer, batches, H


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_gathers_what_is_published(kind, dtype, generator):
    layer, batches, H = problem(kind, 6, 18, generator, dtype)
    pruner = gathered(layer, batches)
    assert pruner.nsamples == 18
    assert pruner.H.dtype == torch.float32
    assert (pruner.rows, pruner.columns, pruner.dev) == (6, 18, layer.weight.device)
    assert relative(pruner.H, H) <= 2 * MOMENTS[dtype]


def test_a_matrix_of_tokens_is_one_sample(generator):
    layer, batches, _ = problem("linear", 6, 18, generator)
    pruner = gathered(layer, [batch.reshape(-1, 18) for batch in batches])
    assert pruner.nsamples == 6
    assert relative(pruner.H, published.hessian([tokens(layer, b) for b in batches], 6)) <= 2 * MOMENTS[torch.float32]


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same", "dilation": (2, 1)},
        {"padding": "valid"},
        {"padding": (1, 2), "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
        {"stride": 2, "padding": 1},
    ],
    ids=str,
)
def test_paddings_of_convolutions(options, generator):
    layer = nn.Conv2d(3, 4, (2, 3), **options)
    images = torch.randn(5, 3, 8, 9, generator=generator)
    pruner = gathered(layer, [images[:2], images[2:4], images[4]])
    assert pruner.nsamples == 5
    assert relative(pruner.H, published.hessian([tokens(layer, images)], 5)) <= 2 * MOMENTS[torch.float32]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_equals_the_published_algorithm(kind, shape, sparsity, generator):
    layer, batches, H = problem(kind, *shape, generator)
    dense = matrix(layer)
    wanted = published.sparsegpt(dense, H, sparsity)
    pruner = gathered(layer, batches)
    pruner.fasterprune(sparsity)
    assert torch.equal(matrix(layer) != 0, wanted != 0)
    assert torch.equal(pruner.solution.mask, wanted != 0)
    assert relative(matrix(layer), wanted) <= 1e-4  # a float32 H, and a condition of up to 1e2 / damping
    assert pruner.solution.damping == 0.01


@pytest.mark.parametrize("block", [1, 10, 64])
def test_blocks(block, generator):
    layer, batches, H = problem("linear", 8, 30, generator)
    wanted = published.sparsegpt(matrix(layer), H, 0.6, block=block)
    gathered(layer, batches).fasterprune(0.6, blocksize=block, percdamp=0.01)
    assert torch.equal(matrix(layer) != 0, wanted != 0)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("groups", [(2, 4), (1, 4), (6, 8)], ids=str)
def test_groups_count_what_is_pruned(kind, groups, generator):
    layer, batches, H = problem(kind, 8, 24, generator)
    wanted = published.sparsegpt(matrix(layer), H, groups=groups)
    gathered(layer, batches).fasterprune(0.0, prunen=groups[0], prunem=groups[1])
    assert torch.equal(matrix(layer) != 0, wanted != 0)
    assert relative(matrix(layer), wanted) <= 1e-4
    zeros = (matrix(layer) == 0).reshape(8, -1, groups[1]).sum(dim=2)
    assert bool((zeros == groups[0]).all())


def test_the_other_spelling_of_groups(generator):
    layer, batches, _ = problem("linear", 8, 24, generator)
    other = copy.deepcopy(layer)
    gathered(layer, batches).fasterprune(0.5, prunen=2, prunem=4, percdamp=0.01, blocksize=128)
    gathered(other, batches).fasterprune(0.5, prune_n=2, prune_m=4, percdamp=0.01, blocksize=128)
    assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_close_to_the_public_counts(sparsity, generator):
    """The public code removes up to one weight more per block of columns, of which there are two here."""
    layer, batches, H = problem("linear", 32, 160, generator, count=8)
    dense = matrix(layer)
    public = published.sparsegpt(dense, H, sparsity, one_extra=True)
    gathered(layer, batches).fasterprune(sparsity)
    ours = matrix(layer)
    assert 0 < int((public == 0).sum()) - int((ours == 0).sum()) <= 2
    assert float(((public == 0) != (ours == 0)).double().mean()) < 0.01
    assert published.error(ours, dense, H) <= 1.001 * published.error(public, dense, H)


@pytest.mark.parametrize("dead", [(0,), (3, 4, 17)], ids=str)
def test_dead_inputs(dead, generator):
    layer, batches, H = problem("linear", 8, 18, generator, dead=dead)
    wanted = published.sparsegpt(matrix(layer), H, 0.5)
    gathered(layer, batches).fasterprune(0.5)
    assert bool((matrix(layer)[:, list(dead)] == 0).all())
    assert torch.equal(matrix(layer) != 0, wanted != 0)
    assert relative(matrix(layer), wanted) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_written_back_in_its_dtype(kind, dtype, generator):
    layer, batches, H = problem(kind, 8, 24, generator, dtype)
    wanted = published.sparsegpt(matrix(layer), H, 0.5)
    gathered(layer, batches).fasterprune(0.5)
    assert layer.weight.dtype == dtype
    assert torch.equal(matrix(layer) != 0, wanted != 0)
    assert relative(matrix(layer), wanted) <= max(STORED[dtype], GREEDY)


def test_the_parameter_stays_the_same_object(generator):
    layer, batches, _ = problem("linear", 8, 24, generator)
    parameter, bias, shape = layer.weight, layer.bias.clone(), layer.weight.shape
    gathered(layer, batches).fasterprune(0.5)
    assert layer.weight is parameter
    assert parameter.requires_grad
    assert parameter.shape == shape
    assert torch.equal(layer.bias, bias)


def test_weights_that_are_not_contiguous(generator):
    layer, batches, _ = problem("linear", 8, 24, generator)
    strided = copy.deepcopy(layer)
    strided.weight.data = layer.weight.data.T.contiguous().T
    assert not strided.weight.is_contiguous()
    for each in (layer, strided):
        gathered(each, [batch[..., :24:1] for batch in batches]).fasterprune(0.5)
    assert torch.equal(layer.weight, strided.weight)


class TestQuantizer:
    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize("groups", [None, (2, 4)], ids=str)
    def test_equals_the_published_algorithm(self, kind, groups, generator):
        layer, batches, H = problem(kind, 8, 24, generator, dead=(1,))
        dense, quantizer = matrix(layer), published.MinMax(4)
        pruner = gathered(layer, batches)
        pruner.quantizer = quantizer
        pruner.fasterprune(0.5, *(groups or (0, 0)))
        assert torch.equal(quantizer.seen[0], dense)
        wanted = published.sparsegpt(dense, H, 0.5, groups=groups, nearest=quantizer.nearest)
        assert relative(matrix(layer), wanted) <= 1e-4
        assert relative(quantizer.nearest(matrix(layer).double()), matrix(layer)) <= 1e-6
        assert int(pruner.solution.mask.sum()) == 96
        assert bool((matrix(layer)[~pruner.solution.mask] == 0).all())

    def test_better_than_rounding_afterwards(self, generator):
        layer, batches, H = problem("linear", 16, 48, generator)
        dense, other = matrix(layer), copy.deepcopy(layer)
        quantizer = published.MinMax(3)
        quantizer.find_params(dense, weight=True)
        pruner = gathered(layer, batches)
        pruner.quantizer = quantizer
        pruner.fasterprune(0.5)
        assert len(quantizer.seen) == 1  # it was ready
        gathered(other, batches).fasterprune(0.5)
        rounded = quantizer.nearest(matrix(other).double())
        assert published.error(matrix(layer), dense, H) < published.error(rounded, dense, H)

    def test_on_the_mask_of_another_solver(self, generator):
        layer, batches, H = problem("linear", 16, 48, generator)
        dense, other = matrix(layer), copy.deepcopy(layer)
        errors = {}
        for solver, each in (("obs", layer), ("sparsegpt", other)):
            pruner = gathered(each, batches, solver=solver)
            pruner.quantizer = published.MinMax(4)
            pruner.fasterprune(0.7)
            assert int(pruner.solution.mask.sum()) == round(0.3 * 16 * 48)
            errors[solver] = published.error(matrix(each), dense, H)
        assert errors["obs"] < errors["sparsegpt"]


class TestSolvers:
    def test_a_better_one(self, generator):
        layer, batches, _ = problem("linear", 16, 48, generator)
        plain, other, by_class = layer, copy.deepcopy(layer), copy.deepcopy(layer)
        first, second = gathered(plain, batches), gathered(other, batches, solver="obs")
        first.fasterprune(0.7)
        second.fasterprune(0.7)
        assert second.solution.error < first.solution.error
        assert second.solution.solver == "obs"
        assert second.solution.damping == 0.01

        class Switched(SparseGPT):
            default_solver = "obs"

        third = Switched(by_class)
        for batch in batches:
            third.add_batch(batch, None)
        third.fasterprune(0.7)
        assert torch.equal(by_class.weight, other.weight)

    @pytest.mark.parametrize("solver", available())
    def test_all_of_them(self, solver, generator):
        layer, batches, _ = problem("conv1d", 8, 24, generator)
        for settings in ((0.5, 0, 0), (0.5, 2, 4)):
            pruned = copy.deepcopy(layer)
            gathered(pruned, batches, solver=solver).fasterprune(*settings)
            assert int((pruned.weight == 0).sum()) == 96

    def test_unknown(self):
        with pytest.raises(InputError, match=r"unknown solver 'magic'.*\n.*sparsegpt"):
            SparseGPT(nn.Linear(4, 4), solver="magic")


class TestLifeOfH:
    def test_reading_changes_nothing(self, generator):
        layer, batches, _ = problem("linear", 6, 18, generator)
        read, unread = SparseGPT(layer), SparseGPT(layer)
        for batch in batches:
            read.add_batch(batch, None)
            assert read.H.shape == (18, 18)
            unread.add_batch(batch, None)
        assert relative(read.H, unread.H) <= 1e-6

    def test_changes_in_place_and_assignments_count(self, generator):
        layer, batches, H = problem("linear", 6, 18, generator)
        pruner = gathered(layer, batches)
        pruner.H[2, :] = 0
        pruner.H[:, 2] = 0
        pruner.H *= 3
        others = (torch.arange(18) != 2).double()
        assert relative(pruner.H, 3 * H * torch.outer(others, others)) <= 1e-5
        pruner.fasterprune(0.5)
        assert bool((layer.weight[:, 2] == 0).all())
        other = SparseGPT(layer)
        assert bool((other.H == 0).all())
        other.H = torch.eye(18)
        other.fasterprune(0.5)
        assert other.solution.sparsity == 0.5

    def test_used_up_and_freed(self, generator):
        layer, batches, _ = problem("linear", 6, 18, generator)
        pruner = gathered(layer, batches)
        pruner.fasterprune(0.5)
        assert not hasattr(pruner, "H")
        with pytest.raises(InputError, match="H is gone"):
            pruner.fasterprune(0.5)
        with pytest.raises(InputError, match="H is gone"):
            pruner.add_batch(batches[0], None)
        pruner.free()
        assert pruner.H is None
        assert pruner.solution is None
        pruner.free()

    def test_kept_where_pruning_failed(self, generator):
        layer, batches, H = problem("linear", 6, 18, generator)
        pruner, before = gathered(layer, batches), layer.weight.clone()
        for wrong in ({"prunen": 2, "prunem": 4}, {"percdamp": -1.0}, {"blocksize": 0}):
            with pytest.raises(InputError):
                pruner.fasterprune(0.5, **wrong)
            assert torch.equal(layer.weight, before)
            assert relative(pruner.H, H) <= 1e-6
        pruner.fasterprune(0.5)


class TestBadInput:
    def test_no_inputs(self):
        layer = nn.Linear(6, 4)
        before = layer.weight.clone()
        pruner = SparseGPT(layer)
        with pytest.raises(InputError, match=r"Linear\[4, 6\]: H is zero"):
            pruner.fasterprune(0.5)
        pruner.add_batch(torch.zeros(0, 5, 6), None)
        pruner.add_batch(torch.zeros(2, 5, 6), None)
        with pytest.raises(InputError, match=r"H is zero.*\n.*\n.*2 samples"):
            pruner.fasterprune(0.5)
        assert torch.equal(layer.weight, before)

    def test_not_finite(self, generator):
        layer, batches, _ = problem("linear", 6, 18, generator)
        batches[1][0, 0, 0] = float("nan")
        with pytest.raises(NumericsError, match=r"Linear\[6, 18\]: gram holds NaN or inf"):
            gathered(layer, batches).fasterprune(0.5)

    def test_inputs_of_another_layer(self):
        with pytest.raises(InputError, match="not this layer's"):
            SparseGPT(nn.Linear(6, 4)).add_batch(torch.zeros(2, 5, 4), None)
        with pytest.raises(InputError, match="not this layer's"):
            SparseGPT(nn.Conv2d(6, 4, 3)).add_batch(torch.zeros(2, 6), None)
        with pytest.raises(InputError, match=r"tensor.*\n.*tuple"):
            SparseGPT(nn.Linear(6, 4)).add_batch((torch.zeros(2, 6),), None)

    @pytest.mark.parametrize(
        "layer",
        [nn.Embedding(5, 6), nn.LayerNorm(6), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Conv1d(4, 4, 3)],
        ids=lambda layer: type(layer).__name__,
    )
    def test_layers_that_are_no_matrix(self, layer):
        with pytest.raises(InputError):
            SparseGPT(layer)

    def test_a_weight_that_is_computed(self):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
        with pytest.raises(InputError, match="computed from other parameters"):
            SparseGPT(layer)

    def test_sparsity(self, generator):
        layer, batches, _ = problem("linear", 6, 18, generator)
        with pytest.raises(InputError, match="outside 0 to 1"):
            gathered(layer, batches).fasterprune(1.5)
        with pytest.raises(InputError, match="N of every M"):
            gathered(layer, batches).fasterprune(0.5, prunen=5, prunem=4)


def test_singular_without_damping_is_said(generator, caplog):
    layer = build("linear", 6, 40, generator)
    batches = [torch.randn(1, 10, 40, generator=generator)]
    with caplog.at_level(logging.WARNING, "pyprune.compat"):
        pruner = gathered(layer, batches)
        pruner.fasterprune(0.5, percdamp=0.0)
    assert pruner.solution.damping > 0
    assert "damping raised from 0" in caplog.text
    assert bool(torch.isfinite(layer.weight).all())


def test_prints_nothing_and_logs(generator, caplog, capsys):
    layer, batches, H = problem("linear", 6, 18, generator)
    dense = matrix(layer).double()
    with caplog.at_level(logging.INFO, "pyprune.compat"):
        gathered(layer, batches).fasterprune(0.5)
    assert capsys.readouterr() == ("", "")
    (record,) = caplog.records
    assert record.name == "pyprune.compat"
    change = matrix(layer).double() - dense
    _, damped = published.without_dead(dense, H, 0.01)
    published_loss = 0.5 * float(((change @ damped) * change).sum())
    assert float(record.getMessage().split("error ")[1].split(",")[0]) == pytest.approx(published_loss, rel=1e-4)


def test_needs_neither_transformers_nor_gets_loaded_unasked():
    code = (
        "import sys, pyprune; assert not [name for name in sys.modules if name.startswith('pyprune.compat')]\n"
        "import pyprune.compat.sparsegpt, pyprune.compat.obc, pyprune.compat.llmcompressor\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", LAYERS)
def test_cuda_finds_the_same(kind, generator):
    layer, batches, _ = problem(kind, 8, 24, generator)
    other = copy.deepcopy(layer).cuda()
    gathered(layer, batches).fasterprune(0.5)
    pruner = gathered(other, [batch.cuda() for batch in batches])
    pruner.fasterprune(0.5)
    pruner.free()
    assert torch.equal(matrix(other).cpu() != 0, matrix(layer) != 0)
    assert relative(matrix(other).cpu(), matrix(layer)) <= 1e-4
