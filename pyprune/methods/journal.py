# SPDX-License-Identifier: Apache-2.0
"""Finished blocks on disk, so that a run that was stopped goes on where it was, with the same bits."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune import backends
from pyprune.errors import InputError
from pyprune.files import write_atomically, write_error
from pyprune.methods import accounting

_FORMAT = 1
_HEAD = "journal.json"


class JournalError(InputError):
    """The journal belongs to another run, is damaged, or is in the way."""


@dataclass(frozen=True)
class FinishedBlock:
    """What a block became.

    Attributes
    ----------
    tensors : dict of str to Tensor
        New weights and biases by parameter name relative to the block, float32.
    masks : dict of str to Tensor of bool
        By linear name relative to the block, True = kept; of heads and neurons by these two names.
    records : list of dict
        One per linear or half, in order.
    """

    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]
    records: list[dict[str, Any]]

    def fill(self, linears: Mapping[str, nn.Linear], masks: Mapping[str, tuple[int, ...]], prefix: str) -> None:
        """Put the weights into a block's linears.

        Parameters
        ----------
        linears : mapping of str to nn.Linear
        masks : mapping of str to tuple of int
            Names and shapes that the masks should have.
        prefix : str
            The block's name, for errors.

        Raises
        ------
        JournalError
            Names or shapes are others.
        """
        own = linear_tensors(linears)
        if _shapes(self.tensors) != _shapes(own) or _shapes(self.masks) != masks:
            raise JournalError(
                f"the journal's {prefix} does not fit the model",
                hint="remove the journal's folder and start again without resume",
            )
        for name, tensor in own.items():
            tensor.copy_(self.tensors[name])


def linear_tensors(linears: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
    """Weights and biases of linears by name."""
    return {
        f"{name}.{part}": value.detach()
        for name, linear in linears.items()
        for part, value in linear.named_parameters()
    }


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


class Journal:
    """One folder: a head with the fingerprint of the run, and one file per finished block.

    A file appears whole or not at all: it is written beside, synced and renamed, weights and records in one.

    Parameters
    ----------
    folder : Path
    fingerprint : mapping
        JSON-able; everything that decides the bits of the result, by part.
    resume : bool
        Go on with what is there. Without it a journal in the folder is an error.

    Raises
    ------
    JournalError
        A journal is there and ``resume`` is False, or its fingerprint differs; the message says where.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = folder
        head = folder / _HEAD
        wanted = {"format": _FORMAT, "fingerprint": json.loads(json.dumps(fingerprint))}
        if head.exists():
            if not resume:
                raise JournalError(
                    f"{folder} already holds the journal of a run",
                    seen=f"{len(list(folder.glob('block-*.safetensors')))} finished blocks",
                    hint="resume=True (--resume) to go on with it, or remove the folder",
                )
            self._compare(head, wanted)
        else:
            if folder.is_dir() and any(folder.iterdir()):
                raise JournalError(
                    f"{folder} is not empty and holds no journal", hint="an empty or new folder for the journal"
                )
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise write_error(error, folder, "the journal") from error
            write_atomically(head, json.dumps(wanted, indent=1).encode(), "the journal")
        for left in folder.glob("*.part"):
            left.unlink(missing_ok=True)

    def _compare(self, head: Path, wanted: dict[str, Any]) -> None:
        try:
            found = json.loads(head.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JournalError(f"{head} cannot be read", seen=str(error), hint="remove the folder") from error
        if found.get("format") != wanted["format"]:
            raise JournalError(
                f"{head} has another format", asked=f"format {_FORMAT}", seen=f"format {found.get('format')}"
            )
        differences = _differences(found.get("fingerprint", {}), wanted["fingerprint"])
        if differences:
            raise JournalError(
                f"{self.folder} is the journal of another run",
                seen="; ".join(differences),
                hint="the same model, data and settings as before, or another folder",
            )

    def finished(self, blocks: int) -> int:
        """How many of the first ``blocks`` are there without a gap."""
        return next((index for index in range(blocks) if not self._path(index).exists()), blocks)

    def load(self, index: int) -> FinishedBlock:
        """A finished block.

        Raises
        ------
        JournalError
            The file is damaged.
        """
        path = self._path(index)
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as file:
                records = json.loads(file.metadata()["records"])
                stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except Exception as error:  # the library raises its own types
            raise JournalError(
                f"{path} is damaged", seen=str(error), hint="remove this file and those of later blocks"
            ) from error
        masks = {key[5:]: value for key, value in stored.items() if key.startswith("mask:")}
        tensors = {key[7:]: value for key, value in stored.items() if key.startswith("tensor:")}
        return FinishedBlock(tensors, masks, records)

    def save(self, index: int, block: FinishedBlock) -> None:
        """Write a finished block; it is on the disk when this returns.

        Raises
        ------
        InputError
            The disk is full or the folder cannot be written.
        """
        from safetensors.torch import save

        tensors = {f"tensor:{key}": value.contiguous().cpu() for key, value in block.tensors.items()}
        tensors |= {f"mask:{key}": value.contiguous().cpu() for key, value in block.masks.items()}
        data = save(tensors, metadata={"records": json.dumps(block.records)})
        write_atomically(self._path(index), data, "the journal")

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:03d}.safetensors"


def fingerprint(model_sha256: str, data_sha256: str, settings: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Everything that decides the bits of a result."""
    found = accounting.versions()
    ops = {op: backends.choose(op, device).backend for op in backends.operations()}
    return {
        "model": model_sha256,
        "data": data_sha256,
        "settings": dict(settings),
        "threads": {"torch": torch.get_num_threads(), "pyprune": backends.threads()},
        "machine": {"device": device, "processor": platform.machine(), "instructions": backends.instructions()},
        "kernels": ops,
        "versions": {name: found[name] for name in ("pyprune", "torch", "transformers")},
    }


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted(set(found) | set(wanted)):
        old, new = found.get(key), wanted.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif key in ("model", "data") and not prefix:
            lines.append(f"the {key} differs" + (" (weights or config)" if key == "model" else " (token ids)"))
        else:
            lines.append(f"{prefix}{key} was {old!r}, now {new!r}")
    return lines


def model_sha256(config: Any, tensors: Iterable[tuple[str, Tensor]], *, identity: str | None = None) -> str:
    """Hash of a model: its config, and of its parameters and buffers names, types, shapes and bits.

    Parameters
    ----------
    config
        Of transformers, or None.
    tensors : iterable of (str, Tensor)
        In order of names.
    identity : str, optional
        What stands for the bits where they follow from it; then tensors need no data.
    """
    digest = hashlib.sha256()
    if config is not None:
        # Where it was loaded from and by which version do not change what it computes.
        told = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
        told["attention"] = getattr(config, "_attn_implementation", None)
        digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    digest.update((identity or "").encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if identity is None:
            array: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(memoryview(array))
            del array
        del tensor  # not held while the next is read
    return digest.hexdigest()
