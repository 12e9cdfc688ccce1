# SPDX-License-Identifier: Apache-2.0
"""What the analysis of products on a GPU says: its shape, not its numbers, which nothing has measured."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyprune.errors import InputError
from pyprune.ops.gpu_plan import CARDS, Product, card_of, faster_on_gpu, spread_first

BF16 = torch.bfloat16


def verdict(density, tokens, *, dtype=BF16, arch=90, backend="cuda", shape=(4096, 4096), arrangement="tiles") -> str:
    return faster_on_gpu(
        *shape, density, dtype=dtype, tokens=tokens, arch=arch, backend=backend, arrangement=arrangement
    ).format


@pytest.mark.parametrize("arch", CARDS)
@pytest.mark.parametrize("arrangement", ["tiles", "block", "semi"])
def test_fewer_weights_never_turn_it_dense(arch, arrangement):
    for tokens in (1, 16, 33, 256):
        verdicts = [verdict(density / 20, tokens, arch=arch, arrangement=arrangement) for density in range(21)]
        assert verdicts == sorted(verdicts, key=["sparse", "dense"].index)


@pytest.mark.parametrize("arch", CARDS)
@pytest.mark.parametrize("kernels", ["cuda", "triton"])
def test_more_tokens_turn_tiles_dense_and_never_back(arch, kernels):
    for density, dtype in itertools.product((0.1, 0.5), (BF16, torch.int8, torch.float32)):
        verdicts = [verdict(density, tokens, dtype=dtype, arch=arch, backend=kernels) for tokens in (1, 32, 64, 4096)]
        assert verdicts == sorted(verdicts, key=["sparse", "dense"].index)
        assert verdicts[-1] == "dense"


def test_where_it_waits_for_memory_the_bytes_decide():
    assert verdict(0.1, 1) == "sparse"
    assert verdict(1.0, 1) == "dense"
    assert verdict(0.1, 1, dtype=torch.float32) == "sparse"
    assert verdict(0.1, 1, shape=(64, 64)) == "dense"  # a launch takes longer
    assert verdict(0.3, 256, arrangement="block") == "sparse"
    assert verdict(0.5, 4096, arrangement="semi") == "sparse"  # twice the operations
    assert verdict(0.5, 1, shape=(512, 512), arrangement="semi") == "dense"  # three launches


def test_triton_decodes_too_slowly_for_an_a100():
    assert verdict(0.1, 1, arch=80, backend="triton") == "dense"


def test_without_a_kernel():
    got = faster_on_gpu(4096, 4096, 0.1, dtype=BF16, tokens=1, arch=80, backend="torch")
    assert got.format == "dense"
    assert "no kernel" in got.reason
    assert verdict(0.5, 4096, backend="torch", arrangement="semi") == "sparse"


def test_says_why():
    got = faster_on_gpu(64, 96, 0.25, dtype=BF16, tokens=3, arch=90, backend="cuda")
    assert got.reason.startswith("25 % of 64 x 96 kept, 3 tokens: by analysis ")


@pytest.mark.parametrize("kernels", ["cuda", "triton"])
def test_zeros_come_back_from_some_number_of_tokens_on(kernels):
    for arch in CARDS:
        for dtype, wide in ((BF16, False), (torch.float32, True), (torch.int8, True)):
            wanted = [
                spread_first(Product(4096, 4096, 0.1, dtype, tokens, wide), arch, kernels)
                for tokens in (0, 1, 32, 100, 400, 1600, 6400)
            ]
            assert wanted == sorted(wanted)
            assert not wanted[1]
            assert wanted[-1]
    assert not spread_first(Product(4096, 4096, 0.1, torch.int8, 6400), 90, kernels)  # would have to be rounded


def test_nothing_to_multiply():
    for shape in ((0, 8), (8, 0), (0, 0)):
        assert verdict(0.5, 0, shape=shape) == "dense"


def test_an_unknown_card_counts_as_the_nearest_below():
    assert card_of(103) is CARDS[100]
    assert card_of(87) is CARDS[86]
    assert card_of(75) is CARDS[89]


@pytest.mark.parametrize(
    ("arguments", "dtype", "words"),
    [
        ((-1, 4, 0.5, 1), BF16, "out of range"),
        ((4, 4, 1.5, 1), BF16, "density 1.5"),
        ((4, 4, 0.5, 1), torch.float64, "float64"),
    ],
)
def test_errors_say_what_was_seen(arguments, dtype, words):
    out, columns, density, tokens = arguments
    with pytest.raises(InputError, match=words):
        faster_on_gpu(out, columns, density, dtype=dtype, tokens=tokens, arch=80, backend="cuda")
