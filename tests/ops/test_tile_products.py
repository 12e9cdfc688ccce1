# SPDX-License-Identifier: Apache-2.0
"""How a product is divided for the CUDA kernel; the kernel itself is in tests/cuda/test_spmm.py."""

from __future__ import annotations

import pytest
import torch

from pyprune.errors import InputError
from pyprune.ops import sparse_tiles
from pyprune.ops.tile_products import Cut, aligned, cut_of


@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "arch", "tensor_cores", "cut"),
    [
        (4096, 4096, 1, 90, True, Cut(8, 8, 1)),  # 128 blocks of 228
        (1024, 4096, 1, 90, True, Cut(8, 8, 4)),  # 32 blocks, and 64 cells for 8 warps
        (4096, 11008, 9, 80, True, Cut(16, 8, 1)),
        (1024, 11008, 9, 80, True, Cut(16, 8, 6)),
        (4096, 4096, 1, 80, False, Cut(2, 8, 1)),  # a row of cells a block: 256 of 216
        (768, 768, 1, 90, True, Cut(8, 6, 1)),  # 12 cells a row
        (768, 768, 40, 90, True, Cut(32, 6, 1)),
        (768, 768, 3, 90, False, Cut(8, 6, 1)),
        (33, 131, 1, 90, True, Cut(8, 1, 1)),  # 3 cells a row
        (16, 64 * 64, 5000, 90, True, Cut(32, 8, 1)),  # tokens fill the device
        (5, 0, 1, 90, True, Cut(8, 1, 1)),
        (16, 64 * 64, 1, 75, True, Cut(8, 8, 4)),  # an unknown card is a small one
    ],
)
def test_warps_and_splits_fill_the_device(rows, columns, tokens, arch, tensor_cores, cut):
    assert cut_of(rows, columns, tokens, arch, tensor_cores=tensor_cores) == cut


@pytest.mark.parametrize("arch", [80, 86, 90, 120])
@pytest.mark.parametrize("tensor_cores", [False, True])
def test_shared_memory_fits_every_card(tensor_cores, arch):
    """Of a multiprocessor at most 99 KiB for a block on consumer cards; two stages, everything kept."""
    largest = 1024 * (2 if tensor_cores else 4)
    for tokens in (1, 9, 40):
        cut = cut_of(4096, 4096, tokens, arch, tensor_cores=tensor_cores)
        cells = 2 if tensor_cores else 1
        sums = cut.tokens * (cells * sparse_tiles.ROWS + 4) * 4
        assert cut.warps * max(2 * cells * largest, sums) <= 64 << 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_begin_at_sixteen_bytes_and_end_in_zeros(dtype):
    base = torch.arange(2 * 48, dtype=torch.float32).reshape(2, 48).to(dtype)
    each = 16 // base.element_size()
    assert aligned(base) is base
    assert aligned(base[:, :32]).data_ptr() == base.data_ptr()  # longer rows do no harm
    for view in (base[:, : 32 + each // 2], base[:, each // 2 : 32 + each // 2], base[:, 1 : 2 * each + 1]):
        whole = aligned(view)
        assert whole.data_ptr() % 16 == 0
        assert whole.stride(0) % each == whole.shape[1] % each == 0
        assert torch.equal(whole[:, : view.shape[1]], view)
        assert not whole[:, view.shape[1] :].any()
    odd = torch.zeros(2 * 50, dtype=dtype)[: 2 * 49].reshape(2, 49)[:, :32]  # rows 49 apart
    assert aligned(odd).stride(0) == 32


@pytest.mark.parametrize("name", ["bits", "starts", "values"])
def test_parts_that_do_not_belong_together(name):
    parts, geometry = sparse_tiles.arrange(torch.ones(20, 70, dtype=torch.bool), torch.ones(20, 70))
    assert sparse_tiles.pointers(parts, (20, 70), geometry)[:2] == (20, 70)
    with pytest.raises(InputError, match="do not fit"):
        sparse_tiles.pointers({**parts, name: parts[name][1:]}, (20, 70), geometry)
    with pytest.raises(InputError, match="do not fit"):
        sparse_tiles.pointers(parts, (20, 70), (geometry[0] + 8, 1))
