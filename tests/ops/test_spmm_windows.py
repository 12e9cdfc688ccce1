# SPDX-License-Identifier: Apache-2.0
"""Few tokens by windows: where the processor has them, against float64; elsewhere that nothing asks for them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_spmm import error, random_sparse
from tolerances import SPMM

from pyprune import backends, ops
from pyprune.errors import BackendError, InputError
from pyprune.ops.sparse_weight import VALUE_TYPES, compress
from pyprune.ops.sparse_windows import FEW
from pyprune.ops.spmm import ACTIVATIONS
from pyprune.sparse import SparseLinear

HALVES = (torch.float32, torch.bfloat16, torch.float16)
windowed = pytest.mark.skipif(
    backends.extension().window_kind(0, 0, 1) == 0, reason="this processor has no AVX-512, or it is not to be used"
)

# Around slices of 16 rows, panels of 128 and steps of 16 and 32 columns, from one row and one column on.
SHAPES = [(1, 1), (1, 1031), (1031, 1), (15, 16), (16, 17), (17, 31), (127, 33), (128, 64), (129, 65), (257, 389)]


def by_windows(x, weight, *rest, **options):
    """The product, twice: as windows are made, and as they are found again."""
    first = ops.spmm(x, weight, *rest, **options)
    assert x.dtype in weight.windows.made
    again = ops.spmm(x, weight, *rest, **options)
    torch.testing.assert_close(again, first, rtol=0, atol=0, equal_nan=True)
    return first


@windowed
@pytest.mark.parametrize("values", VALUE_TYPES, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape, dtype, values, generator):
    for density in (0.05, 0.5):
        weight = ops.prepare(random_sparse(*shape, generator, density, dtype=values))
        for tokens in range(1, FEW + 1):
            x = torch.randn(tokens, shape[1], generator=generator).to(dtype)
            assert error(by_windows(x, weight), x, weight) <= SPMM[dtype], tokens


@windowed
@pytest.mark.parametrize("values", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100])
def test_every_place_of_a_window(columns, values, generator):
    # A row for every column, and one that keeps all: each element of x must be found from each place.
    dense = torch.cat([torch.eye(columns), torch.ones(1, columns), torch.zeros(2, columns)])
    weight = ops.prepare(compress(dense, dtype=values))
    x = torch.randint(-8, 9, (3, columns), generator=generator).to(values)
    assert torch.equal(by_windows(x, weight), x @ dense.to(values).T)


@windowed
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_row_that_keeps_all_among_empty_ones(dtype, generator):
    mask = torch.zeros(300, 500, dtype=torch.bool)
    mask[[3, 140, 299]], mask[17, 499], mask[18, 0] = True, True, True
    weight = ops.prepare(compress(torch.randn(300, 500, generator=generator), mask, dtype=torch.bfloat16))
    x, bias = torch.randn(5, 500, generator=generator).to(dtype), torch.randn(300, generator=generator)
    got = by_windows(x, weight, bias)
    assert error(got, x, weight, bias) <= SPMM[dtype]
    assert torch.equal(got[:, 20:130], bias[20:130].to(dtype).expand(5, -1))


@windowed
def test_nothing_kept(generator):
    weight = ops.prepare(compress(torch.zeros(40, 50)))
    bias = torch.randn(40, generator=generator)
    assert torch.equal(by_windows(torch.full((2, 50), torch.nan), weight, bias), bias.expand(2, -1))


@windowed
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_padding_meets_nothing(dtype, generator):
    # What no row keeps is not read, and a row that keeps nothing of a spoilt column is not spoilt.
    mask = torch.rand(100, 200, generator=generator) < 0.1
    mask[:, [0, 77, 199]] = False
    mask[5, 77] = True
    weight = ops.prepare(compress(torch.randn(100, 200, generator=generator), mask, dtype=torch.bfloat16))
    x = torch.randn(2, 200, generator=generator).to(dtype)
    wanted = by_windows(x, weight)
    x[:, 0], x[:, 77], x[:, 199] = torch.inf, torch.nan, -torch.inf
    got = by_windows(x, weight)
    others = torch.arange(100) != 5
    assert torch.equal(got[:, others], wanted[:, others])
    assert bool(got[:, 5].isnan().all())


@windowed
@pytest.mark.parametrize("bias", [None, *HALVES], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("values", [torch.int8, torch.float32], ids=str)
def test_bias_scale_and_activation(values, activation, bias, generator):
    weight = ops.prepare(random_sparse(277, 90, generator, dtype=values))
    b = None if bias is None else torch.randn(277, generator=generator).to(bias)
    for dtype in HALVES:
        x = torch.randn(4, 90, generator=generator).to(dtype)
        got = by_windows(x, weight, b, activation=activation)
        assert error(got, x, weight, b, activation) <= SPMM[dtype]


@windowed
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_is_not_finite_stays_so(dtype, activation):
    x = torch.tensor([[torch.nan], [torch.inf], [3e38]]).to(dtype)
    got = by_windows(x, ops.prepare(compress(torch.ones(1, 1), dtype=torch.bfloat16)), activation=activation)
    assert bool(got[0].isnan().all())
    assert bool(got[1].isposinf().all())
    assert torch.equal(got[2], x[2])


@windowed
def test_views_of_x_and_of_bias(generator):
    base = torch.randn(90, 80, generator=generator)
    weight = ops.prepare(random_sparse(70, 80, generator))
    bias = torch.randn(70, 2, generator=generator)[:, 1]
    views = (base[::20], base[:4].T.contiguous().T, base[:1].expand(3, 80), base[4], base[:6].view(3, 2, 80))
    for x in (*views, base[:, None][:2]):
        assert error(by_windows(x, weight, bias), x, weight, bias) <= SPMM[torch.float32]


@windowed
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_does_not_read_or_write_outside(dtype, generator):
    big = torch.full((6, 150), torch.nan, dtype=dtype)
    big[1:-1, 20:141] = torch.randn(4, 121, generator=generator).to(dtype)
    weight = ops.prepare(random_sparse(67, 121, generator, dtype=torch.bfloat16))
    assert error(by_windows(big[1:-1, 20:141], weight), big[1:-1, 20:141], weight) <= SPMM[dtype]
    y = torch.full((6, 67), torch.nan, dtype=dtype)
    x = big[1:-1, 20:141].contiguous()
    made = weight.windows.made[dtype]
    assert made.multiply(made.matrix, y[1].data_ptr(), x.data_ptr(), made.type, 4, 121, 0, 0, 0, 0, 1)
    assert bool(y[[0, -1]].isnan().all())
    assert bool(y[1:-1].isfinite().all())


@windowed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads_and_tokens(monkeypatch, dtype, generator):
    weight = ops.prepare(random_sparse(1500, 1100, generator, 0.5, dtype=torch.bfloat16))
    x = torch.randn(FEW, 1100, generator=generator).to(dtype)
    wanted = by_windows(x, weight)
    for threads in ("1", "2", "3", "64"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        assert torch.equal(by_windows(x, weight), wanted)
        for tokens in range(1, FEW):
            assert torch.equal(by_windows(x[:tokens], weight), wanted[:tokens]), tokens


@windowed
def test_values_that_change_are_noticed(generator):
    weight = ops.prepare(random_sparse(70, 90, generator))
    x = torch.randn(5, 90, generator=generator)
    before = by_windows(x, weight)
    values = weight.values
    values.mul_(2)
    assert torch.equal(by_windows(x, weight), 2 * before)
    values.set_(torch.cat([values, values])[: len(values)] * 2)
    assert torch.equal(by_windows(x, weight), 4 * before)
    values.data = values * 0.25
    assert torch.equal(by_windows(x, weight), before)
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert not other.windows.made
        assert torch.equal(by_windows(x, other), before)
        other.values.zero_()
        assert not bool(by_windows(x, other).any())
    assert torch.equal(by_windows(x, weight), before)


@windowed
def test_tensors_that_do_not_count_their_changes_have_no_windows(generator):
    weight = ops.prepare(random_sparse(70, 90, generator))
    x = torch.randn(5, 90, generator=generator)
    wanted = ops.spmm(x, weight)
    with torch.inference_mode():
        copied, prepared = copy.deepcopy(weight), ops.prepare(random_sparse(70, 90, generator))
        torch.testing.assert_close(ops.spmm(x, copied), wanted)
        copied.values.zero_()
        assert not bool(ops.spmm(x, copied).any())
        by_windows(x, prepared)


@windowed
def test_types_of_x_that_want_the_same_share_it(generator):
    weight = ops.prepare(random_sparse(64, 64, generator, dtype=torch.bfloat16))
    assert weight.windows.nbytes == 0
    for dtype in HALVES:
        by_windows(torch.ones(1, 64, dtype=dtype), weight)
    made = weight.windows.made
    assert made[torch.float16].matrix is made[torch.float32].matrix
    assert weight.windows.nbytes >= made[torch.float32].matrix.nbytes


@windowed
def test_bytes(generator):
    kept = 1000 * 1000 * 0.1
    for dtype, values, most in ((torch.float32, torch.float32, 8.3), (torch.bfloat16, torch.bfloat16, 4.4)):
        weight = ops.prepare(random_sparse(1000, 1000, generator, 0.1, dtype=values))
        by_windows(torch.ones(1, 1000, dtype=dtype), weight)
        assert weight.windows.nbytes <= most * kept


@windowed
def test_only_few_tokens(generator):
    weight = ops.prepare(random_sparse(20, 30, generator))
    ops.spmm(torch.randn(FEW + 1, 30, generator=generator), weight)
    assert not weight.windows.made
    for shape in ((0, 30), (3, 0, 30)):
        assert ops.spmm(torch.ones(shape), weight).shape == (*shape[:-1], 20)
    assert ops.spmm(torch.ones(2, 0), ops.prepare(compress(torch.ones(3, 0)))).tolist() == [[0.0] * 3] * 2


@windowed
def test_the_environment_is_asked_at_every_call(monkeypatch, generator):
    weight = ops.prepare(random_sparse(20, 30, generator))
    x = torch.randn(2, 30, generator=generator)
    wanted = by_windows(x, weight)
    monkeypatch.setenv(backends.FORCE, "reference")
    torch.testing.assert_close(ops.spmm(x, weight), wanted)
    monkeypatch.setenv(backends.FORCE, "cuda")
    with pytest.raises(BackendError, match="cuda"):
        ops.spmm(x, weight)
    monkeypatch.setenv(backends.FORCE, "cpp")
    monkeypatch.setenv("PYPRUNE_NUM_THREADS", "none")
    with pytest.raises(BackendError, match="none"):
        ops.spmm(x, weight)


@windowed
def test_a_gradient_goes_the_long_way(generator):
    weight = ops.prepare(random_sparse(20, 30, generator))
    x, bias = torch.randn(2, 30, generator=generator), torch.randn(20, generator=generator)
    wanted = by_windows(x, weight, bias)
    for leaf in (x.clone().requires_grad_(), bias.clone().requires_grad_()):
        y = ops.spmm(x if len(leaf) == 20 else leaf, weight, leaf if len(leaf) == 20 else bias)
        torch.testing.assert_close(y, wanted)
        assert torch.autograd.grad(y.sum(), leaf)[0].shape == leaf.shape


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: ops.spmm(torch.ones(2, 3, dtype=torch.int64), w), "int64"),
        (lambda w: ops.spmm(torch.ones(3, 2), w), "shapes do not fit"),
        (lambda w: ops.spmm(torch.tensor(1.0), w), "shapes do not fit"),
        (lambda w: ops.spmm(torch.ones(2, 3), w, torch.ones(3)), "bias has the wrong shape"),
        (lambda w: ops.spmm(torch.ones(2, 3), w, torch.ones(2, 1)), "bias has the wrong shape"),
        (lambda w: ops.spmm(torch.ones(2, 3), w, torch.ones(2, dtype=torch.int32)), "int32"),
        (lambda w: ops.spmm(torch.ones(2, 3), w, activation="swish"), "swish"),
    ],
)
def test_errors_stay_clear_once_windows_are_made(call, words):
    weight = ops.prepare(ops.compress(torch.ones(2, 3)))
    ops.spmm(torch.ones(2, 3), weight)
    with pytest.raises(InputError, match=words):
        call(weight)


@pytest.mark.parametrize(
    ("rows", "columns", "kind", "type", "words"),
    [
        ([0, 2], [0, 1], 1, 0, "outside"),
        ([0, 1], [0, 3], 1, 0, "outside"),
        ([0, 0], [1, 1], 1, 0, "rise"),
        ([0, 0], [1, 0], 1, 0, "rise"),
        ([0, 1], [0, 1], 0, 0, "no such windows"),
        ([0, 1], [0, 1], 2, 0, "bfloat16"),
        ([0, 1], [0, 1], 1, 4, "values must be"),
    ],
)
def test_lists_that_do_not_fit(rows, columns, kind, type, words):
    lists = [torch.tensor(rows), torch.tensor(columns), torch.tensor([0, 1])]
    values = torch.ones(2)
    with pytest.raises(ValueError, match=words):
        backends.extension().SparseWindows(
            2, 3, kind, *(numbers.data_ptr() for numbers in lists), 2, values.data_ptr(), type
        )


@windowed
def test_a_layer_of_bfloat16_with_its_bias(generator):
    linear = torch.nn.Linear(90, 40)
    sparse = SparseLinear.from_linear(linear, torch.rand(40, 90, generator=generator) < 0.3).bfloat16()
    x = torch.randn(1, 3, 90, generator=generator).bfloat16()
    with torch.inference_mode():
        got = sparse(x)
        assert torch.bfloat16 in sparse.sparse.windows.made
        assert error(got, x, sparse.sparse, sparse.bias) <= SPMM[torch.bfloat16]
        assert torch.equal(sparse(x), got)


@windowed
def test_numbers_that_do_not_fit(generator):
    weight = ops.prepare(random_sparse(20, 30, generator))
    x, y = torch.randn(1, 30, generator=generator), torch.empty(1, 20)
    by_windows(x, weight)
    made = weight.windows.made[torch.float32]
    good = [y.data_ptr(), x.data_ptr(), 0, 1, 30, 0, 0, 0, 0, 1]
    for place, bad, words in (
        (0, 0, "null"), (1, 0, "null"), (2, 3, "x must be"), (3, -1, "negative"), (4, -1, "negative"),
        (7, 3, "bias must be"), (8, 3, "activation"), (9, 0, "threads"), (9, 5000, "threads"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            made.multiply(made.matrix, *good[:place], bad, *good[place + 1 :])
    with pytest.raises(TypeError, match="ten numbers"):
        made.multiply(made.matrix, *good[1:])
    with pytest.raises(TypeError):
        made.multiply(made.matrix, None, *good[1:])
    with pytest.raises((TypeError, RuntimeError)):
        made.multiply(x, *good)
    assert made.multiply(made.matrix, *good)
