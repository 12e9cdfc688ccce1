# SPDX-License-Identifier: Apache-2.0
"""The report of a run that pruned heads and neurons, in the words of all reports."""

from __future__ import annotations

from typing import Any

import torch

from pyprune.budgets import MEASURES, unit_costs
from pyprune.methods import accounting
from pyprune.methods.report import Clock, circumstances
from pyprune.methods.unit_plan import UnitPlan, asked
from pyprune.methods.unit_request import UnitRequest
from pyprune.methods.unit_run import UnitRun
from pyprune.units import Units


def make_unit_report(
    request: UnitRequest,
    plan: UnitPlan,
    run: UnitRun,
    *,
    sha256: str,
    device: torch.device,
    settings: dict[str, Any],
    clock: Clock,
) -> dict[str, Any]:
    """JSON-able; :func:`pyprune.methods.prune_units` says what is in it.

    Parameters
    ----------
    request, plan
    run : UnitRun
        Finished.
    sha256 : str
        Of the model as given.
    device : torch.device
        Where it ran.
    settings : dict
        Those of the method and of the data.
    clock : Clock
    """
    units = run.units()
    counts = _counts(run, units)
    errors = [record["error"] for record in run.records if "error" in record]
    return {
        "method": plan.method,
        "pattern": asked(request.target.measure, request.target.share),
        **circumstances(run.model, run.adapter, sha256=sha256, device=device),
        "data": run.calibration.to_dict(),
        "budget": plan.budget | {"reached": run.costs.total(units)},
        "left": _left(run, units),
        "layers": run.records,
        "mean_error": sum(errors) / len(errors) if errors else None,
        "sparsity": {name: entry["removed"] / entry["total"] for name, entry in counts.items()},
        "counts": counts,
        "seconds": clock.seconds(run.seconds),
        "resumed_blocks": run.resumed,
        "notes": [*plan.notes, *run.notes],
        "seed": request.seed,
        "settings": settings,
        "memory": {"planned": plan.memory.total, **clock.memory(device)},
    }


def _left(run: UnitRun, units: Units) -> dict[str, float]:
    """The part of the dense encoder's units that is left, by everything a budget can be counted in.

    Operations also at the longest sentence.
    """
    lengths = {"": run.calibration.tokens / run.calibration.sentences}
    lengths["_at_longest"] = float(max(batch["input_ids"].shape[1] for batch in run.calibration.batches))
    found = {}
    for measure in MEASURES:
        for suffix, tokens in lengths.items():
            costs = unit_costs(run.dense, measure, tokens)
            found[measure + suffix] = costs.total(units) / costs.total(run.dense)
    del found["parameters_at_longest"]
    if run.costs.measure == "latency":
        found["latency"] = run.costs.total(units) / run.costs.total(run.dense)
    return found


def _counts(run: UnitRun, units: Units) -> dict[str, dict[str, int]]:
    """Removed and total by all denominators; with a unit its biases and its part of attention's own products go too."""
    dense, tokens = run.dense, run.calibration.tokens / run.calibration.sentences
    heads, neurons = (sum(record["units"] - record["kept"] for record in run.records[half::2]) for half in (0, 1))
    total = sum(record["units"] for record in run.records)
    counts = accounting.count(run.model, run.adapter, 0, {"removed": heads + neurons, "total": total}, tokens)
    weights = 4 * dense.hidden * dense.width * heads + 2 * dense.hidden * neurons
    removed = dict.fromkeys(counts, dense.parameters() - units.parameters())
    removed |= {"linear_weights": weights, "encoder_macs": round((dense.macs(tokens) - units.macs(tokens)) / tokens)}
    del removed["heads_and_neurons"]
    for name, count in removed.items():
        counts[name]["removed"] = count
    return counts
