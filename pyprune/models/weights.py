# SPDX-License-Identifier: Apache-2.0
"""Weights one tensor at a time: read from safetensors or drawn at random, and written without a file in memory."""

from __future__ import annotations

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

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


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


class Checkpoint:
    """Weights of a folder with ``model.safetensors``, or with shards and their index.

    Raises
    ------
    InputError
        No such files, a weight that is missing or of another shape, or weights that are not floating-point.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._folder = folder
        self._files: dict[str, Path] = {}
        self._specs: dict[str, tuple[str, tuple[int, ...]]] = {}
        for path in self._shards():
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        part = file.get_slice(name)
                        self._files[name] = path
                        self._specs[name] = (part.get_dtype(), tuple(part.get_shape()))
            except Exception as error:  # the library raises its own types
                raise InputError(
                    f"{path} cannot be read", seen=str(error), hint="copy it again: it is damaged or cut short"
                ) from error

    def _shards(self) -> list[Path]:
        if (self._folder / WEIGHTS).is_file():
            return [self._folder / WEIGHTS]
        index = self._folder / INDEX
        if not index.is_file():
            raise InputError(f"{self._folder} holds no {WEIGHTS} and no {INDEX}", hint="a folder with safetensors")
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{index} cannot be read", seen=f"{type(error).__name__}: {error}") from None
        return [self._folder / name for name in names]

    def spec(self, name: str, like: Tensor) -> Spec:
        """How the weight is stored."""
        if name not in self._specs:
            raise InputError(f"{self._folder} does not hold {name}", hint="a checkpoint saved whole from its own class")
        code, shape = self._specs[name]
        dtype = next((dtype for dtype, known in _CODES.items() if known == code), None)
        if dtype is None or not dtype.is_floating_point or shape != tuple(like.shape):
            raise InputError(
                f"{self._folder}: {name} does not fit the config",
                asked=f"floating-point {list(like.shape)}",
                seen=f"{code} {list(shape)}",
            )
        return Spec(dtype, shape)

    def read(self, name: str, like: Tensor) -> Tensor:
        """The weight in memory of its own, in its stored type."""
        from safetensors import safe_open

        # Opened anew, so that pages of the file that were read do not stay mapped.
        with safe_open(self._files[name], framework="pt") as file:
            value: Tensor = file.get_tensor(name)
            return value.clone()

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
            code = _CODES[spec.dtype]
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


def shards(specs: Mapping[str, Spec], limit: int) -> dict[str, dict[str, Spec]]:
    """Tensors by file name, in order, as many to a file as fit ``limit`` bytes."""
    groups: list[dict[str, Spec]] = []
    room = 0
    for name, spec in specs.items():
        if not groups or spec.bytes > room:
            groups.append({})
            room = limit
        groups[-1][name] = spec
        room -= spec.bytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}
