# SPDX-License-Identifier: Apache-2.0
"""What pruning a whole model gives back, and how it is stored."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.files import REPORT, whole_folder
from pyprune.models.skeleton import model_class, read_config
from pyprune.sparse.exporting import bytes_of, compressed, copy_rest, write_dense
from pyprune.sparse.linear import compress_as
from pyprune.sparse.loading import check_plain, load_compact, load_sparse, open_sparse
from pyprune.sparse.mask_file import MASKS, mask_bytes, read_masks, write_masks
from pyprune.sparse.saving import write_settings
from pyprune.sparse.storage import is_sparse, stored_tensors, write_files
from pyprune.structured import compact, expand, unit_masks, whole_embeddings
from pyprune.structured.shapes import has_layers, is_compact
from pyprune.structured.unit_file import read_units, write_units
from pyprune.units import Units

STORAGES = ("dense", "sparse", "compact")
VALUES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class PruneResult:
    """A pruned model with its masks and report.

    Attributes
    ----------
    model : nn.Module
        Pruned, in the dtype and on the device of the model that was given. What was removed is zero in it, weights,
        heads and neurons alike; :meth:`compact` gives the smaller model.
    masks : dict of str to Tensor of bool
        By linear name, ``[out, in]``, True = kept. Masks are explicit; a kept weight may be zero by chance. Where
        whole units went, masks are what ``units`` says, and read-only.
    report : dict
        JSON-able. ``pyprune``, ``method``, ``solver``, ``pattern``, ``settings``, ``seed``, ``versions``,
        ``threads``, ``device``, ``model``, ``data``; ``layers``: one record per linear with ``name``, ``rows``,
        ``cols``, ``kept``, ``sparsity``, ``error`` (``E‖Y − Ŷ‖² / E‖Y‖²`` against the dense model's output),
        ``local_error`` (the solver's own objective), ``damping``, ``condition``, ``seconds``, ``notes``;
        ``mean_error``; ``sparsity`` and ``counts`` by denominator; ``seconds`` by stage; ``memory``; ``notes``.
        Of heads and neurons ``layers`` has one record per half of a block, with ``name``, ``kind``, ``units`` and
        ``kept``, and there are ``budget`` and ``left`` (:func:`pyprune.methods.prune_units`). After a dry run only
        ``dry_run`` and ``plan``.
    tokenizer : optional
        Saved along with the model.
    units : Units, optional
        Heads and neurons that are kept, where these were pruned.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    report: dict[str, Any]
    tokenizer: Any = field(default=None, repr=False)
    units: Units | None = field(default=None, repr=False)

    @property
    def dry_run(self) -> bool:
        """Whether nothing was pruned."""
        return bool(self.report.get("dry_run"))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: Any = None,
        storage: str | None = None,
        values: str | None = None,
    ) -> Path:
        """Write a folder that :func:`pyprune.load` loads, and with ``storage="dense"`` plain transformers too.

        Config and tokenizer as transformers writes them, ``pyprune.json`` (the report), and the weights: dense ones in
        transformers' own files, beside them ``pyprune_masks.safetensors`` (masks, eight to a byte); sparse ones in
        ``pyprune.safetensors`` (docs/format.md), which holds the masks too; compact ones in transformers' own files, as
        narrow as the layers are. Which units are kept is in ``pyprune_units.json``. The folder is written beside and
        then renamed, so that it appears whole; an earlier pyprune folder of that name is replaced only then.

        Parameters
        ----------
        path : str or Path
        tokenizer : optional
            Instead of the result's own.
        storage : {"dense", "sparse", "compact"}, optional
            "dense": with all zeros, factored embeddings multiplied out. "sparse": without the zeros of the pruned
            matrices. "compact": the physically smaller model, without the removed heads and neurons. Default: "compact"
            where these were pruned, else "dense".
        values : {"float32", "bfloat16", "float16", "int8"}, optional
            Of sparse matrices; by default their own type. int8 has a scale for each row. Everything else keeps its
            type. With "dense" and "compact" storage: of all weights, and not int8.

        Raises
        ------
        InputError
            The path holds something other than an earlier result, the disk is full, it was a dry run, or a weight is
            too large for the type of the values.
        """
        if self.dry_run:
            raise InputError("a dry run has nothing to save", hint="run without dry_run")
        storage = storage or ("dense" if self.units is None else "compact")
        dtype = _check_storage(storage, values)
        if dtype == torch.int8 and storage != "sparse":
            raise InputError(f"{storage} storage has no int8 values", hint='float16 or bfloat16, or storage="sparse"')
        target = Path(path).expanduser().absolute()
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        if storage != "sparse":
            model, masks = (whole_embeddings(self.model), self.masks) if storage == "dense" else (self.compact(), {})
            if dtype is not None:
                model = _in_type(copy.deepcopy(model) if model is self.model else model, dtype)
            with whole_folder(target, bytes_of({}, stored_tensors(model)) + mask_bytes(masks)) as part:
                self._write(part, model, masks, tokenizer)
            return target
        plain = stored_tensors(self.model)
        matrices = {
            name: compress_as(plain.pop(f"{name}.weight"), mask, dtype=dtype) for name, mask in self.masks.items()
        }
        with whole_folder(target, bytes_of(matrices, plain)) as part:
            write_files(part, matrices, plain)
            self._write_rest(part, tokenizer)
        return target

    def compact(self) -> nn.Module:
        """The physically smaller model, without the heads and neurons that were removed; outputs are the same.

        Raises
        ------
        InputError
            Single weights were pruned, not units.
        """
        if self.units is None:
            raise InputError(
                "no heads or neurons were pruned, there is nothing to cut out",
                seen=f"method {self.report.get('method', 'unknown')}",
                hint='storage="sparse" leaves out single zeros; method="kprune" prunes heads and neurons',
            )
        return compact(self.model, self.units)

    def _write(self, folder: Path, model: Any, masks: Mapping[str, Tensor], tokenizer: Any) -> None:
        _save_plain(model, folder)
        if masks:
            write_masks(folder, masks)
        self._write_notes(folder, tokenizer)

    def _write_rest(self, folder: Path, tokenizer: Any) -> None:
        write_settings(self.model, folder)
        self._write_notes(folder, tokenizer)

    def _write_notes(self, folder: Path, tokenizer: Any) -> None:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if self.units is not None:
            write_units(folder, self.units)
        write_report(folder, self.report)


def _check_storage(storage: str, values: str | None) -> torch.dtype | None:
    if storage not in STORAGES:
        raise InputError(f"unknown storage {storage!r}", hint=" or ".join(STORAGES))
    if values is not None and values not in VALUES:
        raise InputError(f"unknown values {values!r}", hint=", ".join(VALUES))
    return None if values is None else VALUES[values]


def _in_type(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Round all weights of a model."""
    model = model.to(dtype)
    for name, tensor in stored_tensors(model).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: a weight is too large for {dtype}", hint="values='bfloat16' or 'float32'")
    return model


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write ``pyprune.json``."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")


def _save_plain(model: Any, folder: Path) -> None:
    # transformers 5 writes nothing but safetensors and no longer knows the flag.
    import transformers

    old = int(transformers.__version__.split(".")[0]) < 5
    model.save_pretrained(folder, safe_serialization=True) if old else model.save_pretrained(folder)


def load_masks(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Masks of a saved result, by linear name: bool ``[out, in]``, True = kept."""
    return dict(each_mask(path))


def each_mask(path: str | os.PathLike[str]) -> Iterator[tuple[str, Tensor]]:
    """Names and masks of a saved result, one in memory at a time.

    Raises
    ------
    InputError
        There are none: it is no result, or a compact one, whose :func:`load_units` there are.
    """
    folder = _existing(path)
    if is_sparse(folder):
        files, _ = open_sparse(folder)
        yield from ((name, files.matrix(name).mask()) for name in files.layouts)
    elif (folder / MASKS).is_file():
        yield from read_masks(folder)
    else:
        hint = "load_units: heads and neurons are cut out of it" if is_compact(folder) else None
        raise InputError(f"{folder} has no masks", hint=hint)


def load_units(path: str | os.PathLike[str]) -> Units | None:
    """Heads, channels and neurons that a saved result has kept of the dense model; None where single weights went.

    Raises
    ------
    InputError
        No such result, or the file is damaged.
    """
    return read_units(_existing(path))


def load_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of a saved result."""
    report: dict[str, Any] = json.loads((_existing(path) / REPORT).read_text(encoding="utf-8"))
    return report


def load(path: str | os.PathLike[str], *, dense: bool = False, **options: Any) -> Any:
    """Load a saved result as the transformers model it is.

    A result saved with ``storage="sparse"`` keeps its pruned matrices compressed in memory
    (:class:`pyprune.SparseLinear`); a model that :func:`pyprune.compact` made keeps its small layers.

    Parameters
    ----------
    path : str or Path
        A folder written by :meth:`PruneResult.save`, or by ``save_pretrained`` of a model that :func:`pyprune.compact`,
        :func:`pyprune.sparsify` or this function has given.
    dense : bool
        Give plain ``nn.Linear`` whatever the storage.
    **options
        Handed on to ``from_pretrained``, e.g. ``dtype=torch.float32``; of sparse storage ``dtype`` alone,
        of compact models ``dtype`` and ``attn_implementation``.

    Returns
    -------
    transformers.PreTrainedModel
        Of the class that was saved, in evaluation mode.

    Raises
    ------
    InputError
        No such folder, its config names no model class, or files of a sparse or compact model that are
        damaged or do not fit the config.
    """
    folder = Path(path).expanduser()
    if is_sparse(folder):
        _check_options(
            options,
            "sparse storage is loaded with dense= and dtype= only",
            hint="dtype=torch.float32; or dense storage (pyprune.result.export) and from_pretrained",
        )
        return load_sparse(folder, dense=dense, **options)
    if is_compact(folder):
        attention = options.pop("attn_implementation", None)
        _check_options(options, "compact models are loaded with dtype= and attn_implementation= only")
        return load_compact(folder, attention=attention, **options)
    _existing(folder)
    check_plain(folder)
    try:
        return model_class(read_config(folder)).from_pretrained(folder, **options)
    except Exception as error:  # each class reads its files and options in a way of its own
        seen = f"{type(error).__name__}: {error}"[:300]
        raise InputError(f"{folder}: transformers does not load it", seen=seen) from error


def _check_options(options: Mapping[str, Any], message: str, hint: str | None = None) -> None:
    """Raise InputError unless there is nothing but a dtype."""
    others, dtype = [name for name in options if name != "dtype"], options.get("dtype")
    if others or not isinstance(dtype, torch.dtype | None):
        raise InputError(message, seen=", ".join(others) or f"dtype={dtype!r}", hint=hint)


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


def export(
    path: str | os.PathLike[str], output: str | os.PathLike[str], *, storage: str, values: str | None = None
) -> Path:
    """Write a saved result with the other storage, or with other values; the model itself is never made.

    Parameters
    ----------
    path : str or Path
        A folder written by :meth:`PruneResult.save` or :func:`pyprune.prune_streaming`.
    output : str or Path
        Another folder.
    storage : {"dense", "sparse", "compact"}
        "dense" is what plain transformers loads, the bits of the weights equal (int8 values: float32); cut heads and
        neurons are zeros again. From dense to sparse the saved masks say what is kept, to compact the saved units.
    values : {"float32", "bfloat16", "float16", "int8"}, optional
        As for :meth:`PruneResult.save`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        No such result, it has this storage already, or one of the reasons of :meth:`PruneResult.save`.
    """
    folder, dtype = _existing(path), _check_storage(storage, values)
    if dtype is not None and storage != "sparse":
        raise InputError(f"values={values!r} goes with sparse storage only", hint='storage="sparse" (--sparse)')
    target = Path(output).expanduser().absolute()
    if target.resolve() == folder.resolve():
        raise InputError("the output is the folder of the model itself", hint="another folder")
    if storage == "sparse":
        matrices, plain = compressed(folder, dtype)
        with whole_folder(target, bytes_of(matrices, plain)) as part:
            write_files(part, matrices, plain)
            copy_rest(folder, part)
    elif storage == "compact" or (is_compact(folder) and not is_sparse(folder)):
        _write_units(folder, target, storage)
    elif is_sparse(folder):
        write_dense(folder, target)
    else:
        raise InputError(f"{folder} is dense already", hint='storage="sparse" (--sparse)')
    return target


def _write_units(folder: Path, target: Path, storage: str) -> None:
    """Cut out what the units of a folder do not keep, or put zeros in its place again."""
    units = read_units(folder)
    if storage == "compact":
        if is_compact(folder) and has_layers(read_config(folder)):
            raise InputError(f"{folder} is compact already", hint='storage="dense" (--dense)')
        if units is None:
            raise InputError(f"{folder} has all its heads and neurons", hint='storage="sparse" (--sparse)')
        model = compact(load(folder, dense=True), units)
        masks: Mapping[str, Tensor] = {}
    else:
        model = expand(load(folder), units)
        masks = {} if units is None else unit_masks(model, units)
    with whole_folder(target, bytes_of({}, stored_tensors(model)) + mask_bytes(masks)) as part:
        copy_rest(folder, part)
        _save_plain(model, part)
        if masks:
            write_masks(part, masks)
