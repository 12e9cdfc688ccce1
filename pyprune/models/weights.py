# SPDX-License-Identifier: Apache-2.0
"""Weights one tensor at a time: read from safetensors or drawn at random, and written without a file in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pyprune.errors import InputError

STEM = "model"  # of the files that transformers reads
WEIGHTS = f"{STEM}.safetensors"
INDEX = f"{STEM}.safetensors.index.json"
SHARD = 5 * 10**9  # bytes a file at most, as transformers has it
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {code: dtype for dtype, code in CODES.items()}


@dataclass(frozen=True)
class Spec:
    """Type and shape of a stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes it takes in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


class Source(Protocol):
    """Where weights come from; ``like`` is the parameter of the model that is to be filled."""

    def spec(self, name: str, like: Tensor) -> Spec:
        """How the weight is stored."""

    def read(self, name: str, like: Tensor) -> Tensor:
        """The weight in memory of its own, in its stored type."""

    def identity(self) -> str | None:
        """What names all weights at once; None: their bits do."""


class Shards:
    """The tensors of one safetensors file, or of several with their index.

    Parameters
    ----------
    folder : Path
    stem : str
        ``STEM.safetensors``, or ``STEM.safetensors.index.json`` and the files it names.

    Attributes
    ----------
    folder : Path
    files : dict of str to Path
        Where each tensor is.
    metadata : dict of Path to dict
        What each file says of itself.

    Raises
    ------
    InputError
        No such files, or one that cannot be read.
    """

    def __init__(self, folder: Path, stem: str = STEM) -> None:
        from safetensors import safe_open

        self.folder = folder
        self.files: dict[str, Path] = {}
        self.metadata: dict[Path, dict[str, str]] = {}
        self._specs: dict[str, tuple[str, tuple[int, ...]]] = {}
        for path in _files(folder, stem):
            try:
                with safe_open(path, framework="pt") as file:
                    self.metadata[path] = file.metadata() or {}
                    for name in file.keys():  # noqa: SIM118
                        part = file.get_slice(name)
                        self.files[name] = path
                        self._specs[name] = (part.get_dtype(), tuple(part.get_shape()))
            except Exception as error:  # the library raises its own types
                raise InputError(
                    f"{path} cannot be read", seen=str(error), hint="copy it again: it is damaged or cut short"
                ) from error

    def stored(self, name: str) -> Spec:
        """Type and shape of a tensor.

        Raises
        ------
        InputError
            It is not there, or of a type that is not known.
        """
        if name not in self._specs:
            raise InputError(f"{self.folder} does not hold {name}", hint="a checkpoint saved whole from its own class")
        code, shape = self._specs[name]
        if code not in _TYPES:
            raise InputError(f"{self.files[name]}: {name} is of an unknown type", seen=code)
        return Spec(_TYPES[code], shape)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.metadata)

    def tensor(self, name: str) -> Tensor:
        """A tensor in memory of its own."""
        from safetensors import safe_open

        # Opened anew, so that pages of the file that were read do not stay mapped.
        with safe_open(self.files[name], framework="pt") as file:
            value: Tensor = file.get_tensor(name)
            return value.clone()


def _files(folder: Path, stem: str) -> list[Path]:
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise InputError(f"{folder} holds no {whole.name} and no {index.name}", hint="a folder with safetensors")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{index} cannot be read", seen=f"{type(error).__name__}: {error}") from None
    if outside:
        raise InputError(f"{index} names files that are not beside it", seen=outside[0][:80])
    return [folder / name for name in names]


class Checkpoint:
    """Weights of a folder with ``model.safetensors``, or with shards and their index.

    Raises
    ------
    InputError
        No such files, a weight that is missing or of another shape, or weights that are not floating-point.
    """

    def __init__(self, folder: Path) -> None:
        self.shards = Shards(folder)

    def spec(self, name: str, like: Tensor) -> Spec:
        """How the weight is stored."""
        spec = self.shards.stored(name)
        if not spec.dtype.is_floating_point or spec.shape != tuple(like.shape):
            raise InputError(
                f"{self.shards.folder}: {name} does not fit the config",
                asked=f"floating-point {list(like.shape)}",
                seen=f"{CODES[spec.dtype]} {list(spec.shape)}",
            )
        return spec

    def read(self, name: str, like: Tensor) -> Tensor:
        """The weight in memory of its own, in its stored type."""
        return self.shards.tensor(name)

    def identity(self) -> str | None:
        """None: the bits of the weights name them."""
        return None


