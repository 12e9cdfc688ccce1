# SPDX-License-Identifier: Apache-2.0
"""``masked_lstsq`` the way it goes on a GPU: emulated kernels on CPU tensors, and the device where there is one."""

from __future__ import annotations

import math

import pytest
import torch
from problems import features, gram_of, masked_fit
from tolerances import SOLVE, STORED, relative

from pyprune import ops
from pyprune.errors import NumericsError
from pyprune.ops import masked_systems

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels are emulated on the host")


def problem(rows, columns, generator, kind="plain", damp=1e-3):
    """Rows of all densities, the first two empty and full."""
    gram = gram_of(features(3 * columns + 5, columns, generator, kind), damp)
    rhs = torch.randn(rows, columns, dtype=torch.float64, generator=generator) @ gram
    mask = torch.rand(rows, columns, generator=generator) < torch.rand(rows, 1, generator=generator)
    mask[0] = False
    mask[1:2] = True
    return gram, rhs, mask


@pytest.fixture
def redone(monkeypatch):
    """Numbers of rows that were solved in float64, call by call: a wrong factor would hide there."""
    calls = []
    double = masked_systems.solve_in_double
    monkeypatch.setattr(masked_systems, "solve_in_double", lambda *given: calls.append(len(given[1])) or double(*given))
    return calls


class TestEmulated:
    @pytest.mark.parametrize("kind", ["plain", "correlated", "scaled", "deficient"])
    @pytest.mark.parametrize("columns", [1, 31, 64, 97])
    def test_matches_float64(self, emulated, redone, columns, kind, generator):
        gram, rhs, mask = problem(7, columns, generator, kind)
        got = ops.masked_lstsq(gram, rhs, mask)
        assert relative(got, masked_fit(gram, rhs, mask)) <= SOLVE
        assert redone == []
        assert bool((got[~mask] == 0).all())

    @pytest.mark.parametrize(("rows", "columns"), [(0, 7), (3, 0), (0, 0)])
    def test_nothing_to_do(self, emulated, rows, columns):
        gram, rhs = torch.eye(columns), torch.zeros(rows, columns)
        assert ops.masked_lstsq(gram, rhs, rhs == 0).shape == (rows, columns)

    @pytest.mark.parametrize(("kibibytes", "side"), [(227, 320), (163, 256), (99, 192), (48, 128), (4, 0)])
    def test_what_fits_on_chip(self, emulated, kibibytes, side):
        emulated.emulate_device(3, kibibytes * 1024)
        assert emulated.masked_factor_on_chip() == side

    def test_factors_that_do_not_fit_on_chip(self, emulated, redone, generator):
        emulated.emulate_device(3, 12 * 1024)
        assert emulated.masked_factor_on_chip() == 32
        gram, rhs, mask = problem(4, 141, generator)
        assert relative(ops.masked_lstsq(gram, rhs, mask), masked_fit(gram, rhs, mask)) <= SOLVE
        assert redone == []

    def test_on_the_complement(self, emulated, redone, generator, monkeypatch):
        """Many rows that keep most of their columns share one inverse, and no factor is larger than what they lose."""
        sides = []
        refine = masked_systems._refine
        monkeypatch.setattr(masked_systems, "_refine", lambda *given: sides.append(given[4]) or refine(*given))
        gram, rhs, _ = problem(30, 60, generator)
        mask = torch.rand(30, 60, generator=generator) < 0.9
        mask[:2] = True
        assert relative(ops.masked_lstsq(gram, rhs, mask), masked_fit(gram, rhs, mask)) <= SOLVE
        assert max(sides) <= 15
        assert redone == []

    @pytest.mark.parametrize("dtype", STORED, ids=str)
    def test_dtypes(self, emulated, dtype, generator):
        gram, rhs, mask = problem(5, 40, generator)
        gram, rhs = gram.to(dtype), rhs.to(dtype)
        got = ops.masked_lstsq(gram, rhs, mask, anchor=rhs, damp=1e-2)
        assert got.dtype == dtype
        assert relative(got, masked_fit(gram, rhs, mask, rhs, 1e-2)) <= STORED[dtype] + SOLVE

    def test_rows_that_float32_cannot_carry(self, emulated, redone, generator):
        """They are factored in float64; the rest is not."""
        gram, rhs, mask = problem(6, 60, generator, "deficient", 1e-9)
        mask[2:] = False
        mask[2:, :15] = True
        got = ops.masked_lstsq(gram, rhs, mask)
        assert relative(got @ gram, masked_fit(gram, rhs, mask) @ gram) <= 1e-6
        assert redone == [1]

    def test_singular_support_is_reported(self, emulated, generator):
        gram = gram_of(features(100, 30, generator, "deficient"))
        mask = torch.ones(2, 30, dtype=torch.bool)
        mask[0, 3:] = False  # this row's support is regular
        with pytest.raises(NumericsError, match=r"row 1 is singular.*1 of 2"):
            ops.masked_lstsq(gram, torch.randn(2, 30, dtype=torch.float64, generator=generator), mask)


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"side": 5}, "more columns wanted"), ({"mask": 0}, "mask is a null"), ({"rows": -1}, "negative")],
)
def test_sizes_are_checked(bad, words):
    extension = pytest.importorskip("pyprune._C")
    if not extension.build_info()["cuda"]:
        pytest.skip("pyprune was built without CUDA (no nvcc, or PYPRUNE_CUDA=OFF)")
    given = {"out": 8, "rhs": 8, "factors": 8, "mask": 8, "rows": 2, "columns": 4, "side": 3, **bad}
    with pytest.raises(ValueError, match=words):
        extension.masked_solve_cuda(*given.values(), True, 0)


