# SPDX-License-Identifier: Apache-2.0
"""Pictures of a benchmark: how many times faster than dense, with a line at 1 x."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyprune.bench.verdict import Comparison, comparisons
from pyprune.errors import InputError

# From few zeros to many; readable on white and in grey.
_SHADES = ("#f2a65a", "#e0662f", "#b02e0c", "#6a1508", "#35060a")
_GREY, _FAINT, _INK = "#9a9a9a", "#f1f1f1", "#222222"
_MODELS = {"dense": "#8a8f98", "pruned": "#c2410c"}


def draw_spmm(document: Mapping[str, Any], subject: str, path: Path) -> None:
    """Draw one kernel of ``bench spmm``: a panel for each shape and dtype, a line for each sparsity over the tokens.

    Parameters
    ----------
    document : mapping
        See :mod:`pyprune.bench.report`.
    subject : str
        The kernel: "pyprune", or a registered one.
    path : Path
        Its suffix decides the format: .png, .svg, .pdf.

    Raises
    ------
    InputError
        matplotlib is not installed, or there is nothing to draw.
    """
    found = [each for each in comparisons(document, subject) if each.gain is not None]
    if not found:
        raise InputError(f"nothing to draw: {subject} was not timed beside a dense product")
    shapes = _unique(tuple(each.case["shape"]) for each in found)
    dtypes = _unique(each.case["dtype"] for each in found)
    figure, axes = _figure(len(dtypes), len(shapes), wide=3.5, high=3.2)
    gains = [value for each in found for value in (each.gain, _rival_gain(each)) if value is not None]
    for row, dtype in zip(axes, dtypes, strict=True):
        for axis, shape in zip(row, shapes, strict=True):
            own = [each for each in found if each.case["dtype"] == dtype and tuple(each.case["shape"]) == shape]
            axis.set_title(f"{shape[0]} x {shape[1]}, {dtype}", fontsize=9, color=_INK)
            _spmm_panel(axis, own, gains)
        row[0].set_ylabel("times as fast as the best dense")
    for axis in axes[-1]:
        axis.set_xlabel("tokens")
    pattern = ", ".join(_unique(each.case["pattern"] for each in found))
    title = f"{subject}: {pattern} zeros, against the best dense product of each case"
    if any(each.sparse for each in found):
        title += "; grey: the best other sparse one"
    _save(figure, title, document, path)


def _spmm_panel(axis: Any, found: Sequence[Comparison], gains: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    tokens = sorted({each.case["tokens"] for each in found})
    sparsities = sorted({each.case["sparsity"] for each in found})
    axis.set(xscale="log", yscale="log", ylim=(min(0.5, *gains) / 1.25, max(2.0, *gains) * 1.25))
    axis.set_xlim(tokens[0] / 1.4, tokens[-1] * (tokens[-1] / tokens[0]) ** 0.22 * 1.4)  # room for the labels
    axis.set_xticks(tokens, [str(count) for count in tokens])
    axis.xaxis.set_minor_locator(NullLocator())
    _ratio_axis(axis.yaxis)
    _one_line(axis, horizontal=True)
    ends = []
    for sparsity in sparsities:
        line = sorted(
            (each for each in found if each.case["sparsity"] == sparsity), key=lambda each: int(each.case["tokens"])
        )
        shade = _SHADES[round((len(_SHADES) - 1) * sparsities.index(sparsity) / max(1, len(sparsities) - 1))]
        rivals = [(each.case["tokens"], value) for each in line if (value := _rival_gain(each)) is not None]
        if rivals:
            axis.plot(*zip(*rivals, strict=True), color=_GREY, linewidth=0.9, linestyle=(0, (3, 2)), zorder=2)
            ends.append((rivals[-1][1], f"{100 * sparsity:g} %", _GREY))
        values = [(each.case["tokens"], each.gain or 0.0) for each in line]
        axis.plot(*zip(*values, strict=True), color=shade, linewidth=1.8, marker="o", markersize=3.5, zorder=3)
        ends.append((values[-1][1], f"{100 * sparsity:g} %: {_plain(values[-1][1], 0)} x", shade))
    _labels(axis, tokens[-1], ends)


def _labels(axis: Any, right: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name the lines at their right ends, from the bottom up and so far apart that they can be read."""
    low, high = (math.log(value) for value in axis.get_ylim())
    least = 0.062 * (high - low)
    height = -math.inf
    for value, text, color in sorted(ends):
        height = max(math.log(value), height + least)
        weight = "normal" if color == _GREY else "bold"
        axis.annotate(
            text,
            (right, math.exp(height)),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=7,
            fontweight=weight,
        )


