# SPDX-License-Identifier: Apache-2.0
"""A report as a short table that a person understands."""

from __future__ import annotations

from typing import Any

from pyprune.commands import common

DENOMINATORS = {
    "linear_weights": "of the weights of the pruned matrices",
    "encoder_parameters": "of all encoder parameters",
    "encoder_without_norms": "of the encoder without LayerNorm",
    "encoder_and_embeddings": "of encoder and embeddings",
    "all_parameters": "of all parameters of the model",
    "encoder_macs": "of the encoder's multiply-adds",
    "heads_and_neurons": "of heads and neurons (nothing reads them any more)",
}


def prune_text(report: dict[str, Any], saved: str | None) -> str:
    """Say what was done, what is left, what it cost."""
    layers = report["layers"]
    worst = max(layers, key=lambda layer: float(layer["error"]))
    rows: list[tuple[str, str]] = [("method", _method(report))]
    for index, (name, value) in enumerate(report["sparsity"].items()):
        rows.append(("zeros" if index == 0 else "", f"{common.percent(value)} {DENOMINATORS.get(name, name)}"))
    rows.append(
        ("layer error", f"{common.percent(report['mean_error'])} of the output's energy, mean of {len(layers)} layers")
    )
    rows.append(("", f"{common.percent(worst['error'])} in the worst, {worst['name']}"))
    rows += cost_rows(report, seconds_text(report["seconds"]))
    noted = [layer for layer in layers if layer.get("notes")]
    if noted:
        rows.append(("note", f"{noted[0]['name']}: {noted[0]['notes'][0]}"))
    if len(noted) > 1:
        rows.append(("", f"{len(noted) - 1} more layers have notes, see pyprune.json"))
    rows.append(("saved in", saved or "nowhere (no --output was given)"))
    return common.table(rows)


def cost_rows(report: dict[str, Any], time: str) -> list[tuple[str, str]]:
    """Time, memory and accuracy, which every report ends with."""
    rows = [("time", time)]
    if report["memory"].get("peak"):
        rows.append(("peak memory", f"{common.mebibytes(report['memory']['peak'])}, all of the process"))
    return rows + evaluation_rows(report.get("evaluation"))


def evaluation_rows(evaluation: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Dense beside pruned."""
    if evaluation is None:
        return []
    dense, pruned = evaluation["dense"], evaluation["pruned"]
    if dense["metric"] == "perplexity":
        values = (
            f"{dense['value']:.4g} dense -> {pruned['value']:.4g} pruned ({pruned['predicted']:,} tokens predicted)"
        )
        return [("perplexity", values), ("", f"{evaluation['source']}")]
    rows: list[tuple[str, str]] = []
    if dense["metric"] != "accuracy":
        rows.append((dense["metric"], f"{dense['value']:.4f} dense -> {pruned['value']:.4f} pruned"))
    low, high = pruned["interval"]
    rows.append(
        (
            pruned.get("accuracy_is", "accuracy"),
            f"{common.percent(dense['accuracy'])} dense -> {common.percent(pruned['accuracy'])} pruned "
            f"({dense['correct']} -> {pruned['correct']} of {pruned['total']}; 95 % interval of the latter "
            f"{100 * low:.1f} to {100 * high:.1f})",
        )
    )
    comparison = evaluation["comparison"]
    rows.append(("", f"same answer as the dense model on {common.percent(comparison['same_answer'], 1)} of the rows"))
    rows.append(("", f"{evaluation['source']}"))
    return rows


def plan_text(plan: dict[str, Any]) -> str:
    """Put a dry run into words."""
    data, memory = plan["data"], plan["memory"]
    shapes: dict[tuple[int, int, int], int] = {}
    for layer in plan["layers"]:
        key = (layer["rows"], layer["cols"], layer["kept"])
        shapes[key] = shapes.get(key, 0) + 1
    gone = common.percent(1 - plan["kept"] / plan["weights"])
    total = f"{plan['kept']:,} of {plan['weights']:,} weights stay ({gone} go)"
    rows: list[tuple[str, str]] = [
        ("method", f"{plan['method']}: {plan['pattern']}, solver {plan['solver']}"),
        ("layers", f"{len(plan['layers'])} linear layers"),
    ]
    rows += [
        ("", f"{count} x [{out}, {into}], {kept:,} weights kept in each") for (out, into, kept), count in shapes.items()
    ]
    rows.append(("weights", total))
    rows.append(("calibration", f"{data['sentences']:,} rows, {data['tokens']:,} tokens in {data['batches']} batches"))
    where = "in all, never the whole model at once" if plan["streaming"] else "beyond the model as loaded"
    rows.append(("memory", f"about {common.mebibytes(memory['total'])} {where}, of it"))
    rows += [
        ("", f"{common.mebibytes(memory[name])} {name.replace('_', ' ')}")
        for name in memory
        if name not in ("total", "disk") and memory[name]
    ]
    if memory.get("disk"):
        what = "for journal, result and --spill" if plan["streaming"] else "in --spill while it runs"
        rows.append(("disk", f"{common.mebibytes(memory['disk'])} {what}"))
    rows += [("note", note) for note in plan.get("notes", ())]
    rows.append(("", "dry run: nothing was changed or written"))
    return common.table(rows)


def seconds_text(seconds: dict[str, float]) -> str:
    """In all, and by stage."""
    text = common.duration(seconds["total"])
    parts = [f"{name} {common.duration(value)}" for name, value in seconds.items() if name != "total" and value >= 0.05]
    return f"{text} ({', '.join(parts)})" if parts else text


def _method(report: dict[str, Any]) -> str:
    return f"{report['method']}, {report['pattern']}, solver {report['solver']}"