@pytest.mark.parametrize("columns", [1, 37])
def test_gathered_in_float64(columns, generator):
    gram, rhs, mask = problem(6, columns, generator)
    got, status = masked_systems.solve_in_double(gram, rhs, mask, columns)
    assert relative(got, masked_fit(gram, rhs, mask)) <= SOLVE
    assert not bool(status.any())


def test_gathered_in_float64_says_which_pivot(generator):
    gram, rhs, mask = problem(4, 20, generator)
    gram[11], gram[:, 11] = gram[4], gram[:, 4].clone()
    gram[11, 11] = gram[4, 4]
    mask[1:3, 3:12] = True
    mask[2, 11] = False
    got, status = masked_systems.solve_in_double(gram, rhs, mask, 20)
    assert int(status[1]) == 12
    assert int(status[2]) == 0
    assert not bool(got[1].any())
    assert relative(got[2:3], masked_fit(gram, rhs[2:3], mask[2:3])) <= SOLVE


class TestPlan:
    """Which way rows go, without a device."""

    @staticmethod
    def size(side):
        return 1024 * math.comb(-(-side // 32) + 1, 2)

    def plan(self, kept, columns, **given):
        given = {"complement": False, "on_chip": 320, "factor_size": self.size, **given}
        chunks = masked_systems.plan(kept, columns, **given)
        assert sorted(row for chunk in chunks for row in chunk.rows) == list(range(len(kept)))
        return chunks

    def test_no_rows(self):
        assert self.plan([], 10) == []

    def test_similar_sizes_go_together(self):
        chunks = self.plan([0, 1, 30, 33, 64, 100, 128, 320, 321, 500], 600)
        assert [(chunk.rows, chunk.side) for chunk in chunks if chunk.side > 64] == [
            ([5, 6], 128),
            ([7], 320),
            ([8, 9], 500),
        ]
        assert all(chunk.kernel for chunk in chunks)

    def test_on_chip_or_not_is_a_matter_of_the_chunk(self):
        kept = [*range(250, 400), *range(30, 40)]
        for on_chip in (32, 256, 320):
            for chunk in self.plan(kept, 600, on_chip=on_chip):
                assert len({kept[row] > on_chip for row in chunk.rows}) == 1

    def test_complement_where_it_is_smaller(self):
        chunks = self.plan([100, 300, 301, 590, 600], 600, complement=True)
        assert {row: chunk.complement for chunk in chunks for row in chunk.rows} == {
            0: False,
            1: False,
            2: True,
            3: True,
            4: True,
        }
        assert max(chunk.side for chunk in chunks) == 300

    def test_memory_is_bounded(self):
        workspace = 64 << 20
        kept = [1 + 7 * row % 600 for row in range(500)]
        for chunk in self.plan(kept, 700, workspace=workspace):
            each = 4 * self.size(chunk.side) + 8 * masked_systems._TENSORS * 700
            assert each * len(chunk.rows) <= workspace
            assert chunk.side == max(kept[row] for row in chunk.rows)

    def test_systems_too_large_for_a_kernel(self):
        chunks = self.plan([900, 20, 1000], 1000, complement=True, workspace=20 << 20, on_chip=0)
        assert all(chunk.kernel for chunk in chunks)
        chunks = self.plan([900, 20, 500], 1000, complement=True, workspace=5 << 20)
        assert [(chunk.rows, chunk.kernel, chunk.side) for chunk in chunks if 2 in chunk.rows] == [([2], False, 500)]

    def test_no_kernel_wanted(self):
        chunks = self.plan([5, 900], 1000, complement=True, factor_size=None)
        assert all(not chunk.kernel and not chunk.complement for chunk in chunks)
        assert [len(chunk.rows) for chunk in self.plan([900] * 3, 1000, factor_size=None, workspace=1 << 20)] == [1] * 3


@pytest.mark.gpu
@gpu
class TestDevice:
    @pytest.mark.parametrize("kind", ["plain", "correlated", "scaled", "deficient"])
    @pytest.mark.parametrize("columns", [1, 31, 200, 701])
    def test_matches_float64(self, columns, kind, generator):
        gram, rhs, mask = problem(9, columns, generator, kind)
        got = ops.masked_lstsq(gram.cuda(), rhs.cuda(), mask.cuda())
        assert relative(got.cpu(), masked_fit(gram, rhs, mask)) <= SOLVE

    def test_tf32_changes_nothing(self, generator, monkeypatch):
        gram, rhs, mask = (tensor.cuda() for tensor in problem(40, 300, generator))
        wanted = ops.masked_lstsq(gram, rhs, mask)
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
        assert torch.equal(ops.masked_lstsq(gram, rhs, mask), wanted)

    def test_same_bits_on_any_stream(self, generator):
        gram, rhs, mask = (tensor.cuda() for tensor in problem(40, 300, generator))
        wanted = ops.masked_lstsq(gram, rhs, mask)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = ops.masked_lstsq(gram, rhs, mask)
        stream.synchronize()
        assert torch.equal(got, wanted)

    def test_no_leak(self, generator):
        gram, rhs, mask = (tensor.cuda() for tensor in problem(5, 40, generator))
        ops.masked_lstsq(gram, rhs, mask)
        before = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
        for _ in range(1000):
            ops.masked_lstsq(gram, rhs, mask)
        assert torch.cuda.memory_allocated() == before[0]
        assert torch.cuda.mem_get_info()[0] >= before[1] - (64 << 20)
