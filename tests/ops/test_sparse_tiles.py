# SPDX-License-Identifier: Apache-2.0
"""The arrangement of GPUs, made and undone on the CPU; what multiplies by it is tested in tests/triton_kernels."""

from __future__ import annotations

import pytest
import torch

from pyprune import ops
from pyprune.ops import sparse_tiles
from pyprune.ops.sparse_weight import VALUE_TYPES, SparseWeight, compress, restore

SHAPES = [(1, 1), (16, 64), (17, 65), (15, 63), (3, 130), (37, 191), (64, 128), (7, 0), (0, 7), (0, 0)]


def in_tiles(weight: SparseWeight) -> SparseWeight:
    parts, geometry = sparse_tiles.arrange(weight.mask(), restore(weight, "dense").values)
    return SparseWeight(weight.shape, "tiles", parts, weight.scale, geometry)


def random_sparse(shape, density, generator, **kwargs) -> SparseWeight:
    mask = torch.rand(shape, generator=generator) < density
    return compress(torch.randn(shape, generator=generator), mask, **kwargs)


@pytest.mark.parametrize("values", VALUE_TYPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back(shape, density, values, generator):
    weight = random_sparse(shape, density, generator, dtype=values)
    tiles = in_tiles(weight)
    back = restore(tiles)
    assert torch.equal(tiles.mask(), weight.mask())
    assert torch.equal(tiles.to_dense(), weight.to_dense())
    assert torch.equal(back.parts["bits"], weight.parts["bits"])
    assert torch.equal(back.values, weight.values)
    assert back.scale is weight.scale


def test_a_kept_zero_stays_kept():
    mask = torch.tensor([[True, False, True]])
    tiles = in_tiles(compress(torch.tensor([[0.0, 5.0, -2.0]]), mask))
    assert torch.equal(tiles.mask(), mask)
    assert restore(tiles).values.tolist() == [0.0, -2.0]


@pytest.mark.parametrize("values", VALUE_TYPES, ids=str)
def test_cells_begin_at_whole_units(values, generator):
    weight = random_sparse((50, 200), 0.2, generator, dtype=values)
    tiles = in_tiles(weight)
    down, across = sparse_tiles.cells_of(weight.shape)
    assert (down, across) == (4, 4)
    padded = torch.zeros(64, 256, dtype=torch.bool)
    padded[:50, :200] = weight.mask()
    counts = padded.reshape(4, 16, 4, 64).sum((1, 3)).flatten()
    each = sparse_tiles.UNIT // weight.values.element_size()
    assert torch.equal(tiles.parts["starts"].diff().long(), -(-counts // each))
    assert len(tiles.values) == each * int(tiles.parts["starts"][-1])
    largest = sparse_tiles.UNIT * int(tiles.parts["starts"].diff().max())
    assert 0 <= tiles.geometry[0] - largest < 256
    assert tiles.geometry[0] % 256 == 0


@pytest.mark.parametrize(
    ("row", "column", "lane", "bit"),
    [
        (0, 0, 0, 0),
        (0, 1, 0, 1),  # i % 2
        (8, 0, 0, 2),  # row / 8
        (0, 2, 0, 4),  # i / 2
        (0, 4, 0, 8),  # part
        (0, 8, 1, 0),  # t
        (1, 0, 4, 0),  # g
        (0, 32, 0, 16),  # half
        (15, 63, 31, 31),
    ],
)
def test_the_bit_of_a_weight(row, column, lane, bit):
    mask = torch.zeros(16, 64, dtype=torch.bool)
    mask[row, column] = True
    parts, _ = sparse_tiles.arrange(mask, torch.ones(16, 64))
    words = parts["bits"].long() & 0xFFFFFFFF
    assert int(words[0, lane]) == 1 << bit
    assert int(words.sum()) == 1 << bit


def test_a_cpu_multiplies_by_tiles_too(backend, generator):
    weight = random_sparse((37, 70), 0.3, generator)
    x = torch.randn(3, 70, generator=generator)
    assert torch.equal(ops.spmm(x, in_tiles(weight)), ops.spmm(x, weight))


def test_a_gradient_through_tiles(generator):
    weight = random_sparse((37, 70), 0.3, generator)
    x = torch.randn(3, 70, generator=generator, requires_grad=True)
    ops.spmm(x, in_tiles(weight)).sum().backward()
    torch.testing.assert_close(x.grad, weight.to_dense().sum(0).expand(3, 70))
