# SPDX-License-Identifier: Apache-2.0
"""What pruning a whole model gives back, and how it is stored."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.files import sync_folder, write_error

REPORT = "pyprune.json"
MASKS = "pyprune_masks.safetensors"


@dataclass(frozen=True)
class PruneResult:
    """A pruned model with its masks and report.

    Attributes
    ----------
    model : nn.Module
        Pruned, in the dtype and on the device of the model that was given.
    masks : dict of str to Tensor of bool
        By linear name, ``[out, in]``, True = kept. Masks are explicit; a kept weight may be zero by chance.
    report : dict
        JSON-able. ``pyprune``, ``method``, ``solver``, ``pattern``, ``settings``, ``seed``, ``versions``,
        ``threads``, ``device``, ``model``, ``data``; ``layers``: one record per linear with ``name``, ``rows``,
        ``cols``, ``kept``, ``sparsity``, ``error`` (``E‖Y − Ŷ‖² / E‖Y‖²`` against the dense model's output),
        ``local_error`` (the solver's own objective), ``damping``, ``condition``, ``seconds``, ``notes``;
        ``mean_error``; ``sparsity`` and ``counts`` by denominator; ``seconds`` by stage; ``memory``; ``notes``.
        After a dry run only ``dry_run`` and ``plan``.
    tokenizer : optional
        Saved along with the model.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    report: dict[str, Any]
    tokenizer: Any = field(default=None, repr=False)

    @property
    def dry_run(self) -> bool:
        """Whether nothing was pruned."""
        return bool(self.report.get("dry_run"))

    def save(self, path: str | os.PathLike[str], *, tokenizer: Any = None) -> Path:
        """Write a folder that plain ``AutoModel*.from_pretrained`` loads.

        Safetensors weights, config and tokenizer as transformers writes them, ``pyprune.json`` (the report) and
        ``pyprune_masks.safetensors`` (masks, eight to a byte). The folder is written beside and then renamed, so
        that it appears whole; an earlier pyprune folder of that name is replaced only then.

        Parameters
        ----------
        path : str or Path
        tokenizer : optional
            Instead of the result's own.

        Raises
        ------
        InputError
            The path holds something other than an earlier result, the disk is full, or it was a dry run.
        """
        if self.dry_run:
            raise InputError("a dry run has nothing to save", hint="run without dry_run")
        tensors = [*self.model.parameters(), *self.model.buffers()]
        needed = sum(t.numel() * t.element_size() for t in tensors) + sum(m.numel() for m in self.masks.values()) // 8
        target = Path(path).expanduser().absolute()
        with whole_folder(target, needed) as part:
            self._write(part, self.tokenizer if tokenizer is None else tokenizer)
        return target

    def _write(self, folder: Path, tokenizer: Any) -> None:
        from safetensors.torch import save_file

        model: Any = self.model
        model.save_pretrained(folder, safe_serialization=True) if _takes_flag() else model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        packed = {name: pack(mask) for name, mask in self.masks.items()}
        save_file(packed, folder / MASKS, metadata=shapes_of(self.masks))
        write_report(folder, self.report)


@contextmanager
def whole_folder(target: Path, needed: int) -> Iterator[Path]:
    """A new folder to write to, which takes the place of ``target`` if all goes well.

    Parameters
    ----------
    target : Path
        Absolute. Nothing, an empty folder or an earlier result.
    needed : int
        Bytes that will be written.

    Raises
    ------
    InputError
        The path holds something other than an earlier result, or the disk is full.
    """
    check_target(target)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, needed)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        _seal(part)
        _swap(part, target)
    except InputError:
        raise
    except Exception as error:  # safetensors and tokenizers raise their own types for a failed write
        raise write_error(error, target.parent, "the pruned model") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"the disk of {folder} is full: the pruned model could not be written",
            asked=f"{needed / 2**20:.0f} MiB",
            seen=f"{free / 2**20:.0f} MiB free; nothing that was there before has been touched",
            hint="free some space, or another folder",
        )


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write ``pyprune.json``."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")


def _seal(folder: Path) -> None:
    mode = stat.S_IMODE((folder / REPORT).stat().st_mode)
    for file in folder.iterdir():
        file.chmod(mode)  # safetensors writes files only their owner can read
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)


def _takes_flag() -> bool:
    # transformers 5 writes nothing but safetensors and no longer knows the flag.
    import transformers

    return int(transformers.__version__.split(".")[0]) < 5


def check_target(target: Path) -> None:
    """Raise :class:`InputError` where saving to ``target`` would destroy something else than an earlier result."""
    if target.is_dir():
        if any(target.iterdir()) and not (target / REPORT).exists():
            raise InputError(
                f"{target} is not empty and was not written by pyprune",
                hint="another folder; an earlier result (with pyprune.json) may be replaced",
            )
    elif target.exists() or target.is_symlink():
        raise InputError(f"{target} is a file", hint="a folder to write the model to")


def _swap(part: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.rename(target, old)
        try:
            os.rename(part, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(part, target)
    sync_folder(target.parent)


def shapes_of(masks: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata of the file of masks: what shapes the bits have."""
    return {"shapes": json.dumps({name: list(mask.shape) for name, mask in masks.items()})}


def pack(mask: Tensor) -> Tensor:
    """Row-major bits, eight to a byte, the first in the highest bit; the last byte padded with zeros."""
    import numpy as np

    return torch.from_numpy(np.packbits(mask.cpu().reshape(-1).numpy()))


def load_masks(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Masks of a saved result, by linear name: bool ``[out, in]``, True = kept."""
    import numpy as np
    from safetensors import safe_open

    masks = {}
    with safe_open(_existing(path) / MASKS, framework="pt") as file:
        for name, shape in json.loads(file.metadata()["shapes"]).items():
            bits = np.unpackbits(file.get_tensor(name).numpy(), count=int(np.prod(shape)))
            masks[name] = torch.from_numpy(bits.astype(bool)).reshape(shape)
    return masks


def load_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of a saved result."""
    report: dict[str, Any] = json.loads((_existing(path) / REPORT).read_text(encoding="utf-8"))
    return report


def load(path: str | os.PathLike[str], **options: Any) -> Any:
    """Load a saved result as the transformers model it is.

    Parameters
    ----------
    path : str or Path
        A folder written by :meth:`PruneResult.save`.
    **options
        Handed on to ``from_pretrained``, e.g. ``dtype=torch.float32``.

    Returns
    -------
    transformers.PreTrainedModel
        Of the class that was saved, in evaluation mode.

    Raises
    ------
    InputError
        No such folder, or its config names no model class.
    """
    import transformers

    folder = _existing(path)
    config = transformers.AutoConfig.from_pretrained(folder)
    names = getattr(config, "architectures", None) or []
    loader = getattr(transformers, names[0], None) if names else None
    if loader is None:
        raise InputError(
            f"{folder} does not say which model class it holds",
            seen=f"architectures {names}",
            hint="transformers.AutoModelFor...from_pretrained(path)",
        )
    return loader.from_pretrained(folder, **options)


def _existing(path: str | os.PathLike[str]) -> Path:
    folder = Path(path).expanduser()
    if not (folder / REPORT).is_file():
        seen = "no such folder" if not folder.is_dir() else f"a folder without {REPORT}"
        raise InputError(
            f"{folder} is not a model saved by pyprune",
            seen=seen,
            hint="the folder given to save or --output; other models load with transformers",
        )
    return folder
