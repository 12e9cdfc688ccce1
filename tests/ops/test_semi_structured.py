# SPDX-License-Identifier: Apache-2.0
"""2:4 by torch: the rules, and the whole way with torch's two products emulated on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import SPMM

from pyprune import backends, ops
from pyprune.ops import semi_structured
from pyprune.ops.sparse_weight import SparseWeight, restore
from pyprune.ops.spmm_gpu import arrange, arrangement_of
from pyprune.sparse import SparseLinear

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch's products are emulated")
KINDS = {
    "cusparselt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
    "cutlass": torch.sparse.SparseSemiStructuredTensorCUTLASS,
}


def halves(out, columns, generator, dtype=torch.bfloat16) -> SparseWeight:
    """2:4, and one kept weight is zero."""
    weight = torch.randn(out, columns, generator=generator)
    mask = ops.nm(weight.abs(), 2, 4)
    weight[0, int(mask[0].nonzero()[0])] = 0.0
    return ops.compress(weight, mask, format="nm", geometry=(2, 4), dtype=dtype)


def packs(dense, kind):
    """What torch's packing gives, with the matrix itself in the place of what only a GPU understands."""
    meta = torch.ones(1, dtype=torch.int16) if kind == "cutlass" else None
    return KINDS[kind](dense.shape, packed=dense.clone(), meta=meta, packed_t=None, meta_t=None,
                       compressed_swizzled_bitmask=None)  # fmt: skip


@pytest.fixture(params=KINDS)
def torch_multiplies(request, monkeypatch):
    """Torch as if there were a GPU: it packs, and multiplies by what it packed; the calls of the latter."""
    calls = []

    def product(packed, x, bias=None, **kwargs):
        calls.append(x.shape)
        assert x.shape[1] % 8 == 0  # torch has filled it up
        y = (packed.float() @ x.float()).to(packed.dtype)
        return y.t() if kwargs.get("transpose_result") else y

    def fails(dense):
        raise RuntimeError("cuSPARSELt is not supported on your machine.")

    other = request.param == "cutlass"
    pack = fails if other else lambda dense: packs(dense, "cusparselt")
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", pack)
    monkeypatch.setattr(KINDS["cutlass"], "from_dense", lambda dense: packs(dense, "cutlass"))
    monkeypatch.setattr(KINDS["cutlass"], "to_dense", lambda self: self.packed)
    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", lambda packed, meta, x: product(packed, x))
    monkeypatch.setattr(torch, "_cslt_sparse_mm", product)
    return calls


@pytest.fixture
def on_gpu(monkeypatch):
    """CPU tensors go the way of CUDA tensors without a kernel of ours."""
    monkeypatch.setenv(backends.FORCE, "torch")


@pytest.mark.parametrize(
    ("shape", "dtype", "geometry", "arch", "words"),
    [
        ((32, 64), torch.bfloat16, (2, 4), 80, None),
        ((96, 1024), torch.float16, (2, 4), 90, None),
        ((32, 64), torch.float32, (2, 4), 90, "float32"),
        ((32, 64), torch.int8, (2, 4), 90, "int8"),
        ((32, 64), torch.float16, (1, 4), 90, "1:4"),
        ((32, 64), torch.float16, (4, 8), 90, "4:8"),
        ((48, 64), torch.float16, (2, 4), 90, "multiple"),
        ((32, 96), torch.float16, (2, 4), 90, "multiple"),
        ((0, 64), torch.float16, (2, 4), 90, "multiple"),
        ((32, 64), torch.float16, (2, 4), 75, "7.5"),
    ],
)
def test_rules(shape, dtype, geometry, arch, words):
    reason = semi_structured.why_not(shape, dtype, geometry, arch)
    assert reason is None if words is None else words in reason
    wanted = "semi" if words is None else "tiles"
    assert arrangement_of(shape, dtype, "nm", geometry, arch, "cuda") == wanted
    assert arrangement_of(shape, dtype, "bitmask", geometry, arch, "cuda") == "tiles"


@pytest.mark.parametrize("forced", ["cuda", "triton"])
def test_a_forced_kernel_multiplies_itself(monkeypatch, forced):
    monkeypatch.setenv(backends.FORCE, forced)
    assert arrangement_of((32, 64), torch.float16, "nm", (2, 4), 90, forced) == "tiles"
    monkeypatch.setenv(backends.FORCE, "torch")
    assert arrangement_of((32, 64), torch.float16, "nm", (2, 4), 90, "torch") == "semi"


def test_where_torch_lacks_it_nothing_fails(generator):
    weight = halves(32, 64, generator)
    assert semi_structured.arrange(restore(weight, "dense").values, weight.parts["bits"]) is None  # a CPU
    assert arrange(weight, "triton").format == "tiles"
    assert arrange(weight, "torch") is weight


