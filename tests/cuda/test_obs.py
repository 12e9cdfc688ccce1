# SPDX-License-Identifier: Apache-2.0
"""``obs`` the way it goes on a GPU: emulated kernels on CPU tensors, and the device where there is one."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from problems import features, gram_of, plain_obs
from tolerances import GREEDY, relative

from pyprune import ops
from pyprune.errors import NumericsError

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels are emulated on the host")
DTYPES = [torch.float64, torch.float32]


def problem(rows, columns, generator, kind="correlated", damp=1e-3):
    gram = gram_of(features(2 * columns + 3, columns, generator, kind), damp)
    inverse = torch.linalg.inv(gram)
    return gram, (inverse + inverse.T) / 2, torch.randn(rows, columns, dtype=torch.float64, generator=generator)


def check_against_plain(inverse, weight, count, keep=0, of=0, device="cpu"):
    got, order, loss = (t.cpu() for t in ops.obs(inverse.to(device), weight.to(device), count, keep=keep, of=of))
    for row in range(len(weight)):
        wanted, pivots, losses = plain_obs(inverse.numpy(), weight[row].numpy(), count, keep, of)
        assert order[row].tolist() == pivots
        assert np.abs(got[row].numpy() - wanted).max() <= 1e-5 * (float(np.abs(wanted).max()) or 1.0)
        assert np.allclose(loss[row].numpy(), losses, rtol=1e-6, atol=1e-9 * max(losses, default=0.0))


def check_fit(gram, inverse, weight, count, dtype, device="cpu"):
    """It ends in the restricted least squares, whatever the removals were chosen in."""
    pruned, order, _ = (t.cpu() for t in ops.obs(inverse.to(device), weight.to(device), count, dtype=dtype))
    mask = torch.ones_like(weight, dtype=torch.bool).scatter_(1, order, False)
    assert bool(((pruned == 0) == ~mask).all())
    assert relative(pruned, ops.masked_lstsq(gram, weight @ gram, mask)) <= GREEDY


class TestEmulated:
    @pytest.mark.parametrize(("rows", "columns", "count"), [(1, 1, 1), (4, 17, 16), (2, 97, 97), (1, 301, 280)])
    @pytest.mark.parametrize("kind", ["plain", "correlated", "scaled"])
    def test_same_pivots_as_the_plain_algorithm(self, emulated, rows, columns, count, kind, generator):
        _, inverse, weight = problem(rows, columns, generator, kind)
        check_against_plain(inverse, weight, count)

    @pytest.mark.parametrize(("keep", "of", "columns"), [(2, 4, 64), (1, 3, 99), (0, 4, 16), (3, 3, 9)])
    def test_groups(self, emulated, keep, of, columns, generator):
        _, inverse, weight = problem(2, columns, generator)
        check_against_plain(inverse, weight, columns // of * (of - keep), keep, of)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_ends_in_the_restricted_least_squares(self, emulated, dtype, generator):
        check_fit(*problem(4, 90, generator), 60, dtype)

    def test_counts_of_rows(self, emulated, generator):
        _, inverse, weight = problem(3, 20, generator)
        counts = torch.tensor([0, 20, 7])
        pruned, order, loss = ops.obs(inverse, weight, counts, dtype=torch.float32)
        assert (pruned == 0).sum(dim=1).tolist() == counts.tolist()
        assert (order >= 0).sum(dim=1).tolist() == counts.tolist()
        assert not bool(loss[0].any())
        assert torch.equal(pruned[0], weight[0])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_several_points_of_one_run(self, emulated, dtype, generator):
        _, inverse, weight = problem(3, 20, generator)
        counts = torch.tensor([[0, 5, 7], [20, 5, 1], [12, 6, 20]])
        pruned, order, _ = ops.obs(inverse, weight, counts, dtype=dtype)
        assert (order >= 0).sum(dim=1).tolist() == [20, 6, 20]
        for point, count in zip(pruned, counts, strict=True):
            alone, _, _ = ops.obs(inverse, weight, count, dtype=dtype)
            assert torch.equal(point == 0, alone == 0)
            assert relative(point, alone) <= GREEDY

    def test_rows_that_float32_does_not_settle(self, emulated, generator):
        """They are done again in float64, and only they."""
        _, inverse, weight = problem(3, 60, generator, "deficient", 1e-9)
        single, order, loss = ops.obs(inverse, weight, 40, dtype=torch.float32)
        exact, others, losses = ops.obs(inverse, weight, 40)
        assert torch.equal(order, others)
        assert torch.equal(loss, losses)
        assert torch.equal(single, exact)

    def test_not_positive_definite(self, emulated):
        with pytest.raises(NumericsError, match="positive pivot"):
            ops.obs(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.ones(1, 2), 2, dtype=torch.float32)

    def test_more_columns_than_a_multiprocessor_holds(self, emulated, generator):
        emulated.emulate_device(3, 4096)
        assert emulated.obs_plan_cuda(3, 40, 40, 9, 0, 0)[0] == 0
        _, inverse, weight = problem(2, 40, generator)
        check_against_plain(inverse, weight, 9)

    @pytest.mark.parametrize("bad", [{"stride": 31}, {"steps": 33}, {"type": 1}])
    def test_sizes_are_checked(self, bad):
        extension = pytest.importorskip("pyprune._C")
        if not extension.build_info()["cuda"]:
            pytest.skip("pyprune was built without CUDA (no nvcc, or PYPRUNE_CUDA=OFF)")
        sizes = {"type": 0, "columns": 32, "stride": 32, "steps": 8, **bad}
        with pytest.raises(ValueError, match=r"pyprune\._C"):
            extension.obs_plan_cuda(*sizes.values(), 0, 0)


@pytest.mark.parametrize(
    ("resident", "each", "rows", "workspace", "blocks"),
    [(0, 10, 5, 100, 0), (8, 10, 5, 100, 5), (8, 10, 50, 100, 8), (8, 30, 50, 100, 3), (8, 300, 50, 100, 1)],
)
def test_blocks_at_once(resident, each, rows, workspace, blocks):
    assert sys.modules["pyprune.ops.obs"].blocks_at_once(resident, each, rows, workspace) == blocks


@pytest.mark.gpu
@gpu
class TestDevice:
    @pytest.mark.parametrize(("rows", "columns", "count"), [(1, 1, 1), (4, 17, 16), (3, 131, 100), (300, 200, 100)])
    def test_same_pivots_as_the_plain_algorithm(self, rows, columns, count, generator):
        _, inverse, weight = problem(rows, columns, generator)
        check_against_plain(inverse, weight, count, device="cuda")

    @pytest.mark.parametrize(("keep", "of", "columns"), [(2, 4, 128), (32, 64, 192), (1, 3, 99)])
    def test_groups(self, keep, of, columns, generator):
        _, inverse, weight = problem(3, columns, generator)
        check_against_plain(inverse, weight, columns // of * (of - keep), keep, of, device="cuda")

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("columns", [60, 1100])
    def test_ends_in_the_restricted_least_squares(self, columns, dtype, generator):
        check_fit(*problem(6, columns, generator), columns // 2, dtype, device="cuda")

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_same_bits_on_any_stream(self, dtype, generator):
        _, inverse, weight = (tensor.cuda() for tensor in problem(40, 300, generator))
        wanted = ops.obs(inverse, weight, 150, dtype=dtype)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = ops.obs(inverse, weight, 150, dtype=dtype)
        stream.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))

    def test_no_leak(self, generator):
        _, inverse, weight = (tensor.cuda() for tensor in problem(3, 24, generator))
        ops.obs(inverse, weight, 12)
        before = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
        for _ in range(1000):
            ops.obs(inverse, weight, 12)
        assert torch.cuda.memory_allocated() == before[0]
        assert torch.cuda.mem_get_info()[0] >= before[1] - (64 << 20)
