# SPDX-License-Identifier: Apache-2.0
"""Draws error against time, both as multiples of SparseGPT's, from the JSON lines of `run.py`.

One panel a pattern. A labelled marker is a solver's geometric mean over the problems of the panel, hollow where it was
not run on all of them; the small dots are the problems. The line joins the solvers that no other beats in both. The
file is the same to the last byte for the same results and the same matplotlib:

    python benchmarks/solver/plot.py benchmarks/results/2026-11-21-solver.jsonl
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `common` and this folder, as `solver`, are beside each other.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import RESULTS
from solver import records

from pyprune.errors import InputError

OUTPUT = RESULTS.parents[1] / "docs" / "solver-pareto.svg"
OURS = "#c2410c"
OTHERS = {"public": "#404040", "torch": "#808080"}
MARKERS = {"pyprune": "o", "public": "s", "torch": "^"}


@dataclass(frozen=True)
class Mark:
    """One solver in one panel.

    Attributes
    ----------
    solver : str
    time, error : float
        Geometric means of the ratios to SparseGPT.
    points : tuple of (float, float)
        Time and error by problem.
    whole : bool
        It was run on every problem of the panel.
    """

    solver: str
    time: float
    error: float
    points: tuple[tuple[float, float], ...]
    whole: bool

    @property
    def origin(self) -> str:
        """`pyprune`, `public` or `torch`."""
        return self.solver.partition(".")[0]


def panels(lines: Sequence[records.Line]) -> dict[str, list[Mark]]:
    """The marks of each pattern, from the fastest to the slowest.

    Raises
    ------
    InputError
        No line can be set against SparseGPT.
    """
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    problems: dict[str, set[str]] = {}
    for (problem, pattern), ratios in records.beside_sparsegpt(lines).items():
        for ratio in ratios:
            if ratio.seconds and ratio.error:
                problems.setdefault(pattern, set()).add(problem)
                solvers = points.setdefault(pattern, {})
                solvers.setdefault(ratio.line["solver"], []).append((ratio.seconds, ratio.error))
    if not points:
        raise InputError("nothing to draw: no solver was run beside SparseGPT", hint="run.py without --solvers")
    return {
        pattern: sorted(
            (
                Mark(name, _mean(p[0] for p in found), _mean(p[1] for p in found), tuple(found), whole)
                for name, found in points[pattern].items()
                for whole in [len(found) == len(problems[pattern])]
            ),
            key=lambda mark: (mark.time, mark.solver),
        )
        for pattern in sorted(points)
    }


def _mean(values: Any) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def front(marks: Sequence[Mark]) -> list[Mark]:
    """The marks that no other beats in time and error, from the fastest on; those run on all problems only."""
    best, found = math.inf, []
    for mark in sorted((mark for mark in marks if mark.whole), key=lambda mark: (mark.time, mark.error)):
        if mark.error < best:
            best = mark.error
            found.append(mark)
    return found


def draw(marks_by_pattern: Mapping[str, Sequence[Mark]], title: str, path: Path) -> None:
    """Write the figure.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("drawing needs matplotlib", hint="pip install matplotlib") from None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": "pyprune", "svg.fonttype": "none", "font.size": 8.0, "axes.linewidth": 0.6}
    columns = min(2, len(marks_by_pattern))
    rows = -(-len(marks_by_pattern) // columns)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6 * columns, 3.6 * rows + 0.5), dpi=72)  # a pixel is a point, as in the file
        renderer = FigureCanvasAgg(figure).get_renderer()
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(marks_by_pattern) :]:
            axis.set_visible(False)
        for axis, (pattern, marks) in zip(axes.flat, marks_by_pattern.items(), strict=False):
            _panel(axis, pattern, marks)
        figure.suptitle(title, fontsize=9)
        figure.tight_layout()
        for axis, marks in zip(axes.flat, marks_by_pattern.values(), strict=False):
            _labels(axis, marks, renderer)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _panel(axis: Any, pattern: str, marks: Sequence[Mark]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set(xscale="log", yscale="log", xlabel="time, times SparseGPT's", ylabel="error, times SparseGPT's")
    axis.set_title(pattern if ":" in pattern else f"{100 * float(pattern):g} %", fontsize=9)
    axis.xaxis.set_major_formatter(_plain)
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(_plain)
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.axhline(1.0, color="#dddddd", linewidth=0.6, zorder=0)
    axis.axvline(1.0, color="#dddddd", linewidth=0.6, zorder=0)
    best = front(marks)
    axis.plot([mark.time for mark in best], [mark.error for mark in best], color="#bbbbbb", linewidth=0.8, zorder=1)
    for mark in marks:
        color, marker = _colour(mark), MARKERS[mark.origin]
        axis.scatter(*zip(*mark.points, strict=True), s=3, color=color, alpha=0.35, linewidths=0, zorder=2)
        face = color if mark.whole else "white"
        axis.scatter([mark.time], [mark.error], s=22, marker=marker, facecolors=face, edgecolors=color, zorder=3)
    axis.margins(0.12)


def _plain(value: float, position: int) -> str:
    return f"{value:g}"


def _colour(mark: Mark) -> str:
    return OURS if mark.origin == "pyprune" else OTHERS[mark.origin]


def _labels(axis: Any, marks: Sequence[Mark], renderer: Any) -> None:
    """Name every mark where no other name or mark is; as near as can be."""
    centres = [axis.transData.transform((mark.time, mark.error)) for mark in marks]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in centres]
    frame = axis.get_window_extent(renderer)
    places = [(dx, dy) for far in (6, 14, 24, 36) for dx, dy in _around(far)]
    for mark, own in zip(marks, taken[: len(marks)], strict=True):
        best = None
        for dx, dy in places:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = axis.annotate(
                mark.solver,
                (mark.time, mark.error),
                (dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
                color=_colour(mark),
                fontsize=6.5,
            )
            box = text.get_window_extent(renderer).extents
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            crossed = sum(_overlap(box, other) for other in taken if other is not own) + (0 if inside else 1e6)
            if best is None or crossed < best[0]:
                if best is not None:
                    best[1].remove()
                best = (crossed, text, tuple(box))
            else:
                text.remove()
            if crossed == 0:
                break
        assert best is not None
        taken.append(best[2])


def _around(far: int) -> list[tuple[int, int]]:
    return [(far, 0), (-far, 0), (far, far), (-far, far), (far, -far), (-far, -far), (0, far + 2), (0, -far - 2)]


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def title_of(lines: Sequence[records.Line]) -> str:
    """What was measured, on what."""
    problems = {line["problem"] for line in lines}
    machine, threads = lines[0]["machine"], lines[0]["threads"]
    return (
        f"Layer error and time relative to SparseGPT, {len(problems)} {'layer' if len(problems) == 1 else 'layers'}; "
        f"{machine['cpu']}, {threads} {'thread' if threads == 1 else 'threads'}, torch {machine['torch']}\n"
        "marks: geometric means over the layers (hollow: not run on all of them); dots: the layers"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the newest results, or those of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="JSON lines of run.py (default: the newest)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: docs/solver-pareto.svg")
    parser.add_argument("--threads", type=int, help="only runs with so many threads")
    options = parser.parse_args(arguments)
    try:
        path = options.results or max(RESULTS.glob("*-solver.jsonl"), default=None)
        if path is None or not path.is_file():
            raise InputError("no results to draw", seen=str(path or RESULTS), hint="run benchmarks/solver/run.py")
        lines = [line for line in records.read(path) if options.threads in (None, line["threads"])]
        marks = panels(lines)
        draw(marks, title_of(lines), options.output)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
