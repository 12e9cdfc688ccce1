# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from tolerances import SPMM

from pyprune import backends, ops
from pyprune.errors import InputError
from pyprune.ops import sparse_rows
from pyprune.ops.sparse_weight import VALUE_TYPES, SparseWeight, restore
from pyprune.ops.spmm import ACTIVATIONS

# Around the edges of pairs of rows, panels of 64 rows, vectors and tiles of every instruction set; nothing at all.
SHAPES = [(1, 1), (2, 3), (3, 130), (64, 64), (65, 191), (127, 389), (131, 1031), (7, 0), (0, 7)]
# Around blocks of 1, 2 and 4 vectors of 4, 8 and 16 tokens.
TOKENS = (0, 1, 2, 5, 8, 9, 16, 17, 33, 64, 65, 131)


def random_sparse(out, columns, generator, density=0.3, **kwargs) -> SparseWeight:
    weight = torch.randn(out, columns, generator=generator)
    return ops.compress(weight, torch.rand(out, columns, generator=generator) < density, **kwargs)


def error(got, x, weight, bias=None, activation="none") -> float:
    """Largest deviation from the product in float64, relative to the magnitudes that went into an entry."""
    dense = weight.to_dense(torch.float64)
    bias = torch.zeros(len(dense), dtype=torch.float64) if bias is None else bias.double()
    exact, size = x.double() @ dense.T + bias, x.double().abs() @ dense.abs().T + bias.abs()
    exact = {"none": lambda y: y, "gelu": torch.nn.functional.gelu, "relu": torch.relu}[activation](exact)
    assert got.shape == exact.shape
    assert got.dtype == x.dtype
    return float(((got.double() - exact).abs() / size.clamp(min=1e-3)).max()) if got.numel() else 0.0


