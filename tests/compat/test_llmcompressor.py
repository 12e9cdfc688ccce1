# SPDX-License-Identifier: Apache-2.0
"""The drop-in ``sparsify_weight`` against SparseGPT stated again, with masks that were there before."""

from __future__ import annotations

import inspect
import logging

import published
import pytest
import torch
from published import LAYERS, build, inputs, matrix, tokens
from tolerances import MOMENTS, relative

from pyprune.compat.llmcompressor import accumulate_hessian, make_empty_hessian, sparsify_weight
from pyprune.errors import InputError, NumericsError


def gathered(layer, batches):
    H, samples = make_empty_hessian(layer), 0
    for batch in batches:
        H, samples = accumulate_hessian(batch, layer, H, samples)
    return {layer: H}, samples


def problem(kind, rows, cols, generator, dtype=torch.float32, zeros=0.0, dead=()):
    layer = build(kind, rows, cols, generator, dtype)
    layer.weight.data[torch.rand(layer.weight.shape, generator=generator) < zeros] = 0.0
    batches = inputs(layer, 6, generator, dead)
    return layer, batches, published.hessian([tokens(layer, batch) for batch in batches], 18)


def prune(layer, hessians, sparsity=0.5, groups=(0, 0), preserve=False, damp=0.01, **options):
    loss, weight = sparsify_weight(
        module=layer,
        hessians_dict=hessians,
        sparsity=sparsity,
        prune_n=groups[0],
        prune_m=groups[1],
        block_size=128,
        dampening_frac=damp,
        preserve_sparsity_mask=preserve,
        **options,
    )
    assert weight.shape == layer.weight.shape
    assert weight.dtype == layer.weight.dtype
    return loss, (weight.T if type(layer).__name__ == "Conv1D" else weight.flatten(1))


