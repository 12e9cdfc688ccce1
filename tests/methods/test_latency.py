# SPDX-License-Identifier: Apache-2.0
"""Tables of latencies from real modules, and pruning to them; no test looks at how long anything takes."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import build_batches, build_model

from pyprune.errors import InputError
from pyprune.latency import LatencyTable
from pyprune.methods import KPrune, Kwon, UnitMagnitude, measure_latency, prune_units

# Of the tiny models: 4 heads, 48 neurons. The first head is dear, the first neurons cost nothing.
TABLE = LatencyTable(
    "eager", 1, 8, 1, {1: 6e-6, 2: 7e-6, 4: 9e-6}, {12: 0.0, 24: 5e-6, 48: 1e-5}, empty=1e-6, rest=2e-6
)


@pytest.mark.parametrize("way", ["eager", "optimized"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_table_of_real_layers(family, way):
    model = build_model(family)
    before = copy.deepcopy(model.state_dict())
    table = measure_latency(model, batch=2, length=5, way=way, rounds=1)
    assert (table.way, table.batch, table.length) == (way, 2, 5)
    assert list(table.heads) == [1, 2, 3, 4]
    assert max(table.neurons) == 48
    assert len(table.neurons) == 8
    assert min(*table.heads.values(), *table.neurons.values(), table.empty) >= 0
    assert table.rest > 0
    assert LatencyTable.from_json(table.to_json()) == table
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model(**build_batches(1)[0]).logits.isfinite().all()


def test_wrong_requests_for_a_table():
    model = build_model("bert")
    with pytest.raises(InputError, match="no latencies of 'fast'"):
        measure_latency(model, way="fast")
    with pytest.raises(InputError, match="at least 1"):
        measure_latency(model, batch=0)
    with pytest.raises(InputError, match="too long"):
        measure_latency(model, length=100)


@pytest.mark.parametrize("method", [KPrune(), Kwon(), UnitMagnitude()], ids=lambda method: method.name)
def test_units_for_a_time(method, tmp_path):
    model, batches = build_model("bert", structured=True), build_batches(2)
    result = prune_units(model, batches, method=method, target_latency=2.0, latency_table=TABLE)
    budget, left = result.report["budget"], result.report["left"]
    assert budget["measure"] == "latency"
    assert budget["dense"] == 2000 + 2 * (1000 + 9000 + 10000)
    assert budget["allowed"] == budget["dense"] // 2
    # The budget is used: what is left would not pay for any further head.
    assert budget["allowed"] - 6000 < budget["reached"] <= budget["allowed"]
    assert left["latency"] == budget["reached"] / budget["dense"]
    # Neurons that cost nothing stay, if they are of any use.
    assert all(len(layer.neurons) >= 12 for layer in result.units.layers)
    folder = result.save(tmp_path / "result", storage="compact")
    again = prune_units(model, batches, method=method, target_latency=2.0, latency_table=folder)
    assert again.units == result.units


def test_a_run_that_goes_on_does_so_by_its_table(tmp_path):
    class StopError(Exception):
        pass

    class Stopper:
        def __init__(self):
            self.left = 8

        def start(self, total, description): ...
        def note(self, text): ...
        def finish(self): ...
        def advance(self, description):
            self.left -= 1
            if self.left == 0:
                raise StopError

    model, batches = build_model("bert", structured=True), build_batches(1)
    settings = {"target_latency": 1.5, "journal": tmp_path / "journal"}
    with pytest.raises(StopError):
        prune_units(model, batches, latency_table=TABLE, progress=Stopper(), **settings)
    assert LatencyTable.load(tmp_path / "journal" / "latency.json") == TABLE
    resumed = prune_units(model, batches, resume=True, **settings)
    whole = prune_units(model, batches, target_latency=1.5, latency_table=TABLE)
    assert resumed.units == whole.units
    assert resumed.report["budget"]["table"] == TABLE.to_json()


def test_what_cannot_be_is_said():
    model, batches = build_model("bert"), build_batches(1)
    with pytest.raises(InputError, match=r"would not be fast enough\n.*100 times.*\n.*10.5 times"):
        prune_units(model, batches, target_latency=100, latency_table=TABLE)
    with pytest.raises(InputError, match="how many times as fast"):
        prune_units(model, batches, target_latency=0.5, latency_table=TABLE)
    with pytest.raises(InputError, match="latency_table goes with target_latency"):
        prune_units(model, batches, target_flops=0.5, latency_table=TABLE)
    with pytest.raises(InputError, match="exactly one target"):
        prune_units(model, batches, target_flops=0.5, target_latency=2.0)
