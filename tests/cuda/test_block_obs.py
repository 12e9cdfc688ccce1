# SPDX-License-Identifier: Apache-2.0
"""``block_obs`` the way it goes on a GPU: emulated kernels on CPU tensors, and the device where there is one."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from problems import features, gram_of
from tolerances import GREEDY, relative

from pyprune import Block, LayerProblem, backends, ops, solve
from pyprune.errors import NumericsError
from pyprune.ops.block_obs import block_obs_reference

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels are emulated on the host")
MODULE = sys.modules["pyprune.ops.block_obs"]
SHAPES = [(1, 1, 97, 97), (3, 1, 70, 61), (1, 2, 66, 66), (2, 3, 49, 48), (4, 4, 33, 30), (16, 16, 9, 8), (2, 64, 3, 3)]


def problem(rows, columns, generator, kind="correlated", damp=1e-3):
    gram = gram_of(features(2 * columns + 3, columns, generator, kind), damp)
    inverse = torch.linalg.inv(gram)
    return gram, (inverse + inverse.T) / 2, torch.randn(rows, columns, dtype=torch.float64, generator=generator)


def check(inverse, weight, count, height, width, device="cpu"):
    counts = torch.as_tensor(count).expand(len(weight) // height)
    steps = int(counts.max())
    wanted, order, loss = block_obs_reference(inverse, weight, counts, steps, height, width)
    found = ops.block_obs(inverse.to(device), weight.to(device), counts.to(device), height=height, width=width)
    pruned, removed, losses = (tensor.cpu() for tensor in found)
    assert torch.equal(removed, order)
    assert relative(pruned, wanted) <= GREEDY
    assert torch.equal(pruned == 0, wanted == 0)
    assert np.allclose(losses, loss, rtol=1e-6, atol=1e-9 * float(loss.max()))


class TestEmulated:
    @pytest.mark.parametrize(("height", "width", "blocks", "count"), SHAPES)
    def test_same_blocks_as_an_explicit_inverse(self, emulated, height, width, blocks, count, generator):
        _, inverse, weight = problem(2 * height, blocks * width, generator)
        check(inverse, weight, count, height, width)

    def test_in_few_bytes_and_by_short_panels(self, emulated, monkeypatch, generator):
        """Groups in turns, a new base after every third block; groups that end are left behind."""
        monkeypatch.setattr(MODULE, "groups_at_once", lambda each, groups: 2)
        monkeypatch.setattr(MODULE, "steps_at_once", lambda columns, width: 3)
        _, inverse, weight = problem(10, 60, generator)
        check(inverse, weight, torch.tensor([0, 15, 4, 9, 3]), 2, 4)

    @pytest.mark.parametrize("kind", ["scaled", "deficient", "dead"])
    def test_hard_grams_end_in_the_restricted_least_squares(self, emulated, kind, generator):
        gram, inverse, weight = problem(4, 48, generator, kind, damp=1e-4)
        pruned, order, _ = ops.block_obs(inverse, weight, 8, height=2, width=4)
        mask = torch.ones(2, 12, dtype=torch.bool).scatter_(1, order, False)
        mask = mask.repeat_interleave(2, dim=0).repeat_interleave(4, dim=1)
        assert torch.equal(pruned != 0, mask)
        refit = ops.masked_lstsq(gram, weight @ gram, mask)
        losses = [float((((w - weight) @ gram) * (w - weight)).sum()) for w in (pruned, refit)]
        assert losses[0] <= losses[1] * (1 + 1e-6)

    def test_ties_go_to_the_lower_block(self, emulated):
        _, order, loss = ops.block_obs(torch.eye(600), torch.ones(2, 600), 5, height=2, width=2)
        assert order.tolist() == [list(range(5))]
        assert bool((loss == 4).all())

    def test_not_positive_definite(self, emulated):
        inverse = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]))
        assert ops.block_obs(inverse, torch.ones(2, 6), 1, height=2, width=2)[1].tolist() == [[0]]
        with pytest.raises(NumericsError, match="rows 2 to 3"):
            ops.block_obs(inverse, torch.ones(4, 6), torch.tensor([1, 3]), height=2, width=2)

    @pytest.mark.parametrize("scope", ["row", "layer"])
    def test_the_solver_takes_it(self, emulated, scope, generator):
        gram, _, weight = problem(6, 16, generator)
        launches = emulated.launches()
        found = solve(LayerProblem(weight, gram), Block(2, 4, 0.5, scope), "obs")
        assert emulated.launches() > launches
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backends, "choose", lambda op, device: backends._choose(op, device, "reference"))
            wanted = solve(LayerProblem(weight, gram), Block(2, 4, 0.5, scope), "obs")
        assert torch.equal(found.mask, wanted.mask)
        assert relative(found.weight, wanted.weight) <= GREEDY

    def test_wider_blocks_go_to_the_reference(self, emulated, generator):
        launches = emulated.launches()
        _, inverse, weight = problem(2, 3 * 65, generator)
        check(inverse, weight, 2, 1, 65)
        assert emulated.launches() == launches
        check(inverse[:-3, :-3], weight[:, :-3], 2, 1, 64)
        assert emulated.launches() > launches

    @pytest.mark.parametrize(
        "bad", [{"width": 0}, {"width": 65}, {"height": 0}, {"steps": 5}, {"first": 3}, {"last": 4}, {"base_stride": 9}]
    )
    def test_sizes_are_checked(self, bad):
        extension = pytest.importorskip("pyprune._C")
        if not extension.build_info()["cuda"]:
            pytest.skip("pyprune was built without CUDA (no nvcc, or PYPRUNE_CUDA=OFF)")
        sizes = {"groups": 0, "height": 2, "width": 2, "blocks": 4, "steps": 3, "first": 0, "last": 2, "base_stride": 0}
        sizes |= bad
        stride, first, last = (sizes.pop(name) for name in ("base_stride", "first", "last"))
        with pytest.raises(ValueError, match=r"pyprune\._C"):
            extension.block_obs_cuda(*[8] * 8, stride, 8, 8, *sizes.values(), first, last, 0)


@pytest.mark.parametrize(
    ("columns", "width", "steps"), [(1, 1, 64), (768, 1, 64), (768, 3, 21), (2049, 16, 8), (4096, 64, 2), (64, 64, 1)]
)
def test_steps_at_once(columns, width, steps):
    assert MODULE.steps_at_once(columns, width) == steps


@pytest.mark.parametrize(("each", "groups", "workspace", "wanted"), [(0, 5, 9, 5), (3, 5, 9, 3), (10, 5, 9, 1)])
def test_groups_at_once(each, groups, workspace, wanted):
    assert MODULE.groups_at_once(each, groups, workspace) == wanted


@pytest.mark.gpu
@gpu
class TestDevice:
    @pytest.mark.parametrize(("height", "width", "blocks", "count"), [*SHAPES, (4, 1, 768, 384), (32, 32, 24, 12)])
    def test_same_blocks_as_an_explicit_inverse(self, height, width, blocks, count, generator):
        _, inverse, weight = problem(2 * height, blocks * width, generator)
        check(inverse, weight, count, height, width, device="cuda")

    def test_same_bits_on_any_stream(self, generator):
        _, inverse, weight = (tensor.cuda() for tensor in problem(40, 300, generator))
        wanted = ops.block_obs(inverse, weight, 50, height=4, width=3)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = ops.block_obs(inverse, weight, 50, height=4, width=3)
        stream.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
