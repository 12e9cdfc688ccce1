# SPDX-License-Identifier: Apache-2.0
"""What is made of addresses is made once, and again when a tensor has moved."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import torch
from torch import Tensor

from pyprune import ops
from pyprune.ops.places import Places


def test_made_again_only_where_something_moved() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    places, tensors = Places(), [torch.ones(3), torch.ones(2)]
    assert [places.made(tensors, make) for _ in range(3)] == [0, 0, 0]
    tensors[1] = torch.ones(2)
    assert places.made(tensors, make) == 1
    for other in (copy.copy(places), copy.deepcopy(places), pickle.loads(pickle.dumps(places))):
        assert other.made(tensors, make) == len(made) - 1
    assert len(made) == 5


def test_a_weight_that_moves_is_multiplied_where_it_lies(generator: torch.Generator) -> None:
    dense = torch.randn(70, 90, generator=generator) * (torch.rand(70, 90, generator=generator) < 0.2)
    x = torch.randn(5, 90, generator=generator)
    weight = ops.prepare(ops.compress(dense))
    before = ops.spmm(x, weight)
    values = weight.parts["values"]
    values.set_(torch.cat([values, values])[: len(values)] * 2)  # elsewhere, and other numbers
    torch.testing.assert_close(ops.spmm(x, weight), 2 * before)
    values.mul_(0.5)  # where it lies
    for other in (weight, replace(weight), copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert torch.equal(ops.spmm(x, other), before)


def test_a_copy_keeps_its_own_numbers(generator: torch.Generator) -> None:
    dense = torch.randn(8, 16, generator=generator)
    x = torch.randn(2, 16, generator=generator)
    weight = ops.prepare(ops.compress(dense, dense > 0))
    before: Tensor = ops.spmm(x, weight)
    copied = copy.deepcopy(weight)
    copied.parts["values"].zero_()
    assert not bool(ops.spmm(x, copied).any())
    assert torch.equal(ops.spmm(x, weight), before)
