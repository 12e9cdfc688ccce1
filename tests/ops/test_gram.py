# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from tolerances import MOMENTS, relative

from pyprune import ops
from pyprune.errors import InputError

SHAPES = [(1, 1), (1, 131), (257, 1), (300, 47), (255, 48), (1031, 97), (5000, 131), (64, 0), (0, 7)]


def exact(x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    rows = x.double().reshape(x.shape[:-1].numel(), x.shape[-1])
    rows = rows if keep is None else rows[keep.reshape(-1).bool()]
    return rows.T @ rows


@pytest.mark.parametrize("dtype", MOMENTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(backend, shape, dtype, generator):
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    out = torch.zeros(shape[1], shape[1], dtype=torch.float64)
    assert ops.gram(x, out=out) is out
    assert relative(out, exact(x)) <= MOMENTS[dtype]
    assert torch.equal(out, out.T)


def test_default_output_dtype(backend):
    assert ops.gram(torch.ones(3, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert ops.gram(torch.ones(3, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", MOMENTS, ids=str)
def test_padding_never_enters(backend, dtype, generator):
    x = torch.randn(5, 11, 37, generator=generator).to(dtype)
    keep = torch.rand(5, 11, generator=generator) > 0.4
    wanted = exact(x, keep)
    x[~keep] = torch.nan
    out = torch.zeros(37, 37, dtype=torch.float64)
    ops.gram(x, keep, out=out)
    assert relative(out, wanted) <= MOMENTS[dtype]


def test_attention_mask_of_integers(backend, generator):
    x = torch.randn(4, 6, generator=generator)
    mask = torch.tensor([1, 0, 1, 1])
    assert relative(ops.gram(x, mask), exact(x, mask)) <= MOMENTS[torch.float32]


def test_everything_padded_leaves_out_unchanged(backend):
    out = torch.full((3, 3), 2.0, dtype=torch.float64)
    ops.gram(torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.bool), out=out)
    assert torch.equal(out, torch.full((3, 3), 2.0, dtype=torch.float64))


def test_accumulates_over_calls(backend, generator):
    x = torch.randn(700, 33, generator=generator)
    out = torch.zeros(33, 33, dtype=torch.float64)
    for part in x.split(123):
        ops.gram(part, out=out)
    assert relative(out, exact(x)) <= MOMENTS[torch.float32]


def test_stays_accurate_over_many_tokens(backend, generator):
    # A float32 running sum of 200 000 equal terms would be off by 1e-3; chains folded into float64 are not.
    x = torch.full((200_000, 2), 0.1)
    out = torch.zeros(2, 2, dtype=torch.float64)
    ops.gram(x, out=out)
    assert relative(out, exact(x)) <= MOMENTS[torch.float32]


def test_bad_scales(backend, generator):
    x = torch.randn(500, 20, generator=generator) * torch.logspace(-9, 9, 20)
    out = torch.zeros(20, 20, dtype=torch.float64)
    ops.gram(x, out=out)
    scale = x.double().norm(dim=0)
    assert float(((out - exact(x)) / torch.outer(scale, scale)).abs().max()) <= MOMENTS[torch.float32]


@pytest.mark.parametrize("view", ["rows", "transposed", "sliced", "expanded"])
def test_non_contiguous(backend, view, generator):
    base = torch.randn(90, 80, generator=generator)
    x = {
        "rows": base[::3],
        "transposed": base.T,
        "sliced": base[:, 5:42],
        "expanded": base[:1].expand(40, 80),
    }[view]
    assert relative(ops.gram(x), exact(x)) <= MOMENTS[torch.float32]


def test_same_bits_for_any_thread_count(monkeypatch, generator):
    x = torch.randn(3000, 131, generator=generator)
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.gram(x, out=torch.zeros(131, 131, dtype=torch.float64)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_does_not_read_or_write_outside(generator):
    # Neighbours of the view hold NaN: reading them would poison the result, writing would heal them.
    big = torch.full((52, 90), torch.nan)
    big[1:51, 20:67] = torch.randn(50, 47, generator=generator)
    x = big[1:51, 20:67]
    out = torch.full((49 * 47,), torch.nan, dtype=torch.float64)
    inner = out[47 : 48 * 47].view(47, 47).zero_()
    ops.gram(x, out=inner)
    assert relative(inner, exact(x)) <= MOMENTS[torch.float32]
    assert bool(out[:47].isnan().all())
    assert bool(out[48 * 47 :].isnan().all())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.gram(torch.ones(3, 2, dtype=torch.int64)), "int64"),
        (lambda: ops.gram(torch.ones(3, 2), torch.ones(4, dtype=torch.bool)), "keep"),
        (lambda: ops.gram(torch.ones(3, 2), torch.tensor([0.0, -1e4, 0.0])), "attention_mask"),
        (lambda: ops.gram(torch.ones(3, 2), out=torch.zeros(3, 3)), "out"),
        (lambda: ops.gram(torch.ones(3, 2), out=torch.zeros(2, 2, dtype=torch.float16)), "float64"),
        (lambda: ops.gram(torch.tensor(1.0)), "scalar"),
        (lambda: ops.gram(torch.ones(3, 2, requires_grad=True)), "no gradient"),
    ],
)
def test_errors_say_what_was_seen(call, words):
    with pytest.raises(InputError, match=words):
        call()
