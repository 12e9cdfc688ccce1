# SPDX-License-Identifier: Apache-2.0
"""What pruning a whole model gives back, and how it is stored."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.files import REPORT, whole_folder
from pyprune.models.skeleton import model_class, read_config
from pyprune.models.weights import Checkpoint, ShardWriter, Spec, TensorWriter
from pyprune.ops.sparse_weight import SparseWeight, compress, pack_bits, unpack_bits
from pyprune.sparse.linear import compress_as
from pyprune.sparse.loading import empty_model, load_compact, load_sparse, open_sparse
from pyprune.sparse.saving import write_settings
from pyprune.sparse.storage import is_sparse, stored_tensors, write_files
from pyprune.structured.shapes import is_compact

STORAGES = ("dense", "sparse")
VALUES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
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

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: Any = None,
        storage: str = "dense",
        values: str | None = None,
    ) -> Path:
        """Write a folder that :func:`pyprune.load` loads, and with ``storage="dense"`` plain transformers too.

        Config and tokenizer as transformers writes them, ``pyprune.json`` (the report), and the weights: dense ones in
        transformers' own files, beside them ``pyprune_masks.safetensors`` (masks, eight to a byte); sparse ones in
        ``pyprune.safetensors`` (docs/format.md), which holds the masks too. The folder is written beside and then
        renamed, so that it appears whole; an earlier pyprune folder of that name is replaced only then.

        Parameters
        ----------
        path : str or Path
        tokenizer : optional
            Instead of the result's own.
        storage : {"dense", "sparse"}
            With or without the zeros of the pruned matrices.
        values : {"float32", "bfloat16", "float16", "int8"}, optional
            Of sparse matrices; by default their own type. int8 has a scale for each row. Everything else keeps its
            type.

        Raises
        ------
        InputError
            The path holds something other than an earlier result, the disk is full, it was a dry run, or a weight is
            too large for the type of the values.
        """
        if self.dry_run:
            raise InputError("a dry run has nothing to save", hint="run without dry_run")
        dtype = _check_storage(storage, values)
        target = Path(path).expanduser().absolute()
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        plain = stored_tensors(self.model)
        if storage == "dense":
            needed = _bytes({}, plain) + sum(spec.bytes for spec in mask_specs(_shapes(self.masks)).values())
            with whole_folder(target, needed) as part:
                self._write(part, tokenizer)
            return target
        matrices = {
            name: compress_as(plain.pop(f"{name}.weight"), mask, dtype=dtype) for name, mask in self.masks.items()
        }
        with whole_folder(target, _bytes(matrices, plain)) as part:
            write_files(part, matrices, plain)
            self._write_rest(part, tokenizer)
        return target

    def _write(self, folder: Path, tokenizer: Any) -> None:
        from safetensors.torch import save_file

        model: Any = self.model
        model.save_pretrained(folder, safe_serialization=True) if _takes_flag() else model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        packed = {name: pack_bits(mask.cpu()) for name, mask in self.masks.items()}
        save_file(packed, folder / MASKS, metadata=mask_shapes(_shapes(self.masks)))
        write_report(folder, self.report)

    def _write_rest(self, folder: Path, tokenizer: Any) -> None:
        write_settings(self.model, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_report(folder, self.report)


def _check_storage(storage: str, values: str | None) -> torch.dtype | None:
    if storage not in STORAGES:
        raise InputError(f"unknown storage {storage!r}", hint=" or ".join(STORAGES))
    if values is not None and (storage == "dense" or values not in VALUES):
        raise InputError(
            f"values={values!r} goes with sparse storage only" if storage == "dense" else f"unknown values {values!r}",
            hint=", ".join(VALUES) + ' with storage="sparse"',
        )
    return None if values is None else VALUES[values]


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write ``pyprune.json``."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")


def _takes_flag() -> bool:
    # transformers 5 writes nothing but safetensors and no longer knows the flag.
    import transformers

    return int(transformers.__version__.split(".")[0]) < 5


def mask_shapes(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Metadata of the file of masks: what shapes the bits have."""
    return {"shapes": json.dumps({name: list(shape) for name, shape in shapes.items()})}


