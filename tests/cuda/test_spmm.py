# SPDX-License-Identifier: Apache-2.0
"""``spmm`` the way it goes on a GPU: emulated kernels on CPU tensors, and the device where there is one."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tolerances import SPMM

from pyprune import backends, ops
from pyprune.ops import gpu_plan, library, tile_products
from pyprune.ops.sparse_weight import VALUE_TYPES, SparseWeight, restore
from pyprune.ops.spmm_gpu import arrange

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels are emulated on the host")
# Around the edges of one and two rows of cells, of cells, and of 16 bytes; nothing at all.
SHAPES = [(1, 1), (2, 7), (16, 64), (37, 131), (33, 65), (70, 200), (5, 0), (0, 7)]


def sparse(out, columns, generator, density=0.3, **kwargs) -> SparseWeight:
    weight = torch.randn(out, columns, generator=generator)
    return ops.compress(weight, torch.rand(out, columns, generator=generator) < density, **kwargs)


def on_device(weight: SparseWeight) -> SparseWeight:
    scale = None if weight.scale is None else weight.scale.cuda()
    parts = {name: part.cuda() for name, part in weight.parts.items()}
    return SparseWeight(weight.shape, weight.format, parts, scale, weight.geometry)


def error(got, x, weight, bias=None, activation="none") -> float:
    """Largest deviation from the product in float64, relative to the magnitudes that went into an entry."""
    dense, x = weight.to_dense(torch.float64), x.double()
    bias = torch.zeros(len(dense), dtype=torch.float64) if bias is None else bias.double()
    exact, size = x @ dense.T + bias, x.abs() @ dense.abs().T + bias.abs()
    exact = {"none": lambda y: y, "gelu": torch.nn.functional.gelu, "relu": torch.relu}[activation](exact)
    assert got.shape == exact.shape
    return float(((got.double() - exact).abs() / size.clamp(min=1e-3)).max()) if got.numel() else 0.0


class TestEmulated:
    @pytest.mark.parametrize("values", VALUE_TYPES, ids=str)
    @pytest.mark.parametrize("dtype", SPMM, ids=str)
    def test_matches_float64(self, emulated, dtype, values, generator):
        for shape in SHAPES:
            weight = sparse(*shape, generator, dtype=values)
            prepared = ops.prepare(weight)
            assert prepared.format == "tiles"
            for tokens in (0, 1, 9, 33):
                x = torch.randn(tokens, shape[1], generator=generator).to(dtype)
                launches = emulated.launches()
                assert error(ops.spmm(x, prepared), x, weight) <= SPMM[dtype], (shape, tokens)
                empty = not tokens or not shape[0] or dtype == torch.float64
                assert (emulated.launches() > launches) == (not empty)

    @pytest.mark.parametrize("bias", [None, *SPMM], ids=str)
    @pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
    def test_bias_and_activation(self, emulated, activation, bias, generator):
        weight = sparse(37, 90, generator, dtype=torch.int8)
        b = None if bias is None else torch.randn(74, generator=generator).to(bias)[::2]
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(3, 90, generator=generator).to(dtype)
            assert error(ops.spmm(x, weight, b, activation=activation), x, weight, b, activation) <= SPMM[dtype]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_columns_in_parts(self, emulated, monkeypatch, dtype, generator):
        """Few rows: the columns are split, and the parts added by a second kernel."""
        monkeypatch.setattr(tile_products, "processors_of", lambda arch: 3)
        weight = sparse(20, 64 * 37 + 5, generator, 0.2, dtype=dtype)
        bias = torch.randn(20, generator=generator)
        x = torch.randn(2, 64 * 37 + 5, generator=generator).to(dtype)
        before = emulated.launches()
        got = ops.spmm(x, weight, bias, activation="gelu")
        assert emulated.launches() == before + 2
        assert error(got, x, weight, bias, "gelu") <= SPMM[dtype]
        assert torch.equal(ops.spmm(x, weight, bias, activation="gelu"), got)

    @pytest.mark.parametrize("view", ["rows", "transposed", "sliced", "expanded", "three", "one"])
    def test_views(self, emulated, view, generator):
        base = torch.randn(24, 80, generator=generator)
        x = {
            "rows": base[::3],
            "transposed": base.T,
            "sliced": base[:, 5:45],
            "expanded": base[:1].expand(9, 80),
            "three": base.view(2, 12, 80)[:, 1:4],
            "one": base[4],
        }[view]
        weight = sparse(19, x.shape[-1], generator)
        assert error(ops.spmm(x, weight), x, weight) <= SPMM[torch.float32]

    @pytest.mark.parametrize(("format", "geometry"), [("dense", (1, 1)), ("nm", (2, 4)), ("block", (16, 16))])
    def test_every_stored_format(self, emulated, format, geometry, generator):
        mask = torch.zeros(32, 64, dtype=torch.bool)
        mask.view(32, 16, 4)[..., [1, 2]] = True
        mask = mask if format == "nm" else torch.ones(32, 64, dtype=torch.bool)
        weight = ops.compress(torch.randn(32, 64, generator=generator), mask, format=format, geometry=geometry)
        x = torch.randn(3, 64, generator=generator)
        assert error(ops.spmm(x, weight), x, weight) <= SPMM[torch.float32]

    def test_many_tokens_take_the_zeros(self, emulated, monkeypatch, generator):
        monkeypatch.setattr(gpu_plan, "spread_first", lambda product, arch, backend: product.tokens > 8)
        weight = sparse(37, 90, generator, dtype=torch.int8)
        x, launches = torch.randn(9, 90, generator=generator), emulated.launches()
        assert error(ops.spmm(x, weight), x, weight) <= SPMM[torch.float32]
        assert emulated.launches() == launches
        ops.spmm(x[:8], weight)
        assert emulated.launches() > launches

    def test_gradients_and_compilation(self, emulated, generator):
        weight = ops.prepare(sparse(12, 40, generator))
        x = torch.randn(5, 40, generator=generator, requires_grad=True)

        def call(x):
            return ops.spmm(x * 2, weight, activation="gelu") + 1

        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
        assert torch.equal(compiled, call(x))
        wanted = torch.nn.functional.gelu(2 * x @ weight.to_dense().T) + 1
        gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (compiled, wanted)]
        assert torch.allclose(*gradients, rtol=1e-5, atol=1e-5)

    def test_opcheck(self, emulated, generator):
        weight = ops.prepare(sparse(12, 40, generator, dtype=torch.int8))
        parts = [weight.parts[name] for name in ("values", "bits", "starts")]
        x = torch.randn(5, 40, generator=generator)
        given = (x, parts, weight.scale, None, "tiles", 12, list(weight.geometry), "none")
        torch.library.opcheck(torch.ops.pyprune.spmm.default, given)

    def test_the_way_back(self, emulated, generator):
        weight = sparse(37, 131, generator, dtype=torch.int8)
        back = restore(ops.prepare(weight))
        assert all(torch.equal(back.parts[name], part) for name, part in weight.parts.items())


@pytest.fixture
def wrong():
    """What is bound, called with one argument changed."""
    extension = pytest.importorskip("pyprune._C")
    if not extension.build_info()["cuda"]:
        pytest.skip("pyprune was built without CUDA (no nvcc, or PYPRUNE_CUDA=OFF)")
    names = {"y": 16, "y_type": 1, "x": 16, "x_type": 1, "tokens": 2, "stride": 64}
    tiles = {"rows": 16, "columns": 64, "bits": 16, "starts": 16, "values": 16, "type": 1, "count": 8, "largest": 256}
    end = {"scale": 0, "bias": 0, "bias_type": 0, "activation": 0}
    cut = {"block": 8, "warps": 1, "splits": 1}
    last = {"parts": 0, "stream": 0}

    def call(name, value):
        groups = [{**group, **({name: value} if name in group else {})} for group in (names, tiles, end, cut, last)]
        first, matrix, after, division, rest = (tuple(group.values()) for group in groups)
        extension.spmm_cuda(*first, matrix, *after, division, *rest)

    return call


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("y", 0), ("y_type", 3), ("x", 0), ("x", 8), ("x_type", 3), ("tokens", -1), ("stride", 63), ("stride", -64)),
        *(("rows", -1), ("bits", 0), ("starts", 0), ("values", 0), ("values", 8), ("type", 4), ("largest", 8)),
        *(("bias_type", 4), ("activation", 3), ("splits", 0), ("splits", 2)),
    ],
)
def test_sizes_are_checked(wrong, name, value):
    with pytest.raises(ValueError, match=r"pyprune\._C"):
        wrong(name, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_passed_is_what_the_binding_asks_for(monkeypatch, shape, dtype, generator):
    """Nothing is wrong with a call but that there is no device."""
    extension = pytest.importorskip("pyprune._C")
    if not extension.build_info()["cuda"] or extension.build_info()["cuda_devices"]:
        pytest.skip("pyprune was built without CUDA, or there is a device")
    monkeypatch.setattr(library, "cuda_stream", lambda tensor: contextlib.nullcontext(0))
    for values in VALUE_TYPES:
        weight = arrange(sparse(*shape, generator, dtype=values), "cuda")
        for tokens in (1, 3, 40):
            x = torch.randn(tokens, shape[1] + 1, generator=generator).to(dtype)[:, 1:]
            problem = (
                pytest.raises(RuntimeError, match=r"spmm: .*\(cudaError") if shape[0] else contextlib.nullcontext()
            )
            with problem:
                tile_products.multiply_tiles(x, weight, None, 0)


@pytest.mark.gpu
@gpu
class TestDevice:
    @pytest.fixture(autouse=True)
    def forced(self, monkeypatch):
        if (reason := backends.unavailable("cuda")) is not None:
            pytest.skip(reason)
        monkeypatch.setenv(backends.FORCE, "cuda")

    @pytest.mark.parametrize("values", VALUE_TYPES, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_matches_float64(self, dtype, values, generator):
        for shape in [*SHAPES, (768, 3072), (4096, 520)]:
            weight = sparse(*shape, generator, dtype=values)
            prepared = ops.prepare(on_device(weight))
            for tokens in (0, 1, 9, 33, 300):
                x = torch.randn(tokens, shape[1], generator=generator).to(dtype)
                assert error(ops.spmm(x.cuda(), prepared).cpu(), x, weight) <= SPMM[dtype], (shape, tokens)
