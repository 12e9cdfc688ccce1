# SPDX-License-Identifier: Apache-2.0
"""Reports and plans of pruned heads and neurons as short tables that a person understands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyprune.commands import common
from pyprune.commands.summary import cost_rows, seconds_text

# What may be said of the encoder's units, and in which words; multiply-adds are half of the FLOPs.
_LEFT = {
    "flops": "of the FLOPs of heads and neurons, at the mean length of the calibration text",
    "flops_at_longest": "of their FLOPs at its longest sentence",
    "parameters": "of their parameters",
}


def unit_text(report: dict[str, Any], saved: str | None, storage: str) -> str:
    """Say what was done, what is left, what it cost."""
    layers = report["layers"]
    rows: list[tuple[str, str]] = [("method", report["method"]), ("asked", report["pattern"])]
    for index, (name, words) in enumerate(_LEFT.items()):
        rows.append(("" if index else "left", f"{common.percent(report['left'][name])} {words}"))
    rows.append(("", _units(layers)))
    gone = report["sparsity"]
    rows.append(("removed", f"{common.percent(gone['encoder_parameters'])} of all encoder parameters"))
    rows.append(("", f"{common.percent(gone['all_parameters'])} of all parameters of the model"))
    for number in range(len(layers) // 2):
        rows.append(("" if number else "by layer", f"{number}: {_units(layers[2 * number : 2 * number + 2])}"))
    if report["mean_error"] is not None:
        fitted = [layer for layer in layers if "error" in layer]
        worst = max(fitted, key=lambda layer: float(layer["error"]))
        rows.append(
            ("error", f"{common.percent(report['mean_error'])} of the target's energy, mean of {len(fitted)} halves")
        )
        rows.append(("", f"{common.percent(worst['error'])} in the worst, {worst['name']}"))
    rows += cost_rows(report, seconds_text(report["seconds"]))
    notes = [*report["notes"], *(f"{layer['name']}: {note}" for layer in layers for note in layer.get("notes", ()))]
    rows += [("" if index else "note", note) for index, note in enumerate(notes[:3])]
    if len(notes) > 3:
        rows.append(("", f"{len(notes) - 3} more notes are in pyprune.json"))
    kinds = {"compact": "smaller, for pyprune.load", "dense": "with zeros in place, for plain transformers too"}
    where = "nowhere (no --output was given)" if saved is None else f"{saved} ({kinds.get(storage, storage)})"
    rows.append(("saved in", where))
    return common.table(rows)


def unit_plan_text(plan: dict[str, Any]) -> str:
    """Put a dry run into words."""
    from pyprune.methods.unit_plan import NAMES, asked

    budget, data, memory = plan["budget"], plan["data"], plan["memory"]
    name = NAMES[budget["measure"]]
    rows: list[tuple[str, str]] = [
        ("method", plan["method"]),
        ("asked", asked(budget["measure"], budget["share"])),
        ("budget", f"{budget['allowed']:,} of {budget['dense']:,} {name}, at {plan['tokens']:.1f} tokens a sentence"),
        ("", f"a head costs {budget['head']:,}, a neuron {budget['neuron']:,}"),
        ("units", f"{_count(plan['layers'], 'heads')} heads and {_count(plan['layers'], 'neurons'):,} neurons"),
        ("calibration", f"{data['sentences']:,} rows, {data['tokens']:,} tokens in {data['batches']} batches"),
        ("memory", f"about {common.mebibytes(memory['total'])} beyond the model as loaded"),
    ]
    rows += [("note", note) for note in plan["notes"]]
    rows.append(("", "dry run: nothing was changed or written"))
    return common.table(rows)


def _units(layers: Sequence[dict[str, Any]]) -> str:
    parts = []
    for kind in ("heads", "neurons"):
        kept = sum(layer["kept"] for layer in layers if layer["kind"] == kind)
        parts.append(f"{kept:,} of {_count(layers, kind):,} {kind}")
    return ", ".join(parts)


def _count(layers: Sequence[dict[str, Any]], kind: str) -> int:
    return sum(layer["units"] for layer in layers if layer["kind"] == kind)
