# SPDX-License-Identifier: Apache-2.0
"""Tables and the picture of `docs/structured.md`, from the files that `bench_structured.py` wrote.

    python benchmarks/structured_tables.py benchmarks/results/2026-11-29-structured-*.json --document docs/structured.md

A file of results fills what is between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, and with the stages what is
between `<!-- NAME-stages:begin -->` and its end; NAME is the task's, `sst2`. One whose name ends in `-ablation` becomes
a table of settings. The picture, `structured.svg` beside the document, has a panel for each of the others.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyprune.errors import InputError

Case = Mapping[str, Any]
COLOURS = ("#c2410c", "#1d4ed8", "#404040", "#0f766e", "#808080")
STAGES = ("embed", "measure", "search", "moments", "solve", "rescale", "advance")


def read(path: Path) -> tuple[str, list[Case]]:
    """Name of the task, and its cases."""
    try:
        document = json.loads(path.read_text())
        return str(document["name"]).removeprefix("structured-"), list(document["cases"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no file of results", seen=str(error)) from None


def pruned(cases: Sequence[Case]) -> list[Case]:
    """All but the dense model."""
    return [case for case in cases if case["method"] != "dense"]


def worth(case: Case) -> float:
    """F1 of answers, accuracy of classes."""
    return float(case["f1"] if "f1" in case else case["accuracy"])


def spread(values: Sequence[float], scale: float = 100.0) -> str:
    """Mean ± standard deviation, or what there is of one run."""
    mean = scale * statistics.fmean(values)
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ± {scale * statistics.stdev(values):.1f}"


def accuracies(cases: Sequence[Case]) -> str:
    """A row for each part of the FLOPs removed, a column for each method."""
    runs = pruned(cases)
    methods = list(dict.fromkeys(case["method"] for case in runs))
    rows = []
    for removed in sorted({case["removed"] for case in runs}):
        found = {m: [worth(c) for c in runs if (c["removed"], c["method"]) == (removed, m)] for m in methods}
        count = max(map(len, found.values()))
        cells = (spread(values) if values else "–" for values in found.values())
        rows.append([f"{100 * removed:g} %", str(count), *cells])
    dense = [f"{100 * worth(case):.1f}" for case in cases if case["method"] == "dense"]
    return table(["FLOPs removed", "runs", *methods], [["none (dense)", "", *dense * len(methods)], *rows])


def settings(cases: Sequence[Case]) -> str:
    """A row for each setting and part of the FLOPs removed: accuracy, agreement, divergence, heads and neurons."""
    rows = []
    for case in sorted(pruned(cases), key=lambda case: (-case["removed"], case["divergence"])):
        numbers = (f"{100 * case['accuracy']:.1f}", f"{100 * case['agreement']:.1f}", f"{case['divergence']:.3f}")
        units = (" ".join(map(str, case[kind])) for kind in ("heads", "neurons"))
        rows.append([f"{100 * case['removed']:g} %", f"`{case['method']}`", str(case["samples"]), *numbers, *units])
    head = ["removed", "method", "sentences", "accuracy", "agreement", "divergence", "heads kept", "neurons kept"]
    return table(head, rows)


def stages(cases: Sequence[Case]) -> str:
    """For each method the seconds of a run, the middle one of all, and the stages' parts of it."""
    rows = []
    runs = pruned(cases)
    for method in dict.fromkeys(case["method"] for case in runs):
        own = [case for case in runs if case["method"] == method]
        clock = statistics.median(case["seconds_of"]["total"] for case in own)
        busy = [case["processor_seconds"] for case in own if "processor_seconds" in case]
        parts = [statistics.median(c["seconds_of"].get(s, 0.0) / c["seconds_of"]["total"] for c in own) for s in STAGES]
        shares = ("–" if part == 0 else f"{100 * part:.1f}" for part in parts)
        rows.append([method, f"{clock:.0f}", f"{statistics.median(busy):.0f}" if busy else "–", *shares])
    return table(["method", "seconds", "of a processor", *(f"{stage}, %" for stage in STAGES)], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(text: str, name: str, content: str) -> str:
    """Put ``content`` between the marks of ``name``, if they are there."""
    marks = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"({re.escape(marks[0])}\n).*?({re.escape(marks[1])})", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def fill_document(path: Path, tables: Mapping[str, str]) -> None:
    """Put all tables into a file, by name."""
    text = path.read_text()
    for name, content in tables.items():
        text = fill(text, name, content)
    path.write_text(text)


def draw(tasks: Mapping[str, Sequence[Case]], path: Path) -> None:
    """Accuracy against FLOPs removed: a panel for each task, means joined, shade from the worst seed to the best.

    The file is the same to the last byte for the same results and the same matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("drawing needs matplotlib", hint="pip install matplotlib") from None
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "pyprune", "svg.fonttype": "none", "font.size": 8.0, "axes.linewidth": 0.6}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.4 * len(tasks), 3.1), facecolor="white")
        for axis, (name, cases) in zip(figure.subplots(1, len(tasks), squeeze=False).flat, tasks.items(), strict=True):
            _panel(axis, name, cases)
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _panel(axis: Any, name: str, cases: Sequence[Case]) -> None:
    runs = pruned(cases)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.set(title=name, xlabel="FLOPs removed, %", ylabel="F1, %" if "f1" in cases[0] else "accuracy, %")
    for case in cases:
        if case["method"] == "dense":
            axis.axhline(100 * worth(case), color="#999999", linewidth=0.8, linestyle=(0, (3, 2)))
            axis.annotate("dense", (38, 100 * worth(case)), (0, 3), textcoords="offset points", fontsize=6.5)
    for method, colour in zip(dict.fromkeys(case["method"] for case in runs), COLOURS, strict=False):
        removed = sorted({case["removed"] for case in runs if case["method"] == method})
        found = [[100 * worth(c) for c in runs if (c["removed"], c["method"]) == (part, method)] for part in removed]
        x = [100 * part for part in removed]
        axis.fill_between(x, list(map(min, found)), list(map(max, found)), color=colour, alpha=0.15, linewidth=0)
        axis.plot(x, list(map(statistics.fmean, found)), color=colour, marker="o", markersize=3, label=method)
    axis.legend(frameon=False, fontsize=6.5, loc="lower left")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables; fill a document and draw its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="files of bench_structured.py")
    parser.add_argument("--document", type=Path, help="Markdown with marks for the tables")
    options = parser.parse_args(arguments)
    tasks = dict(map(read, options.results))
    tables = {}
    for name, cases in tasks.items():
        if name.endswith("-ablation"):
            tables[name] = settings(cases)
        else:
            tables |= {name: accuracies(cases), f"{name}-stages": stages(cases)}
    for name, content in tables.items():
        print(f"\n{name}\n\n{content}")
    if options.document is not None:
        fill_document(options.document, tables)
        draw(
            {n: c for n, c in tasks.items() if not n.endswith("-ablation")}, options.document.parent / "structured.svg"
        )


if __name__ == "__main__":
    main()
