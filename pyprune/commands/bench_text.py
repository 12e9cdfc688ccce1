# SPDX-License-Identifier: Apache-2.0
"""The records of ``pyprune bench`` as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyprune.commands import common


def spmm_table(document: Mapping[str, Any]) -> str:
    """A row for each case and judged kernel: its time, the best dense one, the best other sparse one."""
    from pyprune.bench import verdict

    judged = verdict.subjects(document)
    rows = []
    for subject in judged:
        for each in verdict.comparisons(document, subject):
            case = each.case
            rows.append(
                (
                    *((subject,) if len(judged) > 1 else ()),
                    "x".join(map(str, case["shape"])),
                    str(case["tokens"]),
                    f"{100 * case['sparsity']:g} %",
                    case["dtype"],
                    _microseconds(each.seconds),
                    *_beside(each.dense, each.gain),
                    *_beside(each.sparse, each.lead),
                )
            )
    header = ["weight", "tokens", "zeros", "dtype", "µs", "dense µs", "times", "", "sparse µs", "times", ""]
    first = 0
    if len(judged) > 1:
        header, first = ["kernel", *header], 1
    header[first + 7], header[first + 10] = "best dense", "best other sparse"
    right = [first + column for column in (1, 2, 4, 5, 6, 8, 9)]
    if not rows:
        return "nothing was timed"
    missing = [f"{name}: {reason}" for name, reason in document["missing"].items()]
    return "\n".join([common.table(rows, header, right=right), *missing])


def model_table(document: Mapping[str, Any]) -> str:
    """A row for each case and candidate, and one table of sizes and accuracy."""
    rows = []
    for case in document["cases"]:
        base = None
        for name, result in case["results"].items():
            if result["status"] != "timed":
                rows.append((str(case["batch"]), str(case["length"]), name, result["status"], *[""] * 5))
                continue
            base = base or result["median"]
            rows.append(
                (
                    str(case["batch"]),
                    str(case["length"]),
                    name,
                    *(f"{1e3 * result[key]:.3g}" for key in ("p50", "p90", "p99")),
                    f"{base / result['median']:.2f}",
                    f"{result['sentences_per_second']:.4g}",
                    f"{result['tokens_per_second']:.4g}",
                )
            )
    header: tuple[str, ...] = (
        "batch",
        "length",
        "candidate",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "times",
        "sentences/s",
        "tokens/s",
    )
    parts = [common.table(rows, header, right=(0, 1, 3, 4, 5, 6, 7, 8)) if rows else "nothing was timed"]
    parts += [
        "",
        common.table(_candidates(document), ("candidate", "memory", "of it the model", "judged"), right=(1, 2, 3)),
    ]
    disk = [
        (which, *(_bytes(entry["disk"][key]) for key in ("folder", "weights", "linears")))
        for which, entry in document["models"].items()
    ]
    parts += ["", common.table(disk, ("on disk", "folder", "weights", "encoder's linears"), right=(1, 2, 3))]
    parts += [f"{name}: {reason}" for name, reason in document["missing"].items()]
    return "\n".join(parts)


def _candidates(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, entry in document["candidates"].items():
        memory, evaluation = entry["memory"] or {}, entry["evaluation"]
        rows.append(
            (
                name,
                _bytes(memory.get("process")),
                _bytes(memory.get("model")),
                "" if evaluation is None else _value(evaluation),
            )
        )
    return rows


def _value(evaluation: Mapping[str, Any]) -> str:
    metric, value = evaluation["metric"], evaluation["value"]
    shown = f"{value:.4g}" if metric in ("perplexity", "matthews", "f1") else common.percent(value)
    return f"{metric} {shown}"


def _beside(other: tuple[str, float] | None, ratio: float | None) -> tuple[str, str, str]:
    if other is None or ratio is None:
        return "", "", ""
    return _microseconds(other[1]), f"{ratio:.2f}", other[0]


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


def _bytes(size: float | None) -> str:
    if size is None:
        return ""
    return common.mebibytes(size) if size >= 2**20 else f"{size / 2**10:.0f} KiB"
