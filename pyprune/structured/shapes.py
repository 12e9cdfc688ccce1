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
_LAYERS, _RANK = "layers", "embedding_rank"


def is_compact(folder: Path) -> bool:
    """Whether the config of a folder says that its layers or embeddings are smaller than its class makes them."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and KEY in config


def to_config(config: Any, shapes: Sequence[LayerShape] | None) -> None:
    """Enter sizes of layers into a config of transformers; None: take them out of it."""
    found = (
        None
        if shapes is None
        else [{"query": list(s.query), "value": list(s.value), "neurons": s.neurons} for s in shapes]
    )
    _enter(config, _LAYERS, found)


def rank_to_config(config: Any, rank: int | None) -> None:
    """Enter the rank of factored word embeddings into a config; None: take it out."""
    _enter(config, _RANK, rank)


def _enter(config: Any, key: str, value: Any) -> None:
    record = {**(getattr(config, KEY, None) or {}), "version": VERSION, key: value}
    record = {name: entry for name, entry in record.items() if entry is not None}
    if record.keys() > {"version"}:
        setattr(config, KEY, record)
    elif hasattr(config, KEY):
        delattr(config, KEY)


def has_layers(config: Any) -> bool:
    """Whether a config states sizes of layers."""
    record = getattr(config, KEY, None)
    return record is not None and not (isinstance(record, dict) and _RANK in record and _LAYERS not in record)


def rank_from_config(config: Any, *, features: int) -> int | None:
    """The rank of word embeddings that a config states; None of embeddings in one table.

    Parameters
    ----------
    config
        Of transformers.
    features : int
        Of the embeddings; no rank may be larger.

    Raises
    ------
    InputError
        It states something that cannot be.
    """
    record = _record(config)
    if record is None or _RANK not in record:
        return None
    if not _within(record[_RANK], 1, features):
        raise InputError(
            f"config.json: {KEY} states embeddings that cannot be",
            asked=f"a rank from 1 to {features}",
            seen=repr(record[_RANK])[:80],
        )
    return int(record[_RANK])


def _record(config: Any) -> dict[str, Any] | None:
    """What a config states, of this version and with nothing unknown in it."""
    record = getattr(config, KEY, None)
    if record is None:
        return None
    known = {"version", _LAYERS, _RANK}
    if not isinstance(record, dict) or not {"version"} < record.keys() <= known:
        raise InputError(f"config.json: {KEY} does not describe layers", seen=repr(record)[:200])
    if record["version"] != VERSION:
        seen = repr(record["version"])[:40]
        raise InputError("config.json is of another version of the format", asked=f"{VERSION}", seen=seen)
    return record


def from_config(config: Any, *, layers: int, heads: int, width: int, neurons: int) -> tuple[LayerShape, ...] | None:
    """Sizes of layers that a config states; None of a model whose layers are those of its class.

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
    record = _record(config)
    if record is None or _LAYERS not in record:
        return None
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
