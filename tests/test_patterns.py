# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from pyprune import NM, Unstructured
from pyprune.errors import InputError
from pyprune.patterns import Pattern, kept_count, parse_pattern, pattern_from_dict


@pytest.mark.parametrize(
    ("numel", "sparsity", "kept"),
    [
        (10, 0.7, 3),  # 10 * (1 - 0.7) is 3.0000000000000004 in binary
        (10, 0.3, 7),
        (10, 0.1, 9),
        (100, 0.29, 71),
        (5, 0.5, 3),  # half rounds up
        (1, 0.5, 1),
        (384, 0.875, 48),
        (3, 0.0, 3),
        (3, 1.0, 0),
        (0, 0.5, 0),
        (10**12 + 1, 0.5, 5 * 10**11 + 1),
    ],
)
def test_counts_round_half_up_in_decimal(numel, sparsity, kept):
    assert kept_count(numel, sparsity) == kept


@pytest.mark.parametrize("scope", ["row", "layer"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.7, 0.875, 1.0])
def test_selection_has_the_pattern(scope, sparsity, generator):
    pattern = Unstructured(sparsity, scope)
    mask = pattern.select(torch.rand(7, 13, generator=generator))
    assert pattern.holds(mask)
    assert int(mask.sum()) == pattern.kept(7, 13)
    assert isinstance(pattern, Pattern)


def test_row_and_layer_differ():
    mask = torch.tensor([[True, True], [False, False]])
    assert Unstructured(0.5, "layer").holds(mask)
    assert not Unstructured(0.5, "row").holds(mask)


def test_groups(generator):
    pattern = NM(keep=2, of=4)
    mask = pattern.select(torch.rand(5, 12, generator=generator))
    assert pattern.holds(mask)
    assert pattern.sparsity == 0.5
    assert pattern.kept(5, 12) == 30 == int(mask.sum())
    assert not pattern.holds(~mask[:, :11])
    mask[0, 0] = ~mask[0, 0]
    assert not pattern.holds(mask)


@pytest.mark.parametrize("pattern", [Unstructured(0.7, "layer"), NM(32, 64)])
def test_round_trip(pattern):
    assert pattern_from_dict(pattern.to_dict()) == pattern


def test_parse():
    assert parse_pattern("2:4") == NM(2, 4)
    assert parse_pattern("0.5", scope="layer") == Unstructured(0.5, "layer")
    for text in ("half", "2:", "1.5", "5:4"):
        with pytest.raises(InputError):
            parse_pattern(text)


@pytest.mark.parametrize("value", [1.2, -0.1, float("nan"), "0.5", True])
def test_sparsity_out_of_range(value):
    with pytest.raises(InputError, match="sparsity"):
        Unstructured(value)


def test_group_that_does_not_fit_names_the_layer():
    with pytest.raises(InputError, match=r"encoder.layer.3.*769.*\n.*asked.*\n.*769 = 12 x 64 \+ 1"):
        NM(32, 64).check(768, 769, "encoder.layer.3")


def test_words():
    assert Unstructured(0.875).describe() == "87.5 % of each row"
    assert Unstructured(0.5, "layer").describe() == "50 % of the layer"
    assert NM(2, 4).describe() == "2:4"
