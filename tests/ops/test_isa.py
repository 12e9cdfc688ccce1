# SPDX-License-Identifier: Apache-2.0
"""The same numerics on every instruction set that was built and that this machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pyprune import backends

ISAS = backends.extension().build_info()["isas"]

# Largest relative error of each op against its float64 reference, on sizes around every tile edge.
PROGRAM = """
import json, torch
from pyprune import backends, ops
from pyprune.ops.obs import obs_reference
from pyprune.ops.block_obs import block_obs_reference
from pyprune.ops.sparsegpt import sparsegpt_reference
from pyprune.ops.masked_lstsq import masked_lstsq_reference
from pyprune.ops.swap import swap_reference
from pyprune.ops.draw_counts import draw_counts_reference
from pyprune.ops.bank_scores import bank_scores_gradient_reference, bank_scores_reference
from pyprune.ops.encoder import LINEARS, PARTS, EncoderLayer, arrange, encoder_reference, flat_heads
g = torch.Generator().manual_seed(5)
worst = dict.fromkeys(
    ("gram", "cross_gram", "matmul", "cholesky", "masked_lstsq", "obs", "obs_single", "block_obs", "sparsegpt", "swap",
     "spmm", "spmm_half", "encoder", "draw_counts", "bank_scores"),
    0.0,
)
def note(op, got, wanted):
    worst[op] = max(worst[op], float((got - wanted).abs().max() / wanted.abs().max()))
