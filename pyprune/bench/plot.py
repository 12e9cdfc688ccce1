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
_SHADES = ("#f2a65a", "#e0662f", "#b02e0c", "#5c1007")
_GREY, _FAINT, _INK = "#9a9a9a", "#f1f1f1", "#222222"
_MODELS = {"dense": "#8a8f98", "pruned": "#f2b48f", "ours": "#c2410c"}


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
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import NullLocator

    tokens = sorted({each.case["tokens"] for each in found})
    sparsities = sorted({each.case["sparsity"] for each in found})
    shades = LinearSegmentedColormap.from_list("zeros", _SHADES)
    axis.set(xscale="log", yscale="log", ylim=(min(0.5, *gains) / 1.25, max(2.0, *gains) * 1.25))
    axis.set_xlim(tokens[0] / 1.4, tokens[-1] * (tokens[-1] / tokens[0]) ** 0.22 * 1.4)  # room for the labels
    axis.set_xticks(tokens, [str(count) for count in tokens])
    axis.xaxis.set_minor_locator(NullLocator())
    _ratio_axis(axis.yaxis)
    _one_line(axis)
    ends: list[tuple[float, str, Any]] = []
    for sparsity in sparsities:
        line = sorted(
            (each for each in found if each.case["sparsity"] == sparsity), key=lambda each: int(each.case["tokens"])
        )
        shade = shades(sparsities.index(sparsity) / max(1, len(sparsities) - 1))
        rivals = [(each.case["tokens"], value) for each in line if (value := _rival_gain(each)) is not None]
        if rivals:
            axis.plot(*zip(*rivals, strict=True), color=_GREY, linewidth=0.9, linestyle=(0, (3, 2)), zorder=2)
            ends.append((rivals[-1][1], f"{100 * sparsity:g} %", _GREY))
        values = [(each.case["tokens"], each.gain or 0.0) for each in line]
        axis.plot(*zip(*values, strict=True), color=shade, linewidth=1.8, marker="o", markersize=3.5, zorder=3)
        ends.append((values[-1][1], f"{100 * sparsity:g} %: {_plain(values[-1][1], 0)} x", shade))
    _labels(axis, tokens[-1], ends)


def _labels(axis: Any, right: float, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Name the lines at their right ends, from the bottom up and so far apart that they can be read."""
    low, high = (math.log(value) for value in axis.get_ylim())
    least = 0.062 * (high - low)
    height = -math.inf
    for value, text, color in sorted(ends, key=lambda end: end[:2]):
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
    """Draw ``bench model``: a panel for each case, a bar for each candidate, as multiples of the first dense one.

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
    timed = {}
    for case in document["cases"]:
        results = case["results"].items()
        timed[case["length"], case["batch"]] = {
            name: each["median"] for name, each in results if each["status"] == "timed"
        }
    names = _unique(name for case in timed.values() for name in case)
    base = next((name for name in names if entries[name]["model"] == "dense"), None)
    timed = {key: case for key, case in timed.items() if base in case}
    if base is None or not timed:
        raise InputError("nothing to draw: no dense model was timed")
    lengths, batches = (_unique(key[place] for key in timed) for place in (0, 1))
    figure, axes = _figure(len(lengths), len(batches), wide=3.9, high=0.95 + 0.27 * len(names))
    limit = max(case[base] / seconds for case in timed.values() for seconds in case.values())
    for row, length in zip(axes, lengths, strict=True):
        for axis, batch in zip(row, batches, strict=True):
            words = "real sentences" if length == "real" else f"{length} tokens"
            axis.set_title(f"batch {batch}, {words}", fontsize=9, color=_INK)
            _model_panel(axis, names, timed.get((length, batch), {}), base, entries)
            axis.set_xlim(0, max(1.0, limit) * 1.55)
        row[0].set_yticks(range(len(names)), names)
    for axis in axes[-1]:
        axis.set_xlabel(f"times as fast as {base}")
    _save(figure, "Median latency of a batch, as a multiple of the dense model's speed", document, path)


def _model_panel(
    axis: Any, names: Sequence[str], timed: Mapping[str, float], base: str, entries: Mapping[str, Any]
) -> None:
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), [])
    axis.axvline(1.0, color=_INK, linewidth=0.9, zorder=3)
    axis.xaxis.set_major_formatter(lambda value, position: f"{value:g} x")
    for place, name in enumerate(names):
        if name not in timed:
            axis.annotate("not timed", (1.0, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
            continue
        gain = timed[base] / timed[name]
        colour = _MODELS["ours" if entries[name].get("ours") else entries[name]["model"]]
        axis.barh(place, gain, color=colour, height=0.7, zorder=2)
        axis.annotate(
            f"{gain:.2f} x   {_milliseconds(timed[name])}",
            (max(gain, 1.0), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=_INK,
            fontweight="bold" if entries[name].get("ours") else "normal",
        )


def _figure(rows: int, columns: int, *, wide: float, high: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib", hint="pip install matplotlib") from None
    figure = Figure(figsize=(max(5.5, wide * columns), high * rows + 0.9), facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.tick_params(labelsize=7.5, colors=_INK)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set(fontsize=8, color=_INK)
    return figure, axes


def _one_line(axis: Any) -> None:
    """The line at 1 x, and shade where dense is faster."""
    low = axis.get_ylim()[0]
    axis.axhspan(low, 1.0, color=_FAINT, zorder=0)
    axis.axhline(1.0, color=_INK, linewidth=0.9, zorder=1)
    axis.annotate(
        "slower than dense",
        (0.02, low),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=6.5,
        color="#777777",
        style="italic",
    )


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
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
