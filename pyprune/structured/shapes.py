# SPDX-License-Identifier: Apache-2.0
"""What the config of a smaller model says of its layers: written, and read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.units import LayerShape

KEY = "pyprune"
VERSION = 1


def is_compact(folder: Path) -> bool:
    """Whether the config of a folder says that its layers are smaller than its class makes them."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and KEY in config


def to_config(config: Any, shapes: Sequence[LayerShape]) -> None:
    """Enter sizes into a config of transformers."""
    layers = [{"query": list(s.query), "value": list(s.value), "neurons": s.neurons} for s in shapes]
    setattr(config, KEY, {"version": VERSION, "layers": layers})


def from_config(config: Any, *, layers: int, heads: int, width: int, neurons: int) -> tuple[LayerShape, ...] | None:
    """Sizes that a config states; None of a model that is not compact.

    Parameters
    ----------
    config
        Of transformers.
    layers, heads, width, neurons : int
        Of the dense model; nothing may be larger.

    Raises
    ------
    InputError
        It states something that cannot be.
    """
    record = getattr(config, KEY, None)
    if record is None:
        return None
    if not isinstance(record, dict) or record.keys() != {"version", "layers"}:
        raise InputError(f"config.json: {KEY} does not describe layers", seen=repr(record)[:200])
    if record["version"] != VERSION:
        seen = repr(record["version"])[:40]
        raise InputError("config.json is of another version of the format", asked=f"{VERSION}", seen=seen)
    if not isinstance(record["layers"], list) or len(record["layers"]) != layers:
        raise InputError(f"config.json: {KEY} does not describe {layers} layers", seen=repr(record["layers"])[:200])
    found = []
    for index, layer in enumerate(record["layers"]):
        if not isinstance(layer, dict) or layer.keys() != {"query", "value", "neurons"}:
            raise InputError(f"config.json: layer {index} is not described", seen=repr(layer)[:200])
        query, value, count = layer["query"], layer["value"], layer["neurons"]
        lists = isinstance(query, list) and isinstance(value, list) and len(query) == len(value) <= heads
        if not (
            lists
            and all(_within(channels, 0, width) for channels in query)
            and all(_within(channels, 1, width) for channels in value)
            and _within(count, 0, neurons)
        ):
            raise InputError(
                f"config.json: layer {index} cannot be",
                asked=f"at most {heads} heads of {width} channels and {neurons} neurons",
                seen=repr(layer)[:200],
            )
        found.append(LayerShape(tuple(query), tuple(value), count))
    return tuple(found)


def _within(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
