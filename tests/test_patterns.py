# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprune import NM, Block, Unstructured
from pyprune.errors import InputError, NumericsError
from pyprune.patterns import Pattern, kept_count, kind_of, parse_pattern, pattern_from_dict

steady = settings(derandomize=True, deadline=None, max_examples=60)


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


@steady
@given(st.integers(0, 10**6), st.integers(0, 1000))
def test_counts_are_those_of_whole_numbers(numel, mills):
    """Any sparsity in thousandths, in integer arithmetic: half of a weight rounds up."""
    assert kept_count(numel, mills / 1000) == (2 * numel * (1000 - mills) + 1000) // 2000


@steady
@given(st.data())
def test_masks_of_one_score_are_nested(data):
    """The sparser mask lies within the denser one, ties or not."""
    rows, columns = data.draw(st.integers(1, 6)), 4 * data.draw(st.integers(1, 6))
    value = st.sampled_from([0.0, 1.0, 2.0, 2.5])
    scores = torch.tensor(data.draw(st.lists(value, min_size=rows * columns, max_size=rows * columns)))
    scores = scores.reshape(rows, columns)
    scope = data.draw(st.sampled_from(["row", "layer"]))
    first, second = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    least, most = sorted(data.draw(st.tuples(st.integers(0, 4), st.integers(0, 4))))
    for denser, sparser in (
        (Unstructured(first, scope), Unstructured(second, scope)),
        (Block(1, 2, first, scope), Block(1, 2, second, scope)),
        (NM(most, 4), NM(least, 4)),
    ):
        wide, narrow = denser.select(scores), sparser.select(scores)
        assert denser.holds(wide)
        assert sparser.holds(narrow)
        assert not bool((narrow & ~wide).any())
        assert kind_of(denser) == kind_of(sparser)


def test_kinds():
    kinds = [Unstructured(0.5), Unstructured(0.5, "layer"), NM(2, 4), NM(2, 8), Block(2, 4, 0.5), Block(4, 2, 0.5)]
    assert len({kind_of(pattern) for pattern in kinds}) == len(kinds)


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