@pytest.mark.parametrize("dtype", semi_structured.DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 7, 16])
def test_matches_float64(torch_multiplies, on_gpu, tokens, dtype, generator):
    weight, bias = halves(64, 192, generator, dtype), torch.randn(64, generator=generator)
    prepared = ops.prepare(weight)
    assert prepared.format == "semi"
    assert len(torch_multiplies) == 1  # tried once
    x = torch.randn(2, tokens, 192, generator=generator).to(dtype)
    dense = weight.to_dense(torch.float64)
    size = x.double().abs() @ dense.abs().T + bias.double().abs()
    for added, activation in ((None, "none"), (bias, "none"), (bias, "gelu"), (None, "relu")):
        got = ops.spmm(x, prepared, added, activation=activation)
        exact = x.double() @ dense.T + (0.0 if added is None else added.double())
        exact = {"none": lambda y: y, "gelu": torch.nn.functional.gelu, "relu": torch.relu}[activation](exact)
        assert got.dtype == dtype
        assert got.shape == exact.shape
        assert not got.numel() or float(((got.double() - exact).abs() / size).max()) <= 2 * SPMM[dtype]
    assert len(torch_multiplies) == (5 if tokens else 1)


def test_other_types_of_x_take_the_zeros(torch_multiplies, on_gpu, generator):
    weight = halves(32, 64, generator)
    prepared = ops.prepare(weight)
    for dtype in (torch.float32, torch.float16, torch.float64):
        x = torch.randn(3, 64, generator=generator).to(dtype)
        wanted = (x.double() @ weight.to_dense(torch.float64).T).to(dtype)
        torch.testing.assert_close(ops.spmm(x, prepared), wanted)
    widths = [shape[1] for shape in torch_multiplies]
    assert widths.count(8) == 1  # the trial; cuSPARSELt gives the zeros by a product with the identity, 64 wide


def test_the_way_back(torch_multiplies, on_gpu, generator):
    weight = halves(32, 64, generator)
    prepared = ops.prepare(weight)
    assert torch.equal(prepared.mask(), weight.mask())  # of the kept zero as well
    assert torch.equal(prepared.to_dense(), weight.to_dense())
    assert torch.equal(prepared.to_dense(torch.float64), weight.to_dense(torch.float64))
    back = restore(prepared, "nm", (2, 4))
    assert all(torch.equal(back.parts[name], part) for name, part in weight.parts.items())


def test_a_layer_holds_it_and_saves_what_it_was(torch_multiplies, on_gpu, generator):
    weight = halves(32, 64, generator)
    layer = SparseLinear(weight)
    assert layer.sparse.format == "semi"
    state = layer.state_dict()
    assert torch.equal(state["values"], weight.values)
    assert torch.equal(state["bits"], weight.parts["bits"])
    x = torch.randn(3, 64, generator=generator).bfloat16().requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, weight.to_dense().sum(0).expand(3, 64))


def test_compiles_without_graph_breaks(torch_multiplies, on_gpu, generator):
    prepared = ops.prepare(halves(32, 64, generator))
    x = torch.randn(3, 64, generator=generator).bfloat16()
    compiled = torch.compile(lambda x: ops.spmm(x * 2, prepared) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), ops.spmm(x * 2, prepared) + 1)
    parts = [prepared.parts[name] for name in semi_structured.PARTS]
    given = (x, parts, None, None, "semi", 32, [2, 4], "none")
    torch.library.opcheck(torch.ops.pyprune.spmm.default, given)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", semi_structured.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(32, 64), (768, 3072), (4096, 1088)], ids=str)
def test_on_a_gpu(shape, dtype, generator):
    weight = halves(*shape, generator, dtype)
    parts = {name: part.cuda() for name, part in weight.parts.items()}
    on_device = SparseWeight(shape, "nm", parts, None, (2, 4))
    prepared = ops.prepare(on_device)
    if prepared.format != "semi":
        pytest.skip("torch has no 2:4 products on this card")
    assert torch.equal(prepared.to_dense().cpu(), weight.to_dense())
    dense, bias = weight.to_dense(torch.float64), torch.randn(shape[0], generator=generator)
    for tokens in (0, 1, 17, 128):
        x = torch.randn(tokens, shape[1], generator=generator).to(dtype)
        got = ops.spmm(x.cuda(), prepared, bias.cuda()).cpu()
        exact, size = x.double() @ dense.T + bias, x.double().abs() @ dense.abs().T + bias.abs()
        assert torch.equal(got, ops.spmm(x.cuda(), prepared, bias.cuda()).cpu())
        assert not tokens or float(((got.double() - exact).abs() / size).max()) <= 2 * SPMM[dtype]
    assert math.isclose(prepared.nbytes / (2 * shape[0] * shape[1]), 0.625, rel_tol=0.05)
