# SPDX-License-Identifier: Apache-2.0
"""What is kept of an encoder: checks, counts, masks and JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from pyprune.errors import InputError
from pyprune.units import LayerUnits, Units


def _example() -> Units:
    first = LayerUnits((0, 2), ((0, 3), ()), ((1,), (0, 1, 2, 3)), (0, 4, 5))
    return Units(12, 3, 4, 7, (first, LayerUnits((), (), (), ())))


def test_counts_are_those_of_the_tensors() -> None:
    units, hidden = _example(), 12
    # by hand: query and key 2 rows each, value 5 rows, output 5 columns, 3 neurons; biases; norms of both layers
    rows = 2 * 2 * (hidden + 1) + 5 * (hidden + 1) + 5 * hidden + hidden
    wide = 3 * (hidden + 1) + 3 * hidden + hidden
    assert units.parameters() == rows + wide + 4 * hidden + 2 * hidden + 4 * hidden
    tokens = 9
    products = tokens * hidden * (2 * 2 + 2 * 5 + 2 * 3)
    assert units.macs(tokens) == products + tokens * tokens * (2 + 5)
    assert units.shapes[0].query == (2, 0)
    assert units.shapes[1].parameters(hidden) == 6 * hidden  # two biases, two norms
    assert units.shapes[1].macs(hidden, tokens) == 0


def test_dense_layer_has_the_published_costs() -> None:
    bert = Units.dense(768, 12, 64, 3072, layers=12)
    assert bert.parameters() == 85_054_464
    # K-prune's count: 12 heads of 6·d·d_h·n + 4·n²·d_h + 2·d_h·d·n, 3072 neurons of 4·n·d
    n, d, w = 25, 768, 64
    assert 2 * bert.macs(n) == 12 * (12 * (6 * d * w * n + 4 * n * n * w + 2 * w * d * n) + 3072 * 4 * n * d)


def test_masks() -> None:
    heads = torch.tensor([[True, False, True], [True, True, True]])
    neurons = torch.tensor([[False, True], [False, False]])
    value = torch.ones(2, 3, 4, dtype=torch.bool)
    value[0, 2] = False
    query = torch.ones_like(value)
    query[1, 1, :3] = False
    units = Units.from_masks(12, heads, neurons, query=query, value=value)
    assert units.layers[0] == LayerUnits((0,), ((0, 1, 2, 3),), ((0, 1, 2, 3),), (1,))  # head 2 has no values
    assert units.layers[1].query[1] == (3,)
    assert units.layers[1].neurons == ()
    assert Units.from_masks(12, None, neurons, query=query, value=value).layers[0].heads == (0, 1)
    for wrong in (heads[:1], heads.float(), heads[:, :2]):
        with pytest.raises(InputError, match="mask of heads"):
            Units.from_masks(12, wrong, neurons, query=query)
    with pytest.raises(InputError, match="masks of channels"):
        Units.from_masks(12, heads, neurons, query=query[0], width=4)
    with pytest.raises(InputError, match="mask of value"):
        Units.from_masks(12, heads, neurons, query=query, value=value[:, :2])
    with pytest.raises(InputError, match="heads and width"):
        Units.from_masks(12, heads, neurons)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": (0, 3)}, "heads out of range"),
        ({"heads": (2, 0)}, "ascending"),
        ({"heads": (0,)}, "one list for each kept head"),
        ({"query": ((0, 0), ())}, "query channels of head 0 are not in ascending"),
        ({"query": ((0, 4), ())}, "query channels of head 0 out of range"),
        ({"value": ((1,), ())}, "head 2 has no value"),
        ({"value": ((-1,), (0,))}, "value channels of head 0 out of range"),
        ({"neurons": (0, 7)}, "neurons out of range"),
        ({"neurons": (5, 5)}, "ascending"),
    ],
)
def test_impossible_units(change: dict[str, Any], message: str) -> None:
    fields = {"heads": (0, 2), "query": ((0, 3), ()), "value": ((1,), (0, 1)), "neurons": (0, 4)}
    with pytest.raises(InputError, match=message):
        Units(12, 3, 4, 7, (LayerUnits(**{**fields, **change}),))


def test_json() -> None:
    units = _example()
    document = json.loads(json.dumps(units.to_json()))
    assert Units.from_json(document) == units
    for path, value in (
        (("hidden",), -1),
        (("hidden",), 2**40),
        (("hidden",), True),
        (("layers",), None),
        (("layers", 0), []),
        (("layers", 0, "neurons"), 3),
        (("layers", 0, "neurons", 0), "0"),
        (("layers", 0, "query", 0), {}),
        (("layers", 0, "heads"), [0, 5]),
        (("more",), 1),
    ):
        damaged = json.loads(json.dumps(document))
        place = damaged
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(InputError):
            Units.from_json(damaged)
    for damaged in (None, [], {}, 3):
        with pytest.raises(InputError):
            Units.from_json(damaged)