class RandomWeights:
    """Weights of a model that was never trained, each from the seed and its own name.

    Matrices are normal with the config's deviation, norms one, biases zero. No global random state is read or moved.

    Parameters
    ----------
    seed : int
    deviation : float
    """

    def __init__(self, seed: int, deviation: float) -> None:
        self._seed, self._deviation = seed, deviation

    @classmethod
    def like(cls, config: Any, seed: int) -> RandomWeights:
        """With the deviation a config names; OPT has another word for it."""
        deviation: float = config.initializer_range if hasattr(config, "initializer_range") else config.init_std
        return cls(seed, deviation)

    def spec(self, name: str, like: Tensor) -> Spec:
        """As the parameter to be filled."""
        return Spec(like.dtype, tuple(like.shape))

    def read(self, name: str, like: Tensor) -> Tensor:
        """The weight, always the same for this seed and name."""
        if like.dim() < 2:
            return torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0, dtype=like.dtype)
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        value = torch.empty(like.shape, dtype=torch.float32).normal_(0.0, self._deviation, generator=generator)
        return value.to(like.dtype)

    def identity(self) -> str | None:
        """Seed and deviation."""
        return f"random, seed {self._seed}, deviation {self._deviation}"


class TensorWriter:
    """One safetensors file, written tensor by tensor.

    The file begins with a header that names every offset, so that types and shapes are given beforehand; then tensors
    may come in any order.

    Parameters
    ----------
    path : Path
    specs : mapping of str to Spec
    metadata : mapping of str to str
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        self._specs, self._starts, end = dict(specs), {}, 0
        # The widest type first keeps every tensor aligned.
        for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):
            spec, self._starts[name] = specs[name], end
            end += spec.bytes
            code = CODES[spec.dtype]
            header[name] = {"dtype": code, "shape": list(spec.shape), "data_offsets": [self._starts[name], end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._missing = set(specs)
        self._begin = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, value: Tensor) -> None:
        """Write one tensor, in its spec's type."""
        spec = self._specs[name]
        assert tuple(value.shape) == spec.shape, name
        array: Any = value.to(device="cpu", dtype=spec.dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
        self._file.seek(self._begin + self._starts[name])
        self._file.write(memoryview(array))
        self._missing.discard(name)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        assert kind is not None or not self._missing, sorted(self._missing)


class ShardWriter:
    """The files of a model as transformers writes them: one or several with an index, tensor by tensor in any order.

    Parameters
    ----------
    folder : Path
    specs : mapping of str to Spec
    limit : int
        Bytes of tensors in a file at most.
    """

    def __init__(self, folder: Path, specs: Mapping[str, Spec], limit: int = SHARD) -> None:
        self._writers: dict[str, TensorWriter] = {}
        files = shards(specs, limit)
        with contextlib.ExitStack() as stack:
            for file, group in files.items():
                writer = stack.enter_context(TensorWriter(folder / file, group, {"format": "pt"}))
                self._writers |= dict.fromkeys(group, writer)
            write_index(folder, files)
            self._open = stack.pop_all()

    def put(self, name: str, value: Tensor) -> None:
        """Write one tensor, in its spec's type."""
        self._writers[name].put(name, value)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *reason: Any) -> None:
        self._open.__exit__(*reason)


def shards(specs: Mapping[str, Spec], limit: int, stem: str = STEM) -> dict[str, dict[str, Spec]]:
    """Tensors by file name, in order, as many to a file as fit ``limit`` bytes."""
    groups: list[dict[str, Spec]] = [{}]
    room = limit
    for name, spec in specs.items():
        if groups[-1] and spec.bytes > room:
            groups.append({})
            room = limit
        groups[-1][name] = spec
        room -= spec.bytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def write_index(folder: Path, files: Mapping[str, Mapping[str, Spec]], stem: str = STEM) -> None:
    """Say which file holds which tensor, where there are several."""
    if len(files) == 1:
        return
    total = sum(spec.bytes for group in files.values() for spec in group.values())
    where = {name: file for file, group in files.items() for name in group}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1)
    (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")