def test_names_of_the_arguments():
    names = list(inspect.signature(sparsify_weight).parameters)
    assert names[:5] == ["module", "hessians_dict", "sparsity", "prune_n", "prune_m"]
    assert names[5:8] == ["block_size", "dampening_frac", "preserve_sparsity_mask"]
    assert list(inspect.signature(accumulate_hessian).parameters) == ["inp", "module", "H", "num_samples"]
    assert list(inspect.signature(make_empty_hessian).parameters) == ["module", "device"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_gathers_in_place(kind, dtype, generator):
    layer, batches, H = problem(kind, 6, 18, generator, dtype)
    empty = make_empty_hessian(layer, device=torch.device("cpu"))
    assert empty.shape == (18, 18)
    assert empty.dtype == torch.float32
    found, samples = accumulate_hessian(batches[0], layer, empty, 0)
    assert found is empty
    for batch in batches[1:]:
        found, samples = accumulate_hessian(batch, layer, found, samples)
    assert samples == 18
    assert relative(found, H) <= 2 * MOMENTS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("groups", [(0, 0), (2, 4), (1, 4)], ids=str)
def test_equals_the_published_algorithm(kind, groups, dtype, generator):
    layer, batches, H = problem(kind, 7, 24, generator, dtype, dead=(1,))
    before, dense = layer.weight.clone(), matrix(layer).double()
    hessians, _ = gathered(layer, batches)
    loss, weight = prune(layer, hessians, groups=groups)
    assert hessians == {}
    assert torch.equal(layer.weight, before)
    wanted = published.sparsegpt(dense, H, 0.5, groups=groups if groups[0] else None)
    assert torch.equal(weight != 0, wanted != 0)
    assert relative(weight, wanted) <= (1e-4 if dtype == torch.float32 else 3e-3)
    start, damped = published.without_dead(dense, H, 0.01)
    change = weight.double() - start
    assert loss == pytest.approx(0.5 * float(((change @ damped) * change).sum()), rel=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("zeros", [0.1, 0.3, 0.55])
def test_preserves_a_mask(kind, zeros, generator):
    layer, batches, H = problem(kind, 9, 150, generator, zeros=zeros)
    dense = matrix(layer)
    gone = dense == 0
    hessians, _ = gathered(layer, batches)
    _, kept = prune(layer, dict(hessians), 0.6, preserve=True)
    assert bool((kept[gone] == 0).all())
    assert int((kept == 0).sum()) == 810
    # A mask chosen from scratch needs no old zeros; where there are many, keeping them must not cost much.
    assert published.error(kept, dense, H) <= 1.3 * published.error(prune(layer, hessians, 0.6)[1], dense, H)


def test_a_preserved_mask_that_is_full_is_left_alone(generator):
    layer, batches, _ = problem("linear", 8, 24, generator)
    layer.weight.data[:, ::2] = 0
    hessians, _ = gathered(layer, batches)
    loss, weight = prune(layer, hessians, 0.5, preserve=True)
    assert torch.equal(weight, layer.weight)
    assert loss == 0.0


@pytest.mark.parametrize("shape", [(40, 16, 0.9, 0.1), (40, 16, 0.1, 0.9)], ids=str)
def test_uneven_masks_are_made_up_for(shape, generator):
    """One block of columns has lost more than its share: the whole layer still ends at the exact count."""
    layer, batches, _ = problem("linear", 8, 150, generator)
    first, last, early, late = shape
    layer.weight.data[:, :first][torch.rand(8, first, generator=generator) < early] = 0
    layer.weight.data[:, -last:][torch.rand(8, last, generator=generator) < late] = 0
    gone = layer.weight == 0
    hessians, _ = gathered(layer, batches)
    _, weight = sparsify_weight(layer, hessians, 0.3, 0, 0, 16, 0.01, True)
    assert int((weight == 0).sum()) == 360
    assert bool((weight[gone] == 0).all())


def test_groups_with_a_preserved_mask(generator):
    layer, batches, _ = problem("linear", 9, 160, generator, zeros=0.3)
    gone = layer.weight == 0
    hessians, _ = gathered(layer, batches)
    _, weight = prune(layer, hessians, 0.5, (2, 4), preserve=True)
    zeros = (weight == 0).reshape(9, -1, 4).sum(dim=2)
    before = gone.reshape(9, -1, 4).sum(dim=2)
    assert bool((weight[gone] == 0).all())
    assert torch.equal(zeros, before.clamp(min=2))


def test_more_zeros_than_asked_for(generator):
    layer, batches, _ = problem("linear", 8, 24, generator, zeros=0.7)
    hessians, _ = gathered(layer, batches)
    with pytest.raises(ValueError, match="more weights are gone"):
        prune(layer, dict(hessians), 0.5, preserve=True)
    with pytest.raises(ValueError, match="more weights are gone"):
        prune(layer, dict(hessians), 0.5, (2, 4), preserve=True)
    prune(layer, hessians, 0.5)


def test_a_better_solver(generator):
    layer, batches, H = problem("linear", 16, 48, generator)
    dense = matrix(layer)
    hessians, _ = gathered(layer, batches)
    _, plain = prune(layer, dict(hessians), 0.7)
    _, better = prune(layer, dict(hessians), 0.7, solver="obs")
    assert published.error(better, dense, H) < published.error(plain, dense, H)
    with pytest.raises(InputError, match="cannot preserve a mask"):
        prune(layer, dict(hessians), 0.7, solver="obs", preserve=True)
    with pytest.raises(InputError, match="unknown solver"):
        prune(layer, hessians, 0.7, solver="magic")


def test_singular_is_damped_and_said_or_an_error(generator, caplog):
    layer = build("linear", 6, 40, generator)
    hessians, _ = gathered(layer, [torch.randn(1, 10, 40, generator=generator)])
    with caplog.at_level(logging.WARNING, "pyprune.compat"):
        prune(layer, dict(hessians), damp=0.0)
    assert "damping raised from 0" in caplog.text
    hessians[layer] = hessians[layer] - 1e9 * (torch.ones(40, 40) - torch.eye(40))
    with pytest.raises(NumericsError, match=r"Linear\[6, 40\]: the gram is not positive definite"):
        prune(layer, hessians)


def test_bad_input(generator):
    layer, batches, _ = problem("linear", 6, 18, generator)
    with pytest.raises(InputError, match="no Hessian for this module"):
        prune(layer, {})
    with pytest.raises(NumericsError, match="the Hessian is zero"):
        prune(layer, {layer: make_empty_hessian(layer)})
    with pytest.raises(InputError, match="not this layer's"):
        accumulate_hessian(torch.zeros(2, 5, 4), layer, make_empty_hessian(layer), 0)
    batches[0][0, 0, 0] = float("nan")
    with pytest.raises(NumericsError, match="gram holds NaN or inf"):
        prune(layer, gathered(layer, batches)[0])
