# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are to be averaged: opened without their weights, and refused where they do not belong together."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError, NumericsError
from pyprune.files import REPORT
from pyprune.models.skeleton import model_class, read_config
from pyprune.models.weights import Checkpoint
from pyprune.sparse.loading import empty_model
from pyprune.sparse.storage import is_sparse, stored_tensors

# What a config says of where and how a model was trained and stored, not of what it computes.
_IMMATERIAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "finetuning_task")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "sentencepiece*", "spiece*")


@dataclass(frozen=True, eq=False)
class Member:
    """One checkpoint on disk.

    Attributes
    ----------
    path : str
        As it was given.
    folder : Path
    weights : Checkpoint
        Read tensor by tensor.
    config
        Of transformers.
    tokenizer : optional
        None where the folder has none.
    """

    path: str
    folder: Path
    weights: Checkpoint
    config: Any
    tokenizer: Any

    def load(self) -> Any:
        """The transformers model in float32, in evaluation mode."""
        return model_class(self.config).from_pretrained(self.folder, dtype=torch.float32).eval()


def open_members(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[Member], dict[str, Tensor]]:
    """Open checkpoints of one architecture.

    Parameters
    ----------
    paths : sequence of str or Path
        At least two folders with dense safetensors.

    Returns
    -------
    list of Member
    dict of str to Tensor
        What each of them stores, by name: on the meta device, for the shapes.

    Raises
    ------
    InputError
        Fewer than two, one twice, one that cannot be read, or two that differ in architecture, labels, tokenizer, names
        or shapes; the message names both.
    """
    members = [_open(str(path)) for path in paths]
    if len(members) < 2:
        raise InputError("an average needs at least two checkpoints", seen=f"{len(members)}")
    folders = [member.folder.resolve() for member in members]
    twice = next((member.path for i, member in enumerate(members) if folders[i] in folders[:i]), None)
    if twice is not None:
        raise InputError(f"{twice} is named twice", hint="each checkpoint once: all weigh the same")
    likes = stored_tensors(empty_model(members[0].weights.shards))
    for member in members:
        _check_pair(members[0], member)
        for name, like in likes.items():
            member.weights.spec(name, like)
    return members, likes


def notes_on(members: Sequence[Member]) -> list[str]:
    """What a person should know before using their average."""
    pruned = [member.path for member in members if (member.folder / REPORT).is_file()]
    bare = [member.path for member in members if member.tokenizer is None]
    notes = []
    if pruned:
        notes.append(f"pruned already: {', '.join(pruned)}; an average has zeros only where all its members have")
    if bare:
        notes.append(f"no tokenizer to compare in {', '.join(bare)}")
    return notes


def mean(members: Sequence[Member], name: str, like: Tensor) -> Tensor:
    """The uniform mean of a tensor: summed in float64, rounded once, to the widest type it is stored in.

    Raises
    ------
    NumericsError
        A member's tensor holds NaN or inf.
    """
    total = torch.zeros(like.shape, dtype=torch.float64)
    for member in members:
        value = member.weights.read(name, like)
        if not bool(torch.isfinite(value).all()):
            raise NumericsError(f"{member.path}: {name} holds NaN or inf", hint="leave this checkpoint out")
        total += value
    return (total / len(members)).to(stored_dtype(members, name, like))


def stored_dtype(members: Sequence[Member], name: str, like: Tensor) -> torch.dtype:
    """The widest type that these members store a tensor in."""
    return reduce(torch.promote_types, (member.weights.spec(name, like).dtype for member in members))


def _open(path: str) -> Member:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"there is no folder {path}", hint="checkpoints are averaged from folders with safetensors")
    if is_sparse(folder):
        raise InputError(
            f"{path} is stored without its zeros", hint=f"pyprune export {path} --dense DIR, and average that"
        )
    return Member(path, folder, Checkpoint(folder), read_config(folder), _open_tokenizer(folder))


def _open_tokenizer(folder: Path) -> Any:
    if not any(any(folder.glob(name)) for name in _TOKENIZER_FILES):
        return None
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises its own types
        raise InputError(f"{folder}: the tokenizer cannot be opened", seen=str(error)[:300]) from error


def _check_pair(first: Member, other: Member) -> None:
    where = f"{first.path} and {other.path} cannot be averaged"
    labels = [_labels(member.config) for member in (first, other)]
    if labels[0] != labels[1]:
        raise InputError(
            f"{where}: their labels differ",
            seen=f"{labels[0] or 'none'}; {labels[1] or 'none'}",
            hint="outputs of one order and meaning, and the same id2label in both config.json",
        )
    settings = [_settings(member.config) for member in (first, other)]
    differing = _differing(*settings)
    if differing:
        key = differing[0]
        raise InputError(
            f"{where}: their configs differ in {', '.join(differing[:4])}",
            seen=f"{key}: {settings[0].get(key)!r}; {settings[1].get(key)!r}"[:300],
            hint="checkpoints of one architecture, fine-tuned from the same start",
        )
    if first.tokenizer is not None and other.tokenizer is not None:
        differing = _differing(*(_tokenization(member.tokenizer) for member in (first, other)))
        if differing:
            raise InputError(f"{where}: their tokenizers differ", seen=f"in {', '.join(differing[:4])}")


def _differing(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))


def _labels(config: Any) -> str:
    table = getattr(config, "id2label", None) or {}
    return ", ".join(f"{number} {table[number]}" for number in sorted(table))


def _settings(config: Any) -> dict[str, Any]:
    told = json.loads(json.dumps(config.to_dict(), default=str))
    return {key: value for key, value in told.items() if key not in _IMMATERIAL and "drop" not in key}


def _tokenization(tokenizer: Any) -> dict[str, Any]:
    """What decides the token ids of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"vocabulary": tokenizer.get_vocab()}
    told: dict[str, Any] = json.loads(backend.to_str())
    # These are set by every call.
    return {key: value for key, value in told.items() if key not in ("truncation", "padding")}
