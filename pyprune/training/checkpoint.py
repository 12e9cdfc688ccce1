# SPDX-License-Identifier: Apache-2.0
"""What a pruner remembers, and whole trainings, in safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
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


class Checkpoints:
    """The last few checkpoints of a training in a folder, each one file that appears whole or not at all.

    Parameters
    ----------
    folder : Path
    resume : bool
        Go on with the last one. Without it a folder with checkpoints is an error.
    settings : mapping
        What they have to agree with.
    keep : int
        How many are kept.
    every : int, optional
        Steps between them; default: by the clock, one every ``seconds``.
    seconds : float
    """

    def __init__(
        self,
        folder: Path,
        *,
        resume: bool,
        settings: Mapping[str, Any],
        keep: int = 1,
        every: int | None = None,
        seconds: float = 120.0,
    ) -> None:
        self.folder, self._settings, self._keep, self._every, self._seconds = folder, settings, keep, every, seconds
        self._last = monotonic()
        found = self.there()
        if found and not resume:
            raise InputError(
                f"{folder} holds checkpoints of a training",
                seen=found[-1].name,
                hint="resume=True (--resume) to go on with it, or remove the folder",
            )
        if not found and folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no checkpoints", hint="an empty or new folder")
        folder.mkdir(parents=True, exist_ok=True)

    def there(self) -> list[Path]:
        """Checkpoints, in order of steps."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def load(self) -> tuple[State, int] | None:
        """The last one and how many steps it has done; None if there is none."""
        found = self.there()
        return load_state(found[-1], self._settings) if found else None

    def due(self, step: int) -> bool:
        """Whether it is time for one after so many steps."""
        if self._every is not None:
            return step % self._every == 0
        return monotonic() - self._last >= self._seconds

    def save(self, state: State, step: int) -> None:
        """Write one, and remove those before the last few."""
        save_state(self.folder / f"step-{step:08d}.safetensors", state, self._settings, step)
        for old in self.there()[: -self._keep]:
            old.unlink()
        self._last = monotonic()
