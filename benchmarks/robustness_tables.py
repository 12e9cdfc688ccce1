# SPDX-License-Identifier: Apache-2.0
"""Results of `examples/akr_*.py` as one file with the outcome of every row, and as tables in a document.

    python examples/akr_agnews.py --methods akr wanda sparsegpt magnitude ... --output FOLDER
    python benchmarks/robustness_tables.py FOLDER --name agnews --document docs/robustness.md

writes `results/DATE-robustness-agnews.json` and what stands between `<!-- agnews:begin -->` and `<!-- agnews:end -->`,
and likewise `agnews-diff`: AKR minus its start and minus each other method, with paired intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import Report
from structured_tables import fill_document

from pyprune.attack.statistics import compare

START = "fine-tuned"
METHODS = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT", "akr": "AKR"}
OUTCOMES = {"succeeded": "x", "failed": "o", "skipped": "-"}
KEPT = (
    *("accuracy", "aua", "asr", "intervals", "total", "succeeded", "failed", "skipped", "queries_mean"),
    *("words_changed", "recipe", "seed", "textattack", "max_length", "sha256", "attack"),
)

Records = list[dict[str, Any]]


def read(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Records]]:
    """Cases and records of all finished attacks, by name: the start, then by sparsity and method."""
    cases, records = {}, {}
    for path in sorted(folder.glob("*/attack.json"), key=lambda path: _place(path.parent.name)):
        name, summary = path.parent.name, json.loads(path.read_text())
        found = [json.loads(line) for line in (path.parent / "attack.jsonl").read_text().splitlines()]
        records[name] = sorted(found, key=lambda record: int(record["index"]))
        report = path.parent / "pyprune.json"
        cases[name] = {
            **{key: summary[key] for key in KEPT},
            "layer_error": json.loads(report.read_text())["mean_error"] if report.is_file() else None,
            "outcomes": "".join(OUTCOMES[record["outcome"]] for record in records[name]),
        }
    return cases, records


def _place(name: str) -> tuple[float, int]:
    method, _, part = name.partition("-")
    return (float(part), list(METHODS).index(method)) if method in METHODS else (0.0, 0)


def comparisons(records: dict[str, Records]) -> dict[tuple[str, str], dict[str, Any]]:
    """AKR minus its start and minus each other method at the same sparsity."""
    found = {}
    for name in records:
        method, part = _split(name)
        others = [START, *(f"{other}-{part}" for other in reversed(METHODS) if other != "akr")]
        for other in others if method == "akr" else ():
            if other in records:
                found[name, other] = compare(records[other], records[name])
    return found


def rates(cases: dict[str, dict[str, Any]]) -> list[str]:
    """A row a model."""
    lines = [
        "| model | zeros, % | Acc | Aua | Asr | queries | layer error, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        method, part = _split(name)
        cells = [
            "–" if case[key] is None else f"{100 * case[key]:.1f} ({' to '.join(f'{100 * end:.1f}' for end in ends)})"
            for key, ends in case["intervals"].items()
        ]
        error = "–" if case["layer_error"] is None else f"{100 * case['layer_error']:.1f}"
        queries = "–" if case["queries_mean"] is None else f"{case['queries_mean']:.0f}"
        lines.append(f"| {METHODS.get(method, 'dense')} | {part or 0} | {' | '.join([*cells, queries, error])} |")
    return lines


def differences(found: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """A row a pair."""
    lines = [
        "| difference | Acc | Aua | Asr | stands alone | sign test p |",
        "|---|---|---|---|---|---|",
    ]
    for (name, other), each in found.items():
        part = _split(name)[1]
        title = f"AKR at {part} % − dense" if other == START else f"AKR − {METHODS[_split(other)[0]]}, {part} %"
        cells = [_points(each[key]) for key in ("accuracy", "aua", "asr")]
        alone, chance = f"{each['only_second_stands']} / {each['only_first_stands']}", f"{each['sign_test_p']:.2g}"
        lines.append(f"| {' | '.join([title, *cells, alone, chance])} |")
    return lines


def _points(found: dict[str, Any]) -> str:
    if found["difference"] is None:
        return "–"
    low, high = found["interval"]
    return f"{100 * found['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _split(name: str) -> tuple[str, str]:
    method, _, part = name.partition("-")
    return (method, part) if method in METHODS else (name, "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the results, and fill the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="--output of the script")
    parser.add_argument("--name", required=True, help="of the task: of the file and of the marks")
    parser.add_argument("--document", type=Path, help="Markdown with marks for the tables")
    parser.add_argument("--no-write", action="store_true", help="no file of results")
    options = parser.parse_args(arguments)
    cases, records = read(options.folder)
    found = comparisons(records)
    tables = {options.name: rates(cases), f"{options.name}-diff": differences(found)}
    for lines in tables.values():
        print("\n".join(lines))
    if not options.no_write:
        report = Report(f"robustness-{options.name}")
        report.cases += [{"task": options.name, "name": name, **case} for name, case in cases.items()]
        report.cases += [
            {"task": options.name, "comparison": f"{name} minus {other}", **each}
            for (name, other), each in found.items()
        ]
        report.write()
    if options.document is not None:
        fill_document(options.document, {name: "\n".join(lines) for name, lines in tables.items()})


if __name__ == "__main__":
    main()
