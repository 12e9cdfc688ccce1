# SPDX-License-Identifier: Apache-2.0
"""Budgets: costs, exact thresholds with ties, and the best split against all splits there are."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprune.budgets import UnitCosts, allowance, best_split, keep_best, unit_costs
from pyprune.errors import InputError
from pyprune.units import Units

BERT_BASE = Units.dense(768, 12, 64, 3072, layers=12)
scores_of_few = st.lists(st.integers(0, 4).map(float), min_size=0, max_size=6)


def test_costs_of_bert_base_are_those_published() -> None:
    # SST-2's mean length; dense totals and the ratio of a head to a neuron as in the released code of K-prune.
    costs = unit_costs(BERT_BASE, "flops", 25.16)
    assert costs.total(BERT_BASE) == pytest.approx(4.30e9, rel=2e-3)
    assert costs.head / costs.neuron == pytest.approx(130, abs=1)
    macs = unit_costs(BERT_BASE, "macs", 128)
    assert (macs.head, macs.neuron) == (4 * 128 * 768 * 64 + 2 * 128**2 * 64, 2 * 128 * 768)
    assert unit_costs(BERT_BASE, "flops", 128) == UnitCosts("flops", 2 * macs.head, 2 * macs.neuron)


def test_parameters_are_those_of_the_linears() -> None:
    costs = unit_costs(BERT_BASE, "parameters", 1.0)
    # All linear weights and biases of the encoder but the two output biases of each layer.
    assert costs.total(BERT_BASE) == 84_934_656 + 82_944 - 12 * 2 * 768


@pytest.mark.parametrize(
    ("share", "total", "wanted"), [(0.7, 10, 7), (0.29, 100, 29), (0.1, 3, 0), (1, 7, 7), (0, 7, 0)]
)
def test_allowance_reads_decimals(share: float, total: int, wanted: int) -> None:
    assert allowance(share, total) == wanted


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=12), st.integers(-1, 40))
def test_kept_units_are_the_first_that_fit(units: list[tuple[int, int]], budget: int) -> None:
    scores = torch.tensor([float(score) for score, _ in units])
    costs = torch.tensor([cost for _, cost in units], dtype=torch.int64)
    kept = keep_best(scores, costs, budget)
    wanted, spent, open_ = [False] * len(units), 0, True
    for index in sorted(range(len(units)), key=lambda unit: (-units[unit][0], unit)):
        spent += units[index][1]
        open_ = open_ and spent <= budget
        wanted[index] = open_
    assert kept.tolist() == wanted


@settings(max_examples=80, deadline=None)
@given(scores_of_few, scores_of_few, st.integers(1, 5), st.integers(1, 3), st.integers(0, 30))
def test_split_is_the_best_of_all(
    heads: list[float], neurons: list[float], head: int, neuron: int, budget: int
) -> None:
    costs = UnitCosts("flops", head, neuron)
    kept = best_split(torch.tensor(heads), torch.tensor(neurons), costs, budget)
    assert head * int(kept[0].sum()) + neuron * int(kept[1].sum()) <= budget
    best = max(
        sum(s for s, k in zip(heads + neurons, choice, strict=True) if k)
        for choice in itertools.product((False, True), repeat=len(heads) + len(neurons))
        if head * sum(choice[: len(heads)]) + neuron * sum(choice[len(heads) :]) <= budget
    )
    got = float(torch.tensor(heads)[kept[0]].sum() + torch.tensor(neurons)[kept[1]].sum())
    assert got == best


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        keep_best(torch.tensor([1.0, torch.nan]), torch.ones(2, dtype=torch.int64), 1)
    with pytest.raises(InputError, match="do not fit"):
        keep_best(torch.ones(2), torch.ones(2), 1)
    with pytest.raises(InputError, match="less than nothing"):
        keep_best(torch.ones(1), torch.tensor([-1]), 1)
    with pytest.raises(InputError, match="negative"):
        best_split(torch.tensor([-1.0]), torch.ones(1), UnitCosts("flops", 1, 1), 1)
    with pytest.raises(InputError, match="counted in"):
        unit_costs(BERT_BASE, "watts", 10)
    with pytest.raises(InputError, match="tokens above 0"):
        unit_costs(BERT_BASE, "flops", 0)
    for share in (-0.1, 1.1, True, "half", float("nan")):
        with pytest.raises(InputError, match="from 0 to 1"):
            allowance(share, 10)  # type: ignore[arg-type]