for k in (1, 2, 3, 5, 7, 8, 11, 12, 13, 23, 24, 25, 47, 48, 49, 95, 97, 161, 193):
    x, y = torch.randn(2 * k + 300, k, generator=g), torch.randn(2 * k + 300, 7, generator=g)
    exact = x.double().T @ x.double()
    note("gram", ops.gram(x, out=torch.zeros(k, k).double()), exact)
    note("cross_gram", ops.cross_gram(y, x, out=torch.zeros(7, k).double()), y.double().T @ x.double())
    h = exact / len(x) + 0.01 * torch.eye(k)
    inverse, w = torch.linalg.inv(h), torch.randn(5, k, generator=g).double()
    mask = torch.rand(5, k, generator=g) < 0.5
    mask[0] = True
    note("masked_lstsq", ops.masked_lstsq(h, w, mask), masked_lstsq_reference(h, w, mask)[0])
    count = (3 * k) // 4
    every = torch.full((5,), count)
    note("obs", ops.obs(inverse, w, count)[0], obs_reference(inverse, w, every, count, 0, 0, False)[0])
    pruned, order, _ = ops.obs(inverse, w, count, dtype=torch.float32)
    mask = torch.ones(5, k, dtype=torch.bool).scatter_(1, order, False)
    note("obs_single", pruned, masked_lstsq_reference(h, w @ h, mask)[0])
    width = next(size for size in (4, 3, 2, 7, 5, 1) if k % size == 0)
    steps = (3 * k // width) // 4
    got = ops.block_obs(inverse, w[:4], steps, height=2, width=width)[0]
    if steps:
        note("block_obs", got, block_obs_reference(inverse, w[:4], torch.full((2,), steps), steps, 2, width)[0])
    note("matmul", ops.matmul(w, h), w @ h)
    found = ops.cholesky(h, inverse=True)
    note("cholesky", found.factor.T @ found.factor, h)
    note("cholesky", found.inverse, inverse)
    factor = ops.cholesky(h, reverse=True).factor
    prune = torch.tensor([5 * min(32, k - s) // 2 for s in range(0, k, 32)])
    got, kept = ops.sparsegpt(w, factor, prune=prune, block=32)
    note("sparsegpt", got, sparsegpt_reference(w, factor, None, prune, False, 0, 0, 32)[0])
    mask = torch.rand(2, k, generator=g) < torch.tensor([[0.4], [0.6]])
    wanted = swap_reference(h, w[:2] @ h, mask, torch.full((2,), 0.01), 20, 0, None, None, False)[2]
    note("swap", ops.swap(h, w[:2] @ h, mask, least=0.01, most=20, inverse=inverse)[2], wanted)
    for dtype in (torch.float32, torch.float64):
        weight, keep = torch.randn(41 * k, generator=g).to(dtype), 1 + 29 * k // 3
        got = ops.draw_counts(weight, keep, 9, 5.0, seed=k)
        note("draw_counts", got, draw_counts_reference(weight, keep, 9, 5.0, k))
for out, columns in ((1, 1), (3, 5), (64, 97), (67, 193), (130, 1031)):
    mask = torch.rand(out, columns, generator=g) < 0.4
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
        weight = ops.compress(torch.randn(out, columns, generator=g), mask, dtype=dtype)
        for tokens in (1, 2, 3, 5, 8, 9, 17, 33, 65, 130):
            x = torch.randn(tokens, columns, generator=g)
            wanted = torch.nn.functional.gelu(x.double() @ weight.to_dense(torch.float64).T)
            note("spmm", ops.spmm(x, weight, activation="gelu"), wanted)
            prepared = ops.prepare(weight)
            note("spmm", ops.spmm(x, prepared, activation="gelu"), wanted)
            half = x.bfloat16()
            wanted = half.double() @ weight.to_dense(torch.float64).T
            note("spmm_half", ops.spmm(half, prepared), wanted)
for hidden, inner, width, head in ((1, 1, 1, 1), (17, 35, 21, 7), (64, 130, 64, 32)):
    for format in ("dense", "bitmask"):
        shapes = ((3 * width, hidden), (hidden, width), (inner, hidden), (hidden, inner))
        weights = [ops.compress(torch.randn(*shape, generator=g) / shape[1] ** 0.5, format=format) for shape in shapes]
        vectors = torch.randn(3 * width + inner + 6 * hidden, generator=g)
        layer = EncoderLayer(*map(arrange, map(ops.prepare, weights)), vectors)
        x, keep = torch.randn(5, 71, hidden, generator=g), torch.rand(5, 71, generator=g) < 0.5
        parts = [getattr(layer, name).parts[part] for name in LINEARS for part in PARTS[getattr(layer, name).format]]
        sizes = [size for name in LINEARS for size in (*getattr(layer, name).shape, *getattr(layer, name).geometry)]
        formats = [getattr(layer, name).format for name in LINEARS]
        heads = flat_heads(layer, head)
        wanted = encoder_reference(x, keep, parts, formats, sizes, heads, [vectors], head, "gelu_tanh", 1e-5)
        note("encoder", ops.encoder(x, [layer], keep, head=head, activation="gelu_tanh", eps=1e-5), wanted)
for batch, entries, features in ((1, 1, 1), (3, 47, 5), (9, 49, 17), (17, 515, 49), (33, 600, 97), (70, 1100, 131)):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        queries = (torch.randn(batch, features, generator=g) / features**0.5).requires_grad_()
        keys, others = (torch.randint(0, 3, (2, n), generator=g) << 33 for n in (batch, entries))
        bank = (keys, torch.randn(entries, features, generator=g).to(dtype), others, None, 0.2, True)
        found = ops.bank_scores(queries, *bank[:3], temperature=0.2, in_batch=True)
        wanted = bank_scores_reference(queries.detach(), *bank)
        note("bank_scores", found.log_sum.detach(), wanted[0])
        note("bank_scores", found.positives.detach(), wanted[1])
        assert torch.equal(found.counts, wanted[2])
        slopes = torch.randn(batch, generator=g), torch.randn(2, batch, generator=g)
        torch.autograd.backward(found[:2], slopes)
        note("bank_scores", queries.grad, bank_scores_gradient_reference(wanted[0], *slopes, queries.detach(), *bank))
kinds = [[backends.extension().window_kind(x, values, 8) for values in range(4)] for x in range(3)]
print(json.dumps({"isa": backends.extension().build_info()["isa"], "worst": worst, "windows": kinds}))
"""


# By the types of x (float32, bfloat16, float16) and of values (these and int8): none, one weight a slot, two.
WINDOWS = {"avx512": [[1] * 4] * 3, "avx512bf16": [[1] * 4, [1, 2, 1, 2], [1] * 4]}


def run(isa):
    env = dict(os.environ, PYPRUNE_CPU_ISA=isa)
    return subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", ISAS)
def test_matches_float64(isa):
    done = run(isa)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["isa"] == isa
    assert result["worst"]["gram"] <= 2e-6
    assert max(result["worst"][op] for op in ("spmm", "encoder")) <= 2e-6
    assert result["worst"]["spmm_half"] <= 4.1e-3
    assert result["worst"]["bank_scores"] <= 4e-6  # powers of scores up to 20
    assert result["windows"] == WINDOWS.get(isa, [[0] * 4] * 3)
    assert result["worst"]["cross_gram"] <= 2e-5  # scaled by the result, which cancels; see test_cross_gram
    solving = ("masked_lstsq", "obs", "obs_single", "block_obs", "sparsegpt", "swap")
    assert max(result["worst"][op] for op in solving) <= 1e-8
    assert max(result["worst"][op] for op in ("matmul", "cholesky")) <= 1e-11
    assert result["worst"]["draw_counts"] == 0.0  # whole numbers, the same bits everywhere


def test_baseline_is_always_there():
    assert "baseline" in ISAS


def test_unknown_isa_is_an_error_that_says_what_there_is():
    done = run("avx9000")
    assert done.returncode != 0
    assert "PYPRUNE_CPU_ISA=avx9000" in done.stderr
    assert "baseline" in done.stderr