@pytest.mark.parametrize("scope", ["row", "layer"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 3), (7, 1), (1, 15), (7, 15)])
def test_blocks(rows, cols, sparsity, scope, generator):
    pattern = Block(rows, cols, sparsity, scope)
    mask = pattern.select(torch.rand(14, 15, generator=generator))
    assert isinstance(pattern, Pattern)
    assert mask.shape == (14, 15)
    assert pattern.holds(mask)
    assert int(mask.sum()) == pattern.kept(14, 15)
    blocks = mask.reshape(14 // rows, rows, 15 // cols, cols)
    assert torch.equal(blocks.any(dim=3).any(dim=1), blocks.all(dim=3).all(dim=1))
    in_all = kept_count((14 // rows) * (15 // cols), sparsity)
    in_row = kept_count(15 // cols, sparsity)
    kept = blocks[:, 0, :, 0].sum(dim=1)
    assert int(kept.sum()) == (in_all if scope == "layer" else len(kept) * in_row)
    if scope == "row":
        assert kept.tolist() == [in_row] * len(kept)


def test_the_blocks_of_largest_energy_stay():
    scores = torch.tensor([[9.0, 0.0, 6.0, 7.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 8.0, 5.0]])  # energies 81, 85, 91
    assert Block(2, 2, 0.6).select(scores).tolist() == [[False] * 4 + [True] * 2] * 2
    assert Block(2, 2, 0.3).select(scores).tolist() == [[False] * 2 + [True] * 4] * 2
    scores = torch.tensor([[9.0, 0.0, 6.0, 7.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 4.0, 5.0]])  # 117, 51; 0, 41
    assert Block(1, 3, 0.5).select(scores).tolist() == [[True] * 6, [False] * 6]
    assert Block(1, 3, 0.5, "row").select(scores).tolist() == [[True] * 3 + [False] * 3, [False] * 3 + [True] * 3]


def test_earlier_blocks_win_ties():
    assert Block(2, 2, 0.5).select(torch.ones(4, 4)).tolist() == [[True] * 4] * 2 + [[False] * 4] * 2
    assert Block(2, 2, 0.5, "row").select(torch.zeros(4, 4)).tolist() == [[True, True, False, False]] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_energies_do_not_leave_the_range(dtype, generator):
    scores = torch.rand(6, 12, generator=generator, dtype=torch.float64).to(dtype)
    wanted = Block(2, 3, 0.5).select(scores)
    info = torch.finfo(dtype)
    for factor in (4 * info.tiny, info.max / 4):
        assert torch.equal(Block(2, 3, 0.5).select(scores.double() * factor), wanted), factor
    huge = torch.tensor([[info.tiny, 0.0, info.max, info.max / 2, 1.0, 1.0]], dtype=dtype)
    assert Block(1, 2, 0.3).select(huge).tolist() == [[False, False, True, True, True, True]]
    endless = torch.tensor([[1.0, 2.0, torch.inf, 0.0, torch.inf, torch.inf]], dtype=dtype)
    assert Block(1, 2, 0.3).select(endless).tolist() == [[False, False, True, True, True, True]]


def test_scores_that_are_no_sizes():
    with pytest.raises(NumericsError, match="NaN"):
        Block(1, 2, 0.5).select(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(InputError, match="not be negative"):
        Block(1, 2, 0.5).select(torch.tensor([[1.0, -1.0]]))


def test_masks_that_are_no_blocks():
    pattern = Block(2, 2, 0.5)
    mask = pattern.expand(torch.tensor([[True, False], [False, True]]))
    assert pattern.holds(mask)
    assert Block(2, 2, 0.5, "row").holds(mask)
    assert not pattern.holds(mask[:, 1:])
    assert not pattern.holds(mask.roll(1, dims=1))
    assert not pattern.holds(torch.ones_like(mask))
    both_above = pattern.expand(torch.tensor([[True, True], [False, False]]))
    assert pattern.holds(both_above)
    assert not Block(2, 2, 0.5, "row").holds(both_above)


@pytest.mark.parametrize(("rows", "cols"), [(0, 4), (4, -1), (1.5, 2), (True, 2), ("4", 4)])
def test_blocks_of_nothing(rows, cols):
    with pytest.raises(InputError, match=r"at least one row.*\n.*\n.*Block\(rows=4"):
        Block(rows, cols, 0.5)


def test_block_that_does_not_fit_names_the_layer():
    with pytest.raises(InputError, match=r"encoder.layer.3.*output dimension of 770.*\n.*\n.*770 = 192 x 4 \+ 2"):
        Block(4, 4, 0.5).check(770, 768, "encoder.layer.3")
    with pytest.raises(InputError, match=r"encoder.layer.3.*input dimension of 769.*\n.*\n.*769 = 192 x 4 \+ 1"):
        Block(4, 4, 0.5).check(768, 769, "encoder.layer.3")
    with pytest.raises(InputError, match="scores"):
        Block(2, 2, 0.5).select(torch.ones(3, 4))


@pytest.mark.parametrize("pattern", [Unstructured(0.7, "layer"), NM(32, 64), Block(4, 1, 0.7), Block(2, 8, 0.5, "row")])
def test_round_trip(pattern):
    assert pattern_from_dict(pattern.to_dict()) == pattern


def test_parse():
    assert parse_pattern("2:4") == NM(2, 4)
    assert parse_pattern("0.5", scope="layer") == Unstructured(0.5, "layer")
    assert parse_pattern("0.5") == Unstructured(0.5)
    assert parse_pattern("block:4x1:0.5") == Block(4, 1, 0.5)
    assert parse_pattern(" block : 16x32 : 0.875 ", scope="row") == Block(16, 32, 0.875, "row")
    wrong = ("block", "block:4x4", "block:4:0.5", "block:4x4:", "block:4x4:half", "block:4x4:70", "block:0x4:0.5")
    for text in ("half", "2:", "1.5", "5:4", *wrong):
        with pytest.raises(InputError):
            parse_pattern(text)


@pytest.mark.parametrize("value", [1.2, -0.1, float("nan"), "0.5", True])
def test_sparsity_out_of_range(value):
    with pytest.raises(InputError, match="sparsity"):
        Unstructured(value)
    with pytest.raises(InputError, match="sparsity"):
        Block(2, 2, value)


@pytest.mark.parametrize("make", [lambda scope: Unstructured(0.5, scope), lambda scope: Block(2, 2, 0.5, scope)])
def test_unknown_scope(make):
    with pytest.raises(InputError, match="unknown scope"):
        make("matrix")


def test_group_that_does_not_fit_names_the_layer():
    with pytest.raises(InputError, match=r"encoder.layer.3.*769.*\n.*asked.*\n.*769 = 12 x 64 \+ 1"):
        NM(32, 64).check(768, 769, "encoder.layer.3")


def test_words():
    assert Unstructured(0.875).describe() == "87.5 % of each row"
    assert Unstructured(0.5, "layer").describe() == "50 % of the layer"
    assert NM(2, 4).describe() == "2:4"
    assert Block(4, 2, 0.5).describe() == "50 % of the 4x2 blocks"
    assert Block(4, 2, 0.5, "row").describe() == "50 % of each row of 4x2 blocks"