def draw_model(document: Mapping[str, Any], path: Path) -> None:
    """Draw ``bench model``: a panel for each case, a bar for each candidate, as a multiple of the first dense one.

    Parameters
    ----------
    document : mapping
        See :mod:`pyprune.bench.report`.
    path : Path
        Its suffix decides the format.

    Raises
    ------
    InputError
        matplotlib is not installed, or there is nothing to draw.
    """
    entries = document["candidates"]
    panels = []
    for case in document["cases"]:
        timed = {name: each["median"] for name, each in case["results"].items() if each["status"] == "timed"}
        base = next((name for name in timed if entries[name]["model"] == "dense"), None)
        if base is not None:
            panels.append((case, timed, base))
    if not panels:
        raise InputError("nothing to draw: no dense model was timed")
    most = max(len(timed) for _, timed, _ in panels)
    columns = min(3, len(panels))
    figure, axes = _figure(-(-len(panels) // columns), columns, wide=4.6, high=0.9 + 0.28 * most)
    limit = max(timed[base] / value for _, timed, base in panels for value in timed.values())
    flat = [axis for row in axes for axis in row]
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (case, timed, base) in zip(flat, panels, strict=False):
        _model_panel(axis, case, timed, base, entries, limit)
    _save(
        figure, "Speed of the pruned model as a multiple of the dense one's; median latency of a batch", document, path
    )


def _model_panel(
    axis: Any, case: Mapping[str, Any], timed: Mapping[str, float], base: str, entries: Mapping[str, Any], limit: float
) -> None:
    names = list(timed)
    gains = [timed[base] / timed[name] for name in names]
    length = "real sentences" if case["length"] == "real" else f"{case['length']} tokens"
    axis.set_title(f"batch {case['batch']}, {length}", fontsize=9, color=_INK)
    axis.barh(range(len(names)), gains, color=[_MODELS[entries[name]["model"]] for name in names], height=0.7, zorder=2)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, max(1.0, limit) * 1.5)
    axis.set_xlabel(f"times as fast as {base}")
    _one_line(axis, horizontal=False)
    for place, (name, gain) in enumerate(zip(names, gains, strict=True)):
        text = f"{gain:.2f} x   {_milliseconds(timed[name])}"
        axis.annotate(text, (gain, place), (4, 0), textcoords="offset points", va="center", fontsize=7, color=_INK)


def _figure(rows: int, columns: int, *, wide: float, high: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib", hint="pip install matplotlib") from None
    figure = Figure(figsize=(wide * columns, high * rows + 0.9), facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.tick_params(labelsize=7.5, colors=_INK)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set(fontsize=8, color=_INK)
    return figure, axes


def _one_line(axis: Any, *, horizontal: bool) -> None:
    """The line at 1 x, and shade where dense is faster."""
    if horizontal:
        axis.axhspan(axis.get_ylim()[0], 1.0, color=_FAINT, zorder=0)
        axis.axhline(1.0, color=_INK, linewidth=0.9, zorder=1)
        low = axis.get_ylim()[0]
        axis.annotate(
            "slower than dense", (0.02, low), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize=6.5, color="#777777", style="italic",
        )  # fmt: skip
    else:
        axis.axvline(1.0, color=_INK, linewidth=0.9, zorder=3)


def _ratio_axis(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, position: f"{_plain(value, position)} x")
    axis.set_minor_locator(NullLocator())


def _save(figure: Any, title: str, document: Mapping[str, Any], path: Path) -> None:
    machine = document["machine"]
    threads = machine["threads"]
    facts = f"{machine['cpu']}, {threads} thread{'' if threads == 1 else 's'}, torch {machine['torch']}"
    if document["interrupted"]:
        facts += "; interrupted, cases are missing"
    letters = int(13 * figure.get_figwidth())
    lines = [*textwrap.wrap(title, letters), *textwrap.wrap(f"{facts}, pyprune {machine['pyprune']}", letters)]
    figure.suptitle("\n".join(lines), fontsize=9, color=_INK)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _rival_gain(each: Comparison) -> float | None:
    return each.dense[1] / each.sparse[1] if each.dense and each.sparse else None


def _plain(value: float, position: int) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
