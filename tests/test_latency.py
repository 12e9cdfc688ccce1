# SPDX-License-Identifier: Apache-2.0
"""From a table of times to units, without a clock."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from pyprune.errors import InputError
from pyprune.latency import LatencyCosts, LatencyTable, keep_by_tables, latency_costs, rising
from pyprune.units import Units

DENSE = Units.dense(8, 2, 4, 6, layers=3)
TABLE = LatencyTable(
    "optimized", 4, 16, 2, {1: 30e-9, 2: 40e-9}, {2: 9e-9, 4: 8e-9, 6: 20e-9}, empty=5e-9, rest=7e-9, machine="a"
)


def exhaustive(scores, costs, budget):
    """The largest sum of scores over all numbers of units, best ones first."""
    best = -1.0
    for counts in itertools.product(*(range(len(group) + 1) for group in scores)):
        if sum(table[count] for table, count in zip(costs, counts, strict=True)) <= budget:
            ordered = (group.sort(descending=True).values for group in scores)
            best = max(best, sum(float(g[:n].sum()) for g, n in zip(ordered, counts, strict=True)))
    return best


def test_best_of_all_choices():
    generator = torch.Generator().manual_seed(0)
    binding = 0
    for case in range(60):
        groups, tables = [], []
        for _ in range(3):
            units = int(torch.randint(0, 5, (), generator=generator))
            groups.append(torch.randint(0, 6, (units,), generator=generator).double())
            # steps that cost nothing, and first units that cost much
            steps = torch.randint(0, 4, (units,), generator=generator) * torch.randint(
                1, 9, (units,), generator=generator
            )
            tables.append([0, *steps.cumsum(0).tolist()])
        budget = int(torch.randint(0, 40, (), generator=generator))
        kept = keep_by_tables(groups, tables, budget)
        cost = sum(table[int(mask.sum())] for table, mask in zip(tables, kept, strict=True))
        assert cost <= budget, case
        total = sum(float(group[mask].sum()) for group, mask in zip(groups, kept, strict=True))
        assert total == exhaustive(groups, tables, budget), case
        binding += total < sum(float(group.sum()) for group in groups)
    assert binding > 20  # the budget matters


def test_large_budgets_are_never_exceeded():
    """Costs are rounded up to ticks: at most one tick a group is lost."""
    generator = torch.Generator().manual_seed(1)
    scores = [torch.rand(40, generator=generator) for _ in range(6)]
    costs = [[0, *(torch.randint(1, 10**6, (40,), generator=generator).cumsum(0)).tolist()] for _ in scores]
    budget = sum(table[-1] for table in costs) // 3
    spent = lambda masks: sum(t[int(m.sum())] for t, m in zip(costs, masks, strict=True))  # noqa: E731
    masks = keep_by_tables(scores, costs, budget)
    assert budget * (1 - 6 / 8192) - 10**6 <= spent(masks) <= budget
    assert [m.tolist() for m in masks] == [m.tolist() for m in keep_by_tables(scores, costs, budget)]


def test_ties_go_to_fewer_units_and_lower_indices():
    scores = [torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0])]
    kept = keep_by_tables(scores, [(0, 2, 4, 4), (0, 2, 4)], 2)
    assert sum(int(mask.sum()) for mask in kept) == 1
    kept = keep_by_tables([torch.tensor([2.0, 3.0, 2.0])], [(0, 1, 2, 3)], 2)
    assert kept[0].tolist() == [True, True, False]


def test_wrong_searches_are_errors():
    with pytest.raises(InputError, match="at least 0"):
        keep_by_tables([torch.ones(1)], [(0, 1)], -1)
    with pytest.raises(InputError, match="do not fit"):
        keep_by_tables([torch.ones(2)], [(0, 1)], 1)
    for table in ((1, 2), (0, -1)):
        with pytest.raises(InputError, match="never fall"):
            keep_by_tables([torch.ones(1)], [table], 1)
    for score in (-1.0, float("nan")):
        with pytest.raises(InputError, match="finite and at least 0"):
            keep_by_tables([torch.tensor([score])], [(0, 1)], 1)


def test_rising_is_the_nearest():
    values = [0.0, 5.0, 3.0, 4.0, 2.0, 9.0]
    found = rising(values)
    assert found == [0.0, 3.5, 3.5, 3.5, 3.5, 9.0]
    assert rising(sorted(values)) == sorted(values)
    assert rising([]) == []


def test_costs_of_every_number():
    costs = latency_costs(TABLE, DENSE)
    assert costs.heads == (0, 30, 40)
    assert costs.neurons == (0, 4, 8, 8, 8, 14, 20)  # 9 and 8 are pooled to 8.5, which is rounded to even
    assert costs.fixed == 7 + 3 * 5
    assert costs.total(DENSE) == 22 + 3 * 60
    assert [costs.kept(half, 1) for half in (0, 1)] == [30, 4]
    with pytest.raises(InputError, match=r"another model\n.*12 heads"):
        latency_costs(TABLE, Units.dense(96, 12, 8, 6, layers=3))


def test_both_searches_of_latencies_are_one():
    costs = LatencyCosts((0, 3, 4), (0, 1, 1), 0)
    scores = [torch.tensor([1.0, 5.0]), torch.tensor([2.0, 1.0])]
    for search in (costs.by_sum, costs.by_threshold):
        assert [mask.tolist() for mask in search(scores, [0, 1], 4)] == [[False, True], [True, True]]


def test_tables_on_disk(tmp_path):
    assert LatencyTable.from_json(json.loads(json.dumps(TABLE.to_json()))) == TABLE
    assert LatencyTable.load(TABLE.save(tmp_path / "table.json")) == TABLE
    (tmp_path / "pyprune.json").write_text(json.dumps({"budget": {"table": TABLE.to_json()}}))
    assert LatencyTable.load(tmp_path) == TABLE
    (tmp_path / "pyprune.json").write_text(json.dumps({"budget": {"measure": "flops"}}))
    for wrong in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(InputError, match="table of latencies"):
            LatencyTable.load(wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"way": "fast"},
        {"batch": 0},
        {"threads": True},
        {"rest": -1.0},
        {"empty": float("inf")},
        {"heads": [1.0]},
        {"neurons": {"six": 1.0}},
        {"neurons": {"6": "long"}},
        {"more": 1},
    ],
    ids=str,
)
def test_tables_that_cannot_be(change):
    with pytest.raises(InputError, match="table of latencies"):
        LatencyTable.from_json(TABLE.to_json() | change)
