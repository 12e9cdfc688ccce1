# SPDX-License-Identifier: Apache-2.0
"""Which arrangement and which way on a GPU; 2:4 is in test_semi_structured.py, the kernels have their own rooms."""

from __future__ import annotations

import pytest
import torch

from pyprune import backends
from pyprune.ops import compress, spmm_gpu
from pyprune.ops.spmm_gpu import arrange, arrangement_of, spread_wanted


@pytest.mark.parametrize(
    ("kernels", "triton", "wanted"),
    [("triton", True, "block"), ("cuda", True, "block"), ("cuda", False, "tiles"), ("torch", True, "block")],
)
def test_blocks_stay_where_triton_multiplies_by_them(monkeypatch, kernels, triton, wanted):
    monkeypatch.setattr(backends, "unavailable", lambda backend: None if triton else "not installed")
    assert arrangement_of((64, 64), torch.float32, "block", (16, 32), 90, kernels) == wanted
    small = arrangement_of((64, 64), torch.float32, "block", (8, 32), 90, kernels)
    assert small == ("block" if kernels == "torch" else "tiles")  # torch multiplies nothing but 2:4 without zeros


@pytest.mark.parametrize("format", ["dense", "tiles", "semi"])
def test_what_is_arranged_stays(format):
    for kernels in ("cuda", "triton", "torch"):
        assert arrangement_of((64, 64), torch.float32, format, (1, 1), 90, kernels) == format


def test_zeros_are_put_back_where_the_plan_says_so(monkeypatch, generator):
    asked = []

    def spread_first(product, arch, backend):
        asked.append((product.tokens, product.dtype, product.in_float32, round(product.density, 1)))
        return product.tokens > 5

    monkeypatch.setattr(spmm_gpu.gpu_plan, "spread_first", spread_first)
    weight = torch.randn(64, 640, generator=generator)
    mask = torch.rand(64, 640, generator=generator) < 0.3
    for values, x, lanes in (
        (torch.bfloat16, torch.bfloat16, False),
        (torch.bfloat16, torch.float16, True),
        (torch.int8, torch.float16, False),
        (torch.int8, torch.float32, True),
    ):
        tiles = arrange(compress(weight, mask, dtype=values), "cuda")
        for tokens in (5, 6):
            wanted = spread_wanted(torch.ones(1, tokens, 640, dtype=x), tiles, "cuda")
            assert wanted is (tokens > 5)
            assert asked.pop() == (tokens, values, lanes, 0.3)
    assert spread_wanted(torch.ones(1, 640), tiles, "torch")
    blocks = compress(weight, format="block", geometry=(16, 16))
    assert not spread_wanted(torch.ones(9, 640), blocks, "triton")
    assert not asked
