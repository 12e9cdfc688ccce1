# SPDX-License-Identifier: Apache-2.0
"""The files of a model with compressed matrices: ``pyprune.safetensors``, or several with an index (docs/format.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.weights import SHARD, Shards, Spec, TensorWriter, shards, write_index
from pyprune.ops.sparse_weight import SparseWeight
from pyprune.sparse.format import PARTS, check_specs, checksum, decode, encode
from pyprune.sparse.layout import Layout

STEM = "pyprune"  # not transformers' own, which would load the plain tensors and draw the others at random
VERSION = 1
_KEY = "pyprune"  # of the metadata


def is_sparse(folder: Path) -> bool:
    """Whether a folder holds a model with compressed matrices."""
    return any((folder / f"{STEM}.safetensors{end}").is_file() for end in ("", ".index.json"))


def write_files(
    folder: Path, matrices: Mapping[str, SparseWeight], plain: Mapping[str, Tensor], *, limit: int = SHARD
) -> None:
    """Write compressed matrices by name of their linear, and all other tensors under their own names.

    Parameters
    ----------
    folder : Path
    matrices : mapping of str to SparseWeight
        In stored formats.
    plain : mapping of str to Tensor
    limit : int
        Bytes of tensors in a file at most, where a single matrix does not take more.
    """
    layouts = {name: Layout.of(weight) for name, weight in matrices.items()}
    groups = {name: {f"{name}.{part}": tensor for part, tensor in encode(w).items()} for name, w in matrices.items()}
    groups |= {name: {name: tensor} for name, tensor in plain.items()}
    sizes = {name: Spec(torch.uint8, (sum(t.nbytes for t in group.values()),)) for name, group in groups.items()}
    files: dict[str, dict[str, Spec]] = {}
    for file, names in shards(sizes, limit, STEM).items():
        tensors = {name: tensor for group in names for name, tensor in groups[group].items()}
        files[file] = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        head = {
            "version": VERSION,
            "matrices": {name: layouts[name].to_json() for name in names if name in layouts},
            "crc32": {name: checksum(tensor) for name, tensor in tensors.items()},
        }
        with TensorWriter(folder / file, files[file], {_KEY: json.dumps(head, separators=(",", ":"))}) as writer:
            for name, tensor in tensors.items():
                writer.put(name, tensor)
    write_index(folder, files, STEM)


class SparseFiles:
    """What a folder holds, checked as far as the heads of its files go; tensors are read and checked one by one.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    shards : Shards
    layouts : dict of str to Layout
        Of the compressed matrices, by name of their linear.
    plain : dict of str to Spec
        Of all other tensors.

    Raises
    ------
    InputError
        A file is missing, damaged or of another version, or its tensors do not fit their description.
    """

    def __init__(self, folder: Path) -> None:
        self.shards = Shards(folder, STEM)
        self.layouts: dict[str, Layout] = {}
        self._sums: dict[str, int] = {}
        for path, metadata in self.shards.metadata.items():
            with _about(path):
                self._read_head(metadata)
        specs = {}
        for name in self.shards.files:
            with _about(self.shards.files[name], name):
                specs[name] = self.shards.stored(name)
        if specs.keys() != self._sums.keys():
            raise InputError(
                f"{folder}: not the tensors that its files list",
                seen=_few(specs.keys() ^ self._sums.keys()),
                hint="copy the folder again, with all its files",
            )
        self._parts: dict[str, dict[str, str]] = {}
        for name, layout in self.layouts.items():
            self._parts[name] = {part: full for part in PARTS if (full := f"{name}.{part}") in specs}
            with _about(folder, name):
                check_specs(layout, {part: specs.pop(full) for part, full in self._parts[name].items()})
        self.plain: dict[str, Spec] = specs

    def _read_head(self, metadata: Mapping[str, str]) -> None:
        try:
            head: Any = json.loads(metadata[_KEY])
            version, matrices, sums = head["version"], head["matrices"], head["crc32"]
            if not isinstance(matrices, dict) or not isinstance(sums, dict):
                raise TypeError("matrices and crc32 must be objects")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            seen = f"{type(error).__name__}: {str(error)[:160]}"
            raise InputError("its metadata is not that of a compressed model", seen=seen) from None
        if version != VERSION:
            raise InputError("it is of another version of the format", asked=f"{VERSION}", seen=repr(version)[:40])
        if matrices.keys() & self.layouts.keys() or sums.keys() & self._sums.keys():
            raise InputError("it holds what another file holds too")
        for name, value in matrices.items():
            with _about(name):
                self.layouts[name] = Layout.from_json(value)
        self._sums |= sums

    def matrix(self, name: str) -> SparseWeight:
        """A compressed matrix, checked.

        Raises
        ------
        InputError
            Its tensors are damaged, or contradict their description.
        """
        tensors = {part: self.tensor(full) for part, full in self._parts[name].items()}
        with _about(self.shards.folder, name):
            return decode(self.layouts[name], tensors)

    def dense(self, name: str) -> Spec:
        """Type and shape that a matrix has with its zeros."""
        dtype = self.shards.stored(f"{name}.values").dtype
        return Spec(dtype if dtype.is_floating_point else torch.float32, self.layouts[name].shape)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the files, whose checksum is right.

        Raises
        ------
        InputError
            It is damaged.
        """
        path = self.shards.files[name]
        try:
            tensor = self.shards.tensor(name)
        except Exception as error:  # the library raises its own types
            raise InputError(f"{path}: {name} cannot be read", seen=str(error)[:300]) from error
        if checksum(tensor) != self._sums[name]:
            raise InputError(f"{path}: {name} is damaged: its checksum differs", hint="copy the file again")
        return tensor

    def check(self, model: nn.Module) -> None:
        """Raise :class:`InputError` unless these are the tensors of this model, which may be on the meta device."""
        wanted = stored_tensors(model)
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        for name, layout in self.layouts.items():
            weight = wanted.pop(f"{name}.weight", None)
            if name not in linears or weight is None:
                self._refuse(name, "a linear of the model", "no such linear")
            elif tuple(weight.shape) != layout.shape:
                self._refuse(name, list(weight.shape), list(layout.shape))
        if wanted.keys() != self.plain.keys():
            missing, more = wanted.keys() - self.plain.keys(), self.plain.keys() - wanted.keys()
            self._refuse("the tensors", f"also {_few(missing)}" if missing else "no more", _few(more) or "none more")
        for name, like in wanted.items():
            spec = self.plain[name]
            floating = like.is_floating_point() and spec.dtype.is_floating_point
            if spec.shape != tuple(like.shape) or not (floating or spec.dtype == like.dtype):
                self._refuse(name, f"{like.dtype} {list(like.shape)}", f"{spec.dtype} {list(spec.shape)}")

    def _refuse(self, name: str, asked: object, seen: object) -> None:
        where = f"{self.shards.folder}: {_plain(name)}"
        raise InputError(f"{where} does not fit config.json", asked=str(asked)[:200], seen=str(seen)[:200])


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and lasting buffers by name; tied ones have one name, the first."""
    everything: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    stored = model.state_dict().keys()
    lasting = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {name: everything[name] for name, _ in model.named_parameters()} | lasting


@contextmanager
def _about(*where: object) -> Iterator[None]:
    """Errors within say where."""
    try:
        yield
    except InputError as error:
        place = ": ".join(_plain(part) for part in where)
        raise InputError(f"{place}: {error.message}", asked=error.asked, seen=error.seen, hint=error.hint) from None


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(map(_plain, listed[:4])) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _plain(name: object) -> str:
    """A name from a file, in characters that can be printed anywhere."""
    return str(name)[:200].encode("ascii", "backslashreplace").decode()
