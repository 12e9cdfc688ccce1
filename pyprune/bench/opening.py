# SPDX-License-Identifier: Apache-2.0
"""Opening the two models of ``bench model``, and seeing that they belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyprune
from pyprune.commands.checkpoints import open_model
from pyprune.errors import InputError
from pyprune.files import REPORT


def open_checkpoint(path: str) -> Any:
    """A model in float32 and evaluation mode, its zeros in place, however it is stored."""
    folder = Path(path).expanduser()
    plain = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    if plain or not (folder / REPORT).is_file():
        return open_model(path)
    return pyprune.load(path, dense=True).float().eval()


def check_pair(dense: Any, pruned: Any) -> None:
    """Raise where two models cannot be compared.

    Raises
    ------
    InputError
        They differ in kind, vocabulary or labels.
    """
    for what, one, other in (
        ("kind of model", type(dense).__name__, type(pruned).__name__),
        ("vocabulary", dense.config.vocab_size, pruned.config.vocab_size),
        ("labels", _labels(dense), _labels(pruned)),
    ):
        if one != other:
            raise InputError(
                f"the two models cannot be compared: they differ in their {what}",
                seen=f"dense: {one}, pruned: {other}",
                hint="DENSE is the model that PRUNED was made from",
            )


def _labels(model: Any) -> str:
    return ", ".join(str(name) for name in (getattr(model.config, "id2label", None) or {}).values())
