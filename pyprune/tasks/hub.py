# SPDX-License-Identifier: Apache-2.0
"""Data sets of the Hugging Face hub, through the `datasets` package; code of a data set is never run."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pyprune.errors import InputError
from pyprune.tasks.readers import Table

_EVALUATION_SPLITS = ("validation", "validation_matched", "dev", "test")


def read_hub(name: str, config: str, split: str | None, purpose: str) -> tuple[Table, str, dict[str, tuple[str, ...]]]:
    """Load one split.

    Returns
    -------
    table : Table
    source : str
        ``"owner/name:configuration [split]"``.
    names : dict of str to tuple of str
        Names of the classes of each column that has them.

    Raises
    ------
    InputError
        `datasets` is missing, there is no such data set or split, or the hub cannot be reached.
    """
    label = f"{name}:{config}" if config else name
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"the data set {label} needs the datasets package",
            hint="pip install datasets, or pass a local file (.txt .tsv .csv .jsonl .json .parquet)",
        ) from None
    datasets.disable_progress_bars()
    try:
        with patience():
            if split is None:
                split = _choose_split(datasets.get_dataset_split_names(name, config or None), purpose)
            data: Any = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # datasets, huggingface_hub, httpx and fsspec each raise their own kinds
        raise _explain(label, split, error) from error
    table = Table({column: data[column][:] for column in data.column_names}, range(1, len(data) + 1), "row")
    names = {
        column: tuple(feature.names)
        for column, feature in data.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    return table, f"{label} [{split}]", names


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Within it the hub's libraries go straight to their local copies if the hub cannot be reached.

    By themselves they retry for half a minute per file, which is long for somebody who mistyped a path.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    switches: list[tuple[Any, str]] = []
    if not _reachable():
        switches = [(module, "HF_HUB_OFFLINE") for module in _modules_with_switch()]
    before = [getattr(module, name) for module, name in switches]
    for module, name in switches:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)
        logger.setLevel(level)


def _modules_with_switch() -> list[Any]:
    names = ("huggingface_hub.constants", "datasets.config")
    return [sys.modules[name] for name in names if hasattr(sys.modules.get(name), "HF_HUB_OFFLINE")]


def _reachable() -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy knows
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        with socket.create_connection((address.hostname or "huggingface.co", address.port or 443), timeout=5.0):
            return True
    except OSError:
        return False


def _choose_split(splits: list[str], purpose: str) -> str:
    wanted = ("train",) if purpose == "train" else _EVALUATION_SPLITS
    return next((name for name in wanted if name in splits), splits[0])


def _explain(label: str, split: str | None, error: Exception) -> InputError:
    kind = type(error).__name__
    text = (str(error).strip().splitlines() or [kind])[0][:300]
    if kind == "DatasetNotFoundError" or "404" in text:
        return InputError(
            f"there is no file {label} here, and no such data set on the hub (or it cannot be seen from here)",
            seen=f"{kind}: {text}",
            hint="check the name or path",
        )
    if isinstance(error, ValueError):
        return InputError(
            f"the data set {label} cannot be loaded like this",
            asked=f"split {split!r}" if split else None,
            seen=text,
            hint="--split NAME, or owner/name:configuration",
        )
    return InputError(
        f"the data set {label} could not be loaded: the Hugging Face hub was not reached and no local copy exists",
        seen=f"{kind}: {text}",
        hint="go online once, or pass a local file (.txt .tsv .csv .jsonl .json .parquet)",
    )