def _shapes(masks: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    return {name: mask.shape for name, mask in masks.items()}


def mask_specs(shapes: Mapping[str, Sequence[int]]) -> dict[str, Spec]:
    """Types and shapes in the file of masks."""
    return {name: Spec(torch.uint8, (rows, -(-columns // 8))) for name, (rows, columns) in shapes.items()}


def load_masks(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Masks of a saved result, by linear name: bool ``[out, in]``, True = kept."""
    return dict(each_mask(path))


def each_mask(path: str | os.PathLike[str]) -> Iterator[tuple[str, Tensor]]:
    """Names and masks of a saved result, one in memory at a time."""
    from safetensors import safe_open

    folder = _existing(path)
    if is_sparse(folder):
        files, _ = open_sparse(folder)
        for name in files.layouts:
            yield name, files.matrix(name).mask()
        return
    with safe_open(folder / MASKS, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        for name, (_, columns) in shapes.items():
            yield name, unpack_bits(file.get_tensor(name), columns)


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
    return model_class(read_config(folder)).from_pretrained(folder, **options)


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
    storage : {"dense", "sparse"}
        "dense" is what plain transformers loads, the bits of the weights equal (int8 values: float32). From dense to
        sparse the saved masks say what is kept.
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
    target = Path(output).expanduser().absolute()
    if target.resolve() == folder.resolve():
        raise InputError("the output is the folder of the model itself", hint="another folder")
    if storage == "sparse":
        matrices, plain = _compressed(folder, dtype)
        with whole_folder(target, _bytes(matrices, plain)) as part:
            write_files(part, matrices, plain)
            _copy_rest(folder, part)
    elif is_sparse(folder):
        _write_dense(folder, target)
    else:
        raise InputError(f"{folder} is dense already", hint='storage="sparse" (--sparse)')
    return target


def _compressed(folder: Path, dtype: torch.dtype | None) -> tuple[dict[str, SparseWeight], dict[str, Tensor]]:
    """Matrices and plain tensors of a saved result."""
    if is_sparse(folder):
        files, _ = open_sparse(folder)
        matrices = {name: _with_values(files.matrix(name), dtype) for name in files.layouts}
        return matrices, {name: files.tensor(name) for name in files.plain}
    source = Checkpoint(folder)
    likes = stored_tensors(empty_model(source.shards))
    for name, like in likes.items():
        source.spec(name, like)
    matrices = {}
    for name, mask in load_masks(folder).items():
        if f"{name}.weight" not in likes:
            raise InputError(f"{folder} has a mask for {name}, which is no linear of the model")
        weight = source.read(f"{name}.weight", likes.pop(f"{name}.weight"))
        matrices[name] = compress_as(weight, mask, dtype=dtype)
    return matrices, {name: source.read(name, like) for name, like in likes.items()}


def _with_values(weight: SparseWeight, dtype: torch.dtype | None) -> SparseWeight:
    if dtype in (None, weight.dtype):
        return weight
    return compress(weight.to_dense(), weight.mask(), format=weight.format, geometry=weight.geometry, dtype=dtype)


def _write_dense(folder: Path, target: Path) -> None:
    """Matrix by matrix."""
    files, model = open_sparse(folder)
    specs = {
        name: files.plain[name] if name in files.plain else files.dense(name.removesuffix(".weight"))
        for name in stored_tensors(model)
    }
    shapes = {name: layout.shape for name, layout in files.layouts.items()}
    packed = mask_specs(shapes)
    needed = sum(spec.bytes for spec in [*specs.values(), *packed.values()])
    with (
        whole_folder(target, needed) as part,
        ShardWriter(part, specs) as weights,
        TensorWriter(part / MASKS, packed, mask_shapes(shapes)) as masks,
    ):
        for name in files.plain:
            weights.put(name, files.tensor(name))
        for name in files.layouts:
            weight = files.matrix(name)
            weights.put(f"{name}.weight", weight.to_dense())
            masks.put(name, pack_bits(weight.mask()))
        _copy_rest(folder, part)


def _copy_rest(folder: Path, part: Path) -> None:
    """Config, tokenizer, report: what holds no weights."""
    for file in folder.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(file, part / file.name)


def _bytes(matrices: Mapping[str, SparseWeight], plain: Mapping[str, Tensor]) -> int:
    return sum(weight.nbytes for weight in matrices.values()) + sum(tensor.nbytes for tensor in plain.values())
