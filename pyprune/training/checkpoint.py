# SPDX-License-Identifier: Apache-2.0
"""What a pruner remembers, and whole trainings, in safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import write_atomically
from pyprune.training.pruning import State

_FORMAT = 1


def save_state(path: Path, state: State, settings: Mapping[str, Any], step: int) -> None:
    """Write a state, whole or not at all.

    Raises
    ------
    InputError
        The disk is full, or the folder cannot be written.
    """
    from safetensors.torch import save

    head = {"format": _FORMAT, "step": step, "settings": dict(settings), "values": state.values}
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
    write_atomically(path, save(tensors, metadata={"pyprune": json.dumps(head)}), "the checkpoint")


def load_state(path: Path, settings: Mapping[str, Any]) -> tuple[State, int]:
    """Read what :func:`save_state` wrote, and of which step it is.

    Raises
    ------
    InputError
        No such file, one that is damaged, or of other settings.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise InputError(
            f"there is no {path.name} in {path.parent}",
            hint="a checkpoint of a training with the same pruner; an earlier one, if this one was cut off",
        )
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads(file.metadata()["pyprune"])
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        found = (head["format"], head["settings"], head["values"], int(head["step"]))
    except Exception as error:  # the library raises its own types
        raise InputError(f"{path} is damaged", seen=str(error)[:200], hint="an earlier checkpoint") from error
    form, stored, values, step = found
    if form != _FORMAT:
        raise InputError(f"{path} has another format", asked=str(_FORMAT), seen=str(form)[:40])
    wanted = json.loads(json.dumps(dict(settings)))
    different = [name for name in sorted({*wanted, *stored}) if wanted.get(name) != stored.get(name)]
    if different:
        raise InputError(
            f"{path} is of a training with other settings",
            asked="; ".join(f"{name}: {wanted.get(name)}" for name in different)[:300],
            seen="; ".join(f"{name}: {stored.get(name)}" for name in different)[:300],
            hint="the same settings as before",
        )
    return State(tensors, values), step