@pytest.mark.parametrize("values", VALUE_TYPES, ids=str)
@pytest.mark.parametrize("dtype", SPMM, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(backend, shape, dtype, values, generator):
    weight = random_sparse(*shape, generator, dtype=values)
    prepared = ops.prepare(weight)
    for tokens in TOKENS:
        x = torch.randn(tokens, shape[1], generator=generator).to(dtype)
        assert error(ops.spmm(x, prepared), x, weight) <= SPMM[dtype], tokens


@pytest.mark.parametrize("tokens", [2, 40, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compiled_sums_are_rounded_as_torch_rounds(dtype, tokens, generator):
    # One weight a row: the sum is a product, of every size, too large, subnormal and no number.
    info = torch.finfo(dtype)
    scales = torch.logspace(math.log10(info.smallest_normal) - 2, math.log10(info.max) - 1, 83)
    x = (torch.randn(tokens, 83, generator=generator) * scales).to(dtype)
    x[0, 2] = torch.nan
    weight = 8 * torch.randn(83, generator=generator)
    diagonal = ops.prepare(ops.compress(weight.diag(), torch.eye(83, dtype=torch.bool)))
    got, wanted = ops.spmm(x, diagonal), (x.float() * weight).to(dtype)
    assert torch.equal(got.nan_to_num(7.0), wanted.nan_to_num(7.0))
    assert bool(got[0, 2].isnan())


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_densities(backend, density, tokens, generator):
    weight = random_sparse(150, 450, generator, density)
    x = torch.randn(tokens, 450, generator=generator)
    assert error(ops.spmm(x, weight), x, weight) <= SPMM[torch.float32]


@pytest.mark.parametrize("values", VALUE_TYPES, ids=str)
@pytest.mark.parametrize(("format", "geometry"), [("dense", (1, 1)), ("nm", (2, 4)), ("block", (4, 8))])
def test_every_stored_format(backend, format, geometry, values, generator):
    mask = torch.zeros(20, 64, dtype=torch.bool)
    if format == "nm":
        mask.view(20, 16, 4)[..., [1, 2]] = True
    else:
        mask.view(5, 4, 8, 8)[:, :, ::3] = True
    weight = ops.compress(
        torch.randn(20, 64, generator=generator), mask, format=format, geometry=geometry, dtype=values
    )
    for dtype in SPMM:
        x = torch.randn(3, 64, generator=generator).to(dtype)
        assert error(ops.spmm(x, weight), x, weight) <= SPMM[dtype]


@pytest.mark.parametrize("bias", [None, *SPMM], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_bias_and_activation(backend, tokens, activation, bias, generator):
    weight = random_sparse(77, 90, generator, dtype=torch.int8)
    b = None if bias is None else torch.randn(77, generator=generator).to(bias)
    for dtype in SPMM:
        x = torch.randn(tokens, 90, generator=generator).to(dtype)
        assert error(ops.spmm(x, weight, b, activation=activation), x, weight, b, activation) <= SPMM[dtype]


@pytest.mark.parametrize("tokens", [2, 15, 16, 17, 33, 64, 131])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pairs_of_weights_in_bfloat16(shape, tokens, generator):
    # What AVX-512 BF16 does in one instruction; on other processors the same in several, when asked for.
    weight = random_sparse(*shape, generator, dtype=torch.bfloat16)
    x = torch.randn(tokens, shape[1], generator=generator).bfloat16()
    prepared = ops.prepare(weight)
    y = torch.full((tokens + 1, shape[0]), torch.nan, dtype=torch.bfloat16)
    arrangement = sparse_rows.view(prepared.parts, prepared.shape, prepared.geometry)
    backends.extension().spmm(
        y.data_ptr(), x.data_ptr(), 1, tokens, shape[1], arrangement, 0, 0, 0, threads=1, pairs=True
    )
    assert error(y[:tokens], x, weight) <= SPMM[torch.bfloat16]
    assert bool(y[tokens].isnan().all())


def test_gelu_from_end_to_end(backend):
    # A weight of one: the activation itself, where its approximation is joined to 0 and to x, and far beyond.
    x = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([-1e30, -50.0, 50.0, 1e30])])[:, None]
    got = ops.spmm(x, ops.compress(torch.ones(1, 1)), activation="gelu")
    exact = torch.nn.functional.gelu(x.double())
    assert float(((got.double() - exact).abs() / x.double().abs().clamp(min=1e-3)).max()) <= SPMM[torch.float32]
    assert ops.spmm(torch.tensor([-50.0]), ops.compress(torch.ones(1, 1)), activation="gelu").item() == 0.0


@pytest.mark.parametrize("tokens", [1, 6])
def test_more_columns_than_a_short_index_holds(backend, tokens, generator):
    weight = random_sparse(3, 70_001, generator, 0.01)
    x = torch.randn(tokens, 70_001, generator=generator)
    assert error(ops.spmm(x, weight), x, weight) <= SPMM[torch.float32]


@pytest.mark.parametrize("view", ["rows", "transposed", "sliced", "expanded", "three", "one"])
def test_views(backend, view, generator):
    base = torch.randn(90, 80, generator=generator)
    x = {
        "rows": base[::3],
        "transposed": base.T,
        "sliced": base[:, 5:42],
        "expanded": base[:1].expand(40, 80),
        "three": base.view(9, 10, 80)[:, 1:4],
        "one": base[4],
    }[view]
    weight = random_sparse(70, x.shape[-1], generator)
    assert error(ops.spmm(x, weight), x, weight) <= SPMM[torch.float32]


@pytest.mark.parametrize("tokens", [1, 3, 37])
def test_does_not_read_or_write_outside(tokens, generator):
    big = torch.full((tokens + 2, 150), torch.nan)
    big[1:-1, 20:141] = torch.randn(tokens, 121, generator=generator)
    x = big[1:-1, 20:141]
    weight = random_sparse(67, 121, generator)
    assert error(ops.spmm(x, weight), x, weight) <= SPMM[torch.float32]


def test_rows_that_keep_nothing(backend, generator):
    dense = torch.randn(70, 300, generator=generator)
    mask = torch.rand(70, 300, generator=generator) < 0.2
    mask[::2] = False
    x, bias = torch.randn(9, 300, generator=generator), torch.randn(70, generator=generator)
    for rows in (x, x[:1]):
        got = ops.spmm(rows, ops.compress(dense, mask), bias)
        assert torch.equal(got[:, ::2], bias[::2].expand(len(rows), -1))


def test_a_token_that_is_not_finite_spoils_no_other(backend, generator):
    weight = random_sparse(50, 60, generator)
    x = torch.randn(40, 60, generator=generator)
    wanted = ops.spmm(x, weight)
    x[7] = torch.nan
    got = ops.spmm(x, weight)
    others = torch.arange(40) != 7
    assert torch.equal(got[others], wanted[others])
    assert bool(got[7].isnan().any())


@pytest.mark.parametrize("tokens", [1, 7, 130])
def test_same_bits_for_any_thread_count(monkeypatch, tokens, generator):
    weight = ops.prepare(random_sparse(1000, 600, generator, 0.5))
    x = torch.randn(tokens, 600, generator=generator)
    results = []
    for threads in ("1", "2", "3", "64"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.spmm(x, weight))
    assert all(torch.equal(result, results[0]) for result in results)


def test_rows_of_very_different_length_are_shared_out(monkeypatch, generator):
    mask = torch.zeros(320, 500, dtype=torch.bool)
    mask[:3], mask[200] = True, True
    weight = ops.compress(torch.randn(320, 500, generator=generator), mask)
    x = torch.randn(300, 500, generator=generator)
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        assert error(ops.spmm(x, weight), x, weight) <= SPMM[torch.float32]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(backend, activation, generator):
    weight = ops.prepare(random_sparse(12, 40, generator))
    dense = weight.to_dense()
    x, bias = torch.randn(2, 5, 40, generator=generator), torch.randn(12, generator=generator)
    upstream = torch.randn(2, 5, 12, generator=generator)
    act = {"none": lambda y: y, "gelu": torch.nn.functional.gelu, "relu": torch.relu}[activation]
    gradients = []
    for call in (
        lambda x, b: ops.spmm(x, weight, b, activation=activation),
        lambda x, b: act(torch.nn.functional.linear(x, dense, b)),
    ):
        leaves = x.clone().requires_grad_(), bias.clone().requires_grad_()
        gradients.append(torch.autograd.grad(call(*leaves), leaves, upstream))
        gradients[-1] += torch.autograd.grad(call(x, leaves[1]), leaves[1], upstream)  # of the bias alone
    for got, wanted in zip(*gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_compiles_without_graph_breaks(generator):
    weight = ops.prepare(random_sparse(12, 40, generator))
    x, bias = torch.randn(5, 40, generator=generator), torch.randn(12, generator=generator)

    def call(x, bias):
        return ops.spmm(x * 2, weight, bias, activation="gelu") + 1

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, bias), call(x, bias))


def test_prepare(generator):
    weight = random_sparse(30, 40, generator)
    prepared = ops.prepare(weight)
    assert prepared.format == "rows"
    assert ops.prepare(prepared) is prepared
    dense = ops.compress(torch.ones(2, 3), format="dense")
    assert ops.prepare(dense) is dense


def test_prepare_leaves_the_reference_its_format(monkeypatch, generator):
    weight = random_sparse(30, 40, generator)
    monkeypatch.setenv(backends.FORCE, "reference")
    assert ops.prepare(weight) is weight


@pytest.mark.parametrize("values", VALUE_TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_way_back(shape, values, generator):
    dense = torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.2
    dense[:, ::5] = 0.0  # where the mask says so, zeros are kept
    weight = ops.compress(dense, mask, dtype=values)
    prepared = ops.prepare(weight)
    assert torch.equal(prepared.mask(), mask)
    assert torch.equal(prepared.to_dense(), weight.to_dense())
    back = restore(prepared)
    assert all(torch.equal(back.parts[name], part) for name, part in weight.parts.items())
    assert (back.scale is None and weight.scale is None) or torch.equal(back.scale, weight.scale)


def test_bytes_of_the_arrangement(generator):
    kept = 1000 * 1000 * 0.1
    for values, bytes_each in ((torch.float32, 6), (torch.bfloat16, 4), (torch.int8, 3)):
        prepared = ops.prepare(random_sparse(1000, 1000, generator, 0.1, dtype=values))
        assert prepared.nbytes <= 1.15 * bytes_each * kept  # with padding and lengths of rows


def test_parts_that_do_not_belong_together(generator):
    prepared = ops.prepare(random_sparse(30, 40, generator))
    x = torch.ones(2, 40)
    for name in ("columns", "rows", "lengths", "starts"):
        cut = SparseWeight(
            prepared.shape, "rows", {**prepared.parts, name: prepared.parts[name][:-1]}, None, prepared.geometry
        )
        with pytest.raises(InputError, match="do not fit"):
            ops.spmm(x, cut)
    starts = prepared.parts["starts"] + 1
    with pytest.raises(ValueError, match="starts"):
        ops.spmm(x, SparseWeight(prepared.shape, "rows", {**prepared.parts, "starts": starts}, None, prepared.geometry))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: ops.spmm(torch.ones(2, 3, dtype=torch.int64), w), "int64"),
        (lambda w: ops.spmm(torch.ones(2, 4), w), "shapes do not fit"),
        (lambda w: ops.spmm(torch.tensor(1.0), w), "shapes do not fit"),
        (lambda w: ops.spmm(torch.ones(2, 3), torch.ones(2, 3)), "SparseWeight"),
        (lambda w: ops.spmm(torch.ones(2, 3), w, torch.ones(3)), "bias has the wrong shape"),
        (lambda w: ops.spmm(torch.ones(2, 3), w, torch.ones(2, dtype=torch.int32)), "int32"),
        (lambda w: ops.spmm(torch.ones(2, 3), w, activation="swish"), "swish"),
    ],
)
def test_errors_say_what_was_seen(call, words):
    with pytest.raises(InputError, match=words):
        call(ops.compress(torch.ones(2, 3)))
