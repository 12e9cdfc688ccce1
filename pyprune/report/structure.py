# SPDX-License-Identifier: Apache-2.0
"""What is known of heads, neurons and tokens that were cut out of a model: from its report, its config, its units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyprune.errors import InputError
from pyprune.report.document import Left
from pyprune.report.parts import Part, read_json
from pyprune.structured.shapes import KEY
from pyprune.structured.unit_file import UNITS
from pyprune.units import Units

_MOST_LAYERS, _MOST_HEADS = 512, 4096  # of a picture
_SIZES = (("num_attention_heads", "n_heads"), ("hidden_size", "dim"), ("intermediate_size", "hidden_dim"))


def read_units(path: Path, report: Part | None, problems: list[str]) -> tuple[Left, ...]:
    """Heads and neurons by layer: those that are named, else as many as the records or the config count; or none."""
    told = read_json(path / UNITS, problems)
    if told:
        try:
            return _of_units(Units.from_json(told.values))
        except InputError as error:
            problems.append(f"the units cannot be read: {error.message}")
    counted = () if report is None else _of_records(list(report.parts("layers")))
    return counted or _of_config(read_json(path / "config.json", []))


def _of_units(units: Units) -> tuple[Left, ...]:
    if len(units.layers) > _MOST_LAYERS or units.heads > _MOST_HEADS:
        raise InputError("too many to be shown")
    found = []
    for layer in units.layers:
        shares = [0.0] * units.heads
        for head, query, value in zip(layer.heads, layer.query, layer.value, strict=True):
            shares[head] = (len(query) + len(value)) / (2 * max(1, units.width))
        found.append(Left(tuple(shares), len(layer.neurons), units.neurons))
    return tuple(found)


def _of_records(records: Sequence[Part]) -> tuple[Left, ...]:
    """From the counts of a report, which has a record for each half of a layer."""
    halves: dict[str, list[tuple[int, int]]] = {"heads": [], "neurons": []}
    for record in records:
        kind, units, kept = record.values.get("kind"), record.count("units"), record.count("kept")
        if kind in ("heads", "neurons") and units is not None and kept is not None and kept <= units:
            halves[kind].append((kept, units))
    heads, neurons = halves.values()
    if not heads or len(heads) != len(neurons) or len(heads) > _MOST_LAYERS or max(n for _, n in heads) > _MOST_HEADS:
        return ()
    return tuple(
        Left((1.0,) * kept + (0.0,) * (count - kept), *of, named=False)
        for (kept, count), of in zip(heads, neurons, strict=True)
    )


def _of_config(config: Part | None) -> tuple[Left, ...]:
    """From the sizes in the config of a compact model."""
    if config is None or not isinstance(config.values.get(KEY), dict):
        return ()
    layers = list(config.part(KEY).parts("layers"))
    heads, hidden, neurons = (next((n for name in names if (n := config.count(name))), 0) for names in _SIZES)
    if not 0 < heads <= min(hidden, _MOST_HEADS) or len(layers) > _MOST_LAYERS:
        return ()
    found = []
    for layer in layers:
        query, value, left = layer.values.get("query"), layer.values.get("value"), layer.count("neurons")
        lists = isinstance(query, list) and isinstance(value, list) and len(query) == len(value) <= heads
        if not lists or left is None or not all(type(n) is int and 0 <= n <= hidden for n in [*query, *value]):  # type: ignore[misc]
            return ()
        shares = [min(1.0, (q + v) * heads / (2 * hidden)) for q, v in zip(query, value, strict=True)]  # type: ignore[arg-type]
        found.append(Left((*shares, *[0.0] * (heads - len(shares))), left, max(left, neurons), named=False))
    return tuple(found)


def read_shares(report: Part) -> dict[str, float]:
    """What is left, by how it is counted; the budget that was asked for is beside it."""
    left = report.part("left")
    found = {key: left.number(key, 0, 1) for key in left.values}
    budget = report.part("budget")
    found["asked"] = budget.number("share", 0, 1)
    return {key: value for key, value in found.items() if value is not None}


def read_vocabulary(report: Part) -> dict[str, int]:
    """Sizes before and after a trimming, as ``tokens before``; nothing unless all are known."""
    told = report.part("vocabulary")
    found = {
        f"{name} {when}": told.part(name).count(when)
        for name in ("tokens", "parameters", "bytes")
        for when in ("before", "after")
    }
    known = {key: value for key, value in found.items() if value is not None}
    return known if len(known) == len(found) else {}


def read_embeddings(report: Part) -> dict[str, int]:
    """Rank and parameters of factored word embeddings; nothing unless all are known."""
    told = report.part("embeddings")
    sizes = told.part("parameters")
    found = {"rank": told.count("rank"), "before": sizes.count("before"), "after": sizes.count("after")}
    known = {key: value for key, value in found.items() if value is not None}
    return known if len(known) == len(found) else {}


def read_stages(report: Part) -> dict[str, float]:
    """Seconds by stage."""
    seconds = report.part("seconds")
    found = {key: seconds.number(key, 0) for key, value in seconds.values.items() if not isinstance(value, dict)}
    return {key: value for key, value in found.items() if value is not None}
