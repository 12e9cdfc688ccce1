# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report, as SVG that stands inside a page and takes its colours from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyprune.errors import InputError
from pyprune.report import maps
from pyprune.report.document import Document, Model, Share
from pyprune.report.sections import accuracies, shortened
from pyprune.report.svg import INK, RULE, Figure, finish, styled

# Told apart without colour vision, on white and on black.
_COLOURS = ("#3f8fd2", "#e07b39", "#2fa37c", "#b667c9", "#d1495b", "#a08a1a", "#7d8590", "#c2738f")
_MARKERS = "osD^vPX*"
_LAYERS = 48  # more would be too small to see


def draw(document: Document) -> dict[str, list[Figure]]:
    """All pictures, by the key of their section.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("pictures need matplotlib", hint="pip install 'pyprune[report]'") from None
    found: dict[str, list[Figure]] = {}
    with styled():
        for key, figures in (
            ("robustness", _against_sparsity(document.models)),
            ("units", (figure for model in document.models for figure in _unit_map(model))),
            ("layers", _layer_errors(document.models)),
            ("masks", (figure for model in document.models for figure in _mask_map(model))),
        ):
            found[key] = list(figures)
    return found


@dataclass(frozen=True)
class _Point:
    """A model at its sparsity, in per cent."""

    sparsity: float
    share: Share
    method: str


def _against_sparsity(models: Sequence[Model]) -> Iterator[Figure]:
    accuracy = list(_points(models, accuracies(models)))
    aua = list(_points(models, {m.name: m.attack.aua for m in models if m.attack is not None}))
    panels = [(label, points) for label, points in (("accuracy", accuracy), ("accuracy under attack", aua)) if points]
    if not panels or all(point.sparsity == 0 for _, points in panels for point in points):
        return
    figure, axes = _subplots(len(panels), wide=4.4 if len(panels) > 1 else 6.4, high=3.3)
    methods = list(dict.fromkeys(point.method for _, points in panels for point in points if point.sparsity > 0))
    places = [point.sparsity for _, points in panels for point in points if point.sparsity > 0]
    handles: dict[str, Any] = {}
    for axis, (label, points) in zip(axes, panels, strict=True):
        for point in points:
            if point.sparsity == 0:
                axis.axhline(100 * point.share.value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
                axis.annotate(
                    point.method,
                    (1, 100 * point.share.value),
                    (-2, 3),
                    ("axes fraction", "data"),
                    "offset points",
                    ha="right",
                    fontsize=8,
                    color=INK,
                )
        for place, method in enumerate(methods):
            line = sorted((p for p in points if p.method == method and p.sparsity > 0), key=lambda p: p.sparsity)
            if line:
                # Side by side, so that intervals at one sparsity do not hide each other.
                shift = 0.012 * (max(places) - min(places) or 1.0) * (place - (len(methods) - 1) / 2)
                handles[method] = _line(axis, line, shift, place)
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlabel("zeros in the pruned matrices, %")
        axis.set_ylabel(f"{label}, %")
        axis.grid(axis="y", color=RULE, linewidth=0.6)
    _legend(figure, handles)
    listed = "; ".join(
        f"{label}: " + ", ".join(f"{p.method} at {p.sparsity:.3g} % zeros {100 * p.share.value:.1f} %" for p in points)
        for label, points in panels
    )
    yield finish(figure, "against-sparsity", "Accuracy against sparsity, with 95 % intervals", listed)


def _points(models: Sequence[Model], shares: dict[str, Share | None]) -> Iterator[_Point]:
    for model in models:
        share = shares.get(model.name)
        if share is None:
            continue
        if model.kind in ("dense", "average"):
            yield _Point(0.0, share, model.kind)
        elif "linear_weights" in model.sparsity:
            yield _Point(100 * model.sparsity["linear_weights"], share, model.method or model.name)


def _line(axis: Any, points: Sequence[_Point], shift: float, place: int) -> Any:
    values = [100 * point.share.value for point in points]
    ends = [(p.share.low, p.share.high) for p in points]
    below = [100 * (p.share.value - low) if low is not None else 0.0 for p, (low, _) in zip(points, ends, strict=True)]
    above = [
        100 * (high - p.share.value) if high is not None else 0.0 for p, (_, high) in zip(points, ends, strict=True)
    ]
    return axis.errorbar(
        [point.sparsity + shift for point in points],
        values,
        yerr=[[max(0.0, value) for value in below], [max(0.0, value) for value in above]],
        color=_COLOURS[place % len(_COLOURS)],
        marker=_MARKERS[place % len(_MARKERS)],
        markersize=5,
        linewidth=1.6,
        elinewidth=1.0,
        capsize=2.5,
    )


def _layer_errors(models: Sequence[Model]) -> Iterator[Figure]:
    found = [model for model in models if any(layer.error for layer in model.layers)]
    names = list(dict.fromkeys(layer.name for model in found for layer in model.layers))
    if not found:
        return
    figure, (axis,) = _subplots(1, wide=9.0, high=3.3)
    place = {name: index for index, name in enumerate(names)}
    handles: dict[str, Any] = {}
    for index, model in enumerate(found):
        # An error of zero has no place on this axis.
        values = [(place[layer.name], 100 * layer.error) for layer in model.layers if layer.error]
        (handles[model.name],) = axis.plot(
            *zip(*values, strict=True),
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=3.2,
            linewidth=1.2,
        )
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axis.set_ylabel("error of the output, %")
    axis.grid(axis="y", color=RULE, linewidth=0.6)
    _block_ticks(axis, names)
    _legend(figure, handles)
    means = ", ".join(f"{m.name} {100 * m.mean_error:.3g} %" for m in found if m.mean_error is not None)
    yield finish(figure, "layer-errors", "Error of each layer, from the first to the last", f"Mean errors: {means}")


def _block_ticks(axis: Any, names: Sequence[str]) -> None:
    starts: dict[str, int] = {}
    for index, short in enumerate(shortened(names).values()):
        starts.setdefault(maps.block_of(short)[0], index)
    step = max(1, math.ceil(len(starts) / 24))
    ticks = list(starts.items())[::step]
    axis.set_xticks([index for _, index in ticks], [block for block, _ in ticks])
    axis.set_xlabel("first matrix of block")
    axis.set_xlim(-0.7, len(names) - 0.3)


def _unit_map(model: Model) -> Iterator[Figure]:
    """Heads as cells and neurons as bars, a row for each layer."""
    layers = model.units[:_LAYERS]
    if not layers:
        return
    from matplotlib.patches import Rectangle

    widest = max(1, *(len(layer.heads) for layer in layers))
    figure, (heads, neurons) = _subplots(2, wide=4.5, high=0.5 + 0.24 * len(layers))
    for row, layer in enumerate(layers):
        for column, share in enumerate(layer.heads):
            heads.add_patch(Rectangle((column - 0.4, row - 0.4), 0.8, 0.8, facecolor="none", edgecolor=RULE))
            if share > 0:
                # Filled from below; the axis points down.
                high = 0.8 * share
                heads.add_patch(Rectangle((column - 0.4, row + 0.4 - high), 0.8, high, facecolor=_COLOURS[0]))
    rows = range(len(layers))
    neurons.barh(rows, [layer.of_neurons for layer in layers], height=0.8, color="none", edgecolor=RULE, linewidth=0.8)
    neurons.barh(rows, [layer.neurons for layer in layers], height=0.8, color=_COLOURS[1])
    step = max(1, math.ceil(widest / 16))
    heads.set_xticks(range(0, widest, step))
    heads.set_xlim(-0.7, widest - 0.3)
    heads.set_xlabel("head" if all(layer.named for layer in layers) else "heads (how many, not which)")
    neurons.set_xlabel("neurons")
    neurons.locator_params(axis="x", nbins=5)
    for axis in (heads, neurons):
        axis.set_ylim(len(layers) - 0.4, -0.6)
        axis.set_yticks(list(rows)[:: max(1, math.ceil(len(layers) / 24))])
        axis.tick_params(length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    heads.set_ylabel("layer")
    said = "; ".join(
        f"layer {row}: {layer.kept_heads} of {len(layer.heads)} heads, {layer.neurons} of {layer.of_neurons} neurons"
        for row, layer in enumerate(layers)
    )
    yield finish(figure, f"units-{model.name}", f"{model.name}: heads and neurons that are left", said)


def _mask_map(model: Model) -> Iterator[Figure]:
    grids = maps.grids(model)
    if not grids:
        return
    import numpy as np

    values = np.concatenate([grid[np.isfinite(grid)] for grid in (g.values for g in grids)])
    low, high = (float(v) for v in np.percentile(values, [1, 99]))
    figure, axes = _subplots(len(grids), wide=9.0, high=0.62, stacked=True)
    image: Any = None
    for axis, grid in zip(axes, grids, strict=True):
        image = axis.imshow(
            grid.values, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), aspect="auto", interpolation="none"
        )
        axis.set_yticks([])
        axis.set_ylabel(grid.kind, rotation=0, ha="right", va="center")
        axis.set_xticks([])
        for side in axis.spines.values():
            side.set_visible(False)
    axes[-1].set_xticks(grids[-1].centres, grids[-1].blocks)
    axes[-1].tick_params(length=0)
    axes[-1].set_xlabel("block")
    bar = figure.colorbar(image, ax=axes, fraction=0.025, pad=0.015)
    bar.set_label("share kept", color=INK, fontsize=8)
    bar.ax.tick_params(labelsize=7.5, colors=INK)
    bar.outline.set_visible(False)
    said = f"Most parts of the matrices keep between {100 * low:.0f} and {100 * high:.0f} % of their weights"
    yield finish(figure, f"mask-{model.name}", f"{model.name}: density of the masks", said)


def _subplots(count: int, *, wide: float, high: float, stacked: bool = False) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure as Canvas

    rows, columns = (count, 1) if stacked else (1, count)
    height = high * rows + (0.6 if stacked else 0.0)
    figure = Canvas(figsize=(wide * columns, height), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(wspace=0.08)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(labelsize=8, colors=INK)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set(fontsize=9, color=INK)
    return figure, axes


def _legend(figure: Any, handles: dict[str, Any]) -> None:
    # A label that begins with "_" would be left out.
    labels = [name.lstrip("_") or "?" for name in handles]
    figure.legend(
        list(handles.values()),
        labels,
        loc="outside upper left",
        ncols=min(4, len(labels)),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )
