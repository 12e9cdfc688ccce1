# SPDX-License-Identifier: Apache-2.0
"""Tables of `bench_pruned_training.py`: means over seeds, and differences of two cells with intervals.

Two cells are compared on the same seeds and the same rows. The interval is of a bootstrap that draws both: seeds, and
rows of the development set, with replacement.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DRAWS = 4000


def lines(path: Path) -> list[dict[str, Any]]:
    """All lines but the first, which says what was trained on; a last one that was cut off is left out."""
    found = []
    for text in path.read_text().splitlines()[1:] if path.exists() else []:
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return found


def finished(path: Path) -> set[tuple[str, int]]:
    """Cells and seeds that are there."""
    return {(line["cell"], line["seed"]) for line in lines(path)}


def right(line: dict[str, Any]) -> list[int]:
    """Of each row of the development set, whether it was right."""
    bits = bin(int(line["right"], 16))[2:].zfill(line["total"])
    return [int(bit) for bit in bits]


def difference(ours: dict[int, list[int]], theirs: dict[int, list[int]]) -> tuple[float, float, float] | None:
    """Mean over common seeds of the difference in accuracy, in points, and a 95 % interval."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    gaps = [[a - b for a, b in zip(ours[seed], theirs[seed], strict=True)] for seed in seeds]
    rows, chance = len(gaps[0]), random.Random(0)
    means = []
    for _ in range(DRAWS):
        total = [0] * rows
        for _ in seeds:
            picked = chance.choice(gaps)
            total = [a + b for a, b in zip(total, picked, strict=True)]
        means.append(sum(chance.choices(total, k=rows)) / rows / len(seeds))
    means.sort()
    value = sum(sum(gap) for gap in gaps) / rows / len(seeds)
    return tuple(100 * x for x in (value, means[int(0.025 * DRAWS)], means[int(0.975 * DRAWS)]))  # type: ignore[return-value]


def table(found: Iterable[dict[str, Any]]) -> list[str]:
    """One row a cell and sparsity."""
    cells: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for line in found:
        cells.setdefault((line["cell"], line["sparsity"]), []).append(line)
    answers = any("f1" in run for runs in cells.values() for run in runs)
    head = (
        "cell",
        "zeros asked for, %",
        "left, %",
        "runs",
        *(("exact match, %", "F1, %") if answers else ("accuracy, %",)),
    )
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (cell, sparsity), runs in cells.items():
        values = [100 * run["accuracy"] for run in runs]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(runs) > 1 else ""
        mean, left = (sum(numbers) / len(runs) for numbers in (values, [100 * run["left"] for run in runs]))
        f1 = f" {100 * sum(run['f1'] for run in runs) / len(runs):.1f} |" if answers else ""
        rows.append(f"| {cell} | {100 * sparsity:g} | {left:.1f} | {len(runs)} | {mean:.1f}{spread} |{f1}")
    return rows


def compared(found: list[dict[str, Any]], pairs: Iterable[tuple[str, str, float]]) -> list[str]:
    """One row for each pair of cells at a sparsity."""
    rows = ["| cell | against | zeros, % | seeds | difference, points | 95 % |", "|---|---|---|---|---|---|"]
    for ours, theirs, sparsity in pairs:
        sides = [
            {line["seed"]: right(line) for line in found if line["cell"] == cell and line["sparsity"] == sparsity}
            for cell in (ours, theirs)
        ]
        gap = difference(*sides)
        if gap is not None:
            count = len(set(sides[0]) & set(sides[1]))
            value, low, high = gap
            rows.append(
                f"| {ours} | {theirs} | {100 * sparsity:g} | {count} | {value:+.1f} | {low:+.1f} to {high:+.1f} |"
            )
    return rows


def pairs(cells: Iterable[Any], levels: Iterable[float]) -> list[tuple[str, str, float]]:
    """Which cells decide a claim."""
    found = []
    for cell in cells:
        base = {
            "grain": cell.name.replace("grain", "heads"),
            "cap": cell.name.replace("cap-m", "movement")
            .replace("cap-soft", "soft-movement")
            .replace("cap-f", "first-order"),
        }.get(cell.group)
        if ", words of" in cell.name:
            base = f"{cell.name.split(',')[0]}, words trained"
        if cell.name.startswith("movement from sizes"):
            base = cell.name.replace("movement from sizes", "magnitude")
        if " without " in cell.name:
            found.append((cell.name.split(" without ")[0], cell.name, cell.sparsity))
        elif base is not None and base != cell.name:
            found.append((cell.name, base, cell.sparsity))
    return found + [("randomized", "imp", level) for level in levels]


def text(path: Path, cells: Iterable[Any] = (), levels: Iterable[float] = ()) -> str:
    """Both tables, in Markdown."""
    found = lines(path)
    return "\n".join([*table(found), "", *compared(found, pairs(cells, levels))])
