# SPDX-License-Identifier: Apache-2.0
"""A stored result with the other storage, matrix by matrix; the model itself is never made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import whole_folder
from pyprune.models.weights import Checkpoint, ShardWriter, TensorWriter
from pyprune.ops.sparse_weight import SparseWeight, compress, pack_bits
from pyprune.sparse.linear import compress_as
from pyprune.sparse.loading import empty_model, open_sparse
from pyprune.sparse.mask_file import MASKS, mask_shapes, mask_specs, read_masks
from pyprune.sparse.storage import is_sparse, stored_tensors


def compressed(folder: Path, dtype: torch.dtype | None) -> tuple[dict[str, SparseWeight], dict[str, Tensor]]:
    """Matrices and plain tensors of a saved result.

    Parameters
    ----------
    folder : Path
        Sparse, or dense with masks beside.
    dtype : torch.dtype, optional
        Of the values of matrices; default: as they are.

    Raises
    ------
    InputError
        A file is missing or damaged, or masks and model do not fit.
    """
    if is_sparse(folder):
        files, _ = open_sparse(folder)
        matrices = {name: _with_values(files.matrix(name), dtype) for name in files.layouts}
        return matrices, {name: files.tensor(name) for name in files.plain}
    if not (folder / MASKS).is_file():
        raise InputError(f"{folder} has no masks of weights", hint='a compact model: first storage="dense" (--dense)')
    source = Checkpoint(folder)
    likes = stored_tensors(empty_model(source.shards))
    for name, like in likes.items():
        source.spec(name, like)
    matrices = {}
    for name, mask in read_masks(folder):
        if f"{name}.weight" not in likes:
            raise InputError(f"{folder} has a mask for {name}, which is no linear of the model")
        weight = source.read(f"{name}.weight", likes.pop(f"{name}.weight"))
        matrices[name] = compress_as(weight, mask, dtype=dtype)
    return matrices, {name: source.read(name, like) for name, like in likes.items()}


def _with_values(weight: SparseWeight, dtype: torch.dtype | None) -> SparseWeight:
    if dtype in (None, weight.dtype):
        return weight
    return compress(weight.to_dense(), weight.mask(), format=weight.format, geometry=weight.geometry, dtype=dtype)


def write_dense(folder: Path, target: Path) -> None:
    """Write a sparse folder with its zeros, matrix by matrix."""
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
        copy_rest(folder, part)


def copy_rest(folder: Path, part: Path) -> None:
    """Config, tokenizer, report: what holds no weights."""
    for file in folder.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(file, part / file.name)


def bytes_of(matrices: Mapping[str, SparseWeight], plain: Mapping[str, Tensor]) -> int:
    """What they take on disk."""
    return sum(weight.nbytes for weight in matrices.values()) + sum(tensor.nbytes for tensor in plain.values())
