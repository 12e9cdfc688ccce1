# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from tolerances import STORED as ROUNDING

from pyprune import ops
from pyprune.errors import InputError
from pyprune.ops.sparse_weight import STORED, VALUE_TYPES, SparseWeight, pack_bits, restore, unpack_bits

GEOMETRY = {"dense": (1, 1), "bitmask": (1, 1), "nm": (1, 4), "block": (3, 4)}


def example(generator, format, rows=9, columns=20):
    """A matrix and a mask of the format, with zeros that are kept."""
    weight = torch.randn(rows, columns, generator=generator)
    weight[:, 1::4] = 0.0
    if format == "dense":
        return weight, torch.ones(rows, columns, dtype=torch.bool)
    if format == "block":
        blocks = torch.rand(rows // 3, columns // 4, generator=generator) < 0.5
        return weight, blocks.repeat_interleave(3, 0).repeat_interleave(4, 1)
    if format == "nm":
        place = torch.randint(4, (rows, columns // 4, 1), generator=generator)
        return weight, (torch.arange(4) == place).reshape(rows, columns)
    return weight, torch.rand(rows, columns, generator=generator) < 0.4


@pytest.mark.parametrize("values", VALUE_TYPES, ids=str)
@pytest.mark.parametrize("format", STORED)
def test_there_and_back(format, values, generator):
    weight, mask = example(generator, format)
    sparse = ops.compress(weight, mask, format=format, geometry=GEOMETRY[format], dtype=values)
    assert torch.equal(sparse.mask(), mask)
    assert sparse.values.numel() == int(mask.sum())
    wanted = weight * mask
    step = wanted.abs().amax(1, keepdim=True) / 127 / 2 * 1.001 if values == torch.int8 else None
    off = (sparse.to_dense(torch.float64) - wanted).abs()
    assert bool((off <= (step if step is not None else ROUNDING[values] * wanted.abs())).all())
    for other in ("bitmask", "dense"):
        again = restore(sparse, other)
        assert torch.equal(again.to_dense(), sparse.to_dense())
    back = restore(restore(sparse), format, GEOMETRY[format])
    assert all(torch.equal(back.parts[name], part) for name, part in sparse.parts.items())
    assert back.geometry == sparse.geometry


@pytest.mark.parametrize("shape", [(0, 0), (0, 8), (3, 0)], ids=str)
@pytest.mark.parametrize("format", ["dense", "bitmask"])
def test_empty(format, shape):
    for values in VALUE_TYPES:
        sparse = ops.compress(torch.ones(shape), format=format, dtype=values)
        assert sparse.to_dense().shape == shape
        assert sparse.mask().shape == shape


@pytest.mark.parametrize("columns", [0, 1, 7, 8, 9, 64, 131])
def test_bits(columns, generator):
    mask = torch.rand(5, columns, generator=generator) < 0.5
    bits = pack_bits(mask)
    assert bits.shape == (5, -(-columns // 8))
    assert torch.equal(unpack_bits(bits, columns), mask)
    for row, column in mask.nonzero().tolist():
        assert bits[row, column // 8] >> column % 8 & 1
    assert sum(int(byte).bit_count() for byte in bits.flatten()) == int(mask.sum())  # padding is zero


def test_default_dtype_and_mask(generator):
    weight = torch.tensor([[0.0, 1.5], [0.0, 0.0]])
    assert ops.compress(weight.double()).dtype == torch.float32
    assert ops.compress(weight.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(ops.compress(weight).mask(), weight != 0)


def test_int8_scales(generator):
    weight = torch.tensor([[1.0, -4.0], [0.0, 0.0], [1e-30, 5e-31]])
    sparse = ops.compress(weight, torch.ones(3, 2, dtype=torch.bool), dtype=torch.int8)
    assert sparse.scale is not None
    assert sparse.values.tolist() == [32, -127, 0, 0, 127, 64]
    assert torch.allclose(sparse.scale, torch.tensor([4 / 127, 1.0, 1e-30 / 127]))
    assert sparse.to_dense().dtype == torch.float32


def test_bytes():
    sparse = ops.compress(torch.eye(16), dtype=torch.int8)
    assert sparse.nbytes == 16 * 2 + 16 + 16 * 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.compress(torch.ones(3)), "floating matrix"),
        (lambda: ops.compress(torch.ones(2, 2, dtype=torch.int32)), "int32"),
        (lambda: ops.compress(torch.ones(2, 2), format="csr"), "csr"),
        (lambda: ops.compress(torch.ones(2, 2), torch.ones(2, 2)), "mask"),
        (lambda: ops.compress(torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool)), "mask"),
        (lambda: ops.compress(torch.full((1, 1), torch.inf)), "finite"),
        (lambda: ops.compress(torch.full((1, 1), 1e6), dtype=torch.float16), "too large"),
        (lambda: ops.compress(torch.ones(2, 2), dtype=torch.float64), "float64"),
        (lambda: ops.compress(torch.ones(2, 6), format="nm", geometry=(2, 4)), "rows of 6"),
        (lambda: ops.compress(torch.ones(2, 8), format="nm", geometry=(5, 4)), "keep 5"),
        (lambda: ops.compress(torch.ones(2, 8), format="nm", geometry=(2, 4)), "exactly 2 of every 4"),
        (lambda: ops.compress(torch.ones(2, 8), format="block", geometry=(3, 4)), "blocks of 3 x 4"),
        (lambda: ops.compress(torch.ones(2, 8), format="block", geometry=(0, 4)), "blocks of 0 x 4"),
        (lambda: restore(ops.compress(torch.eye(4)), "nm", (2, 4)), "exactly 2"),
        (lambda: SparseWeight((1, 1), "csr", {"values": torch.ones(1)}).to_dense(), "csr"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(InputError, match=words):
        call()
