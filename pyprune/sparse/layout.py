# SPDX-License-Identifier: Apache-2.0
"""What a stored matrix says of itself, and whether its tensors agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.ops.sparse_weight import STORED, VALUE_TYPES, SparseWeight, unpack_bits

Shape = tuple[int, ...]
_MOST = 2**48  # of any number in a description


@dataclass(frozen=True)
class Layout:
    """Shape and arrangement of a compressed matrix: all but its numbers.

    Attributes
    ----------
    shape : (int, int)
        ``(out, in)``.
    format : str
        One of :data:`pyprune.ops.sparse_weight.STORED`.
    geometry : (int, int)
        ``(keep, of)`` of "nm", ``(rows, cols)`` of "block", else ``(1, 1)``.
    kept : int
        Weights that are stored.

    Raises
    ------
    InputError
        These do not fit together.
    """

    shape: tuple[int, int]
    format: str
    geometry: tuple[int, int]
    kept: int

    def __post_init__(self) -> None:
        if self.format not in STORED:
            raise InputError(f"unknown format {str(self.format)[:40]!r}", hint=", ".join(STORED))
        out, columns = self.shape
        first, second = self.geometry
        fits = {
            "nm": second >= 1 and 0 <= first <= second and columns % max(second, 1) == 0,
            "block": first >= 1 and second >= 1 and out % max(first, 1) == 0 and columns % max(second, 1) == 0,
        }.get(self.format, self.geometry == (1, 1))
        if min(self.shape) < 0 or not fits:
            raise InputError(
                f"{self.format} of this geometry does not fit the matrix",
                seen=_short(f"geometry {list(self.geometry)}, matrix {list(self.shape)}"),
            )
        most = out * columns
        counts = {
            "dense": self.kept == most,
            "bitmask": 0 <= self.kept <= most,
            "nm": self.kept == out * (columns // max(second, 1)) * first,
            "block": 0 <= self.kept <= most and self.kept % max(first * second, 1) == 0,
        }
        if not counts[self.format]:
            raise InputError(
                f"{self.format} of this matrix cannot keep so many weights",
                seen=_short(f"{self.kept} of {list(self.shape)}, geometry {list(self.geometry)}"),
            )

    @classmethod
    def of(cls, weight: SparseWeight) -> Layout:
        """That of a matrix in a stored format."""
        return cls(weight.shape, weight.format, weight.geometry, weight.values.numel())

    @classmethod
    def from_json(cls, value: Any) -> Layout:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        InputError
            Another set of entries, or not whole numbers.
        """
        if not isinstance(value, dict) or set(value) != {"shape", "format", "geometry", "kept"}:
            raise InputError("a matrix is described by shape, format, geometry and kept", seen=_short(repr(value)))
        pairs = [value["shape"], value["geometry"]]
        whole = all(isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair) for pair in pairs)
        if not whole or type(value["kept"]) is not int or not isinstance(value["format"], str):
            raise InputError("a matrix is described by whole numbers and a format", seen=_short(repr(value)))
        if max(*pairs[0], *pairs[1], value["kept"]) > _MOST:
            raise InputError("a matrix is described by numbers far too large", seen=_short(repr(value)))
        shape, geometry = ((int(first), int(second)) for first, second in pairs)
        return cls(shape, value["format"], geometry, value["kept"])

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "shape": list(self.shape),
            "format": self.format,
            "geometry": list(self.geometry),
            "kept": self.kept,
        }

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the bit matrix that says what is kept; None: all is."""
        if self.format == "dense":
            return None
        if self.format == "block":
            return self.shape[0] // self.geometry[0], self.shape[1] // self.geometry[1]
        return self.shape

    @property
    def values(self) -> Shape:
        """Shape of the values."""
        if self.format == "dense":
            return self.shape
        if self.format == "nm":
            keep, of = self.geometry
            return self.shape[0], self.shape[1] // of * keep
        if self.format == "block":
            rows, cols = self.geometry
            return self.kept // (rows * cols), rows, cols
        return (self.kept,)

    @property
    def bits(self) -> Shape:
        """Shape of the packed bits, of formats that have a :attr:`grid`."""
        assert self.grid is not None
        return self.grid[0], math.ceil(self.grid[1] / 8)


def check(weight: SparseWeight) -> SparseWeight:
    """The same matrix, if its tensors are what its format says.

    Raises
    ------
    InputError
        A tensor is missing, of another shape or type, keeps something else than it says, or holds numbers that are not
        finite or scales that are not positive.
    """
    layout = Layout.of(weight)
    if weight.dtype not in VALUE_TYPES:
        raise InputError(f"values cannot be {weight.dtype}", hint="float32, bfloat16, float16 or int8")
    _check_shape("values", weight.values, weight.dtype, layout.values)
    if (weight.scale is not None) != (weight.dtype == torch.int8):
        raise InputError("int8 values have a scale, others have none", seen=str(weight.dtype))
    if weight.scale is not None:
        _check_shape("scale", weight.scale, torch.float32, layout.shape[:1])
        if not bool((torch.isfinite(weight.scale) & (weight.scale > 0)).all()):
            raise InputError("a scale is not a positive number")
    elif not _finite(weight.values):
        raise InputError("a value is NaN or infinite")
    if set(weight.parts) != {"values"} | ({"bits"} if layout.grid else set()):
        raise InputError(f"not the tensors of the format {layout.format}", seen=", ".join(sorted(weight.parts)))
    if layout.grid is not None:
        _check_shape("bits", weight.parts["bits"], torch.uint8, layout.bits)
        _check_kept(layout, weight.parts["bits"])
    return weight


def _check_kept(layout: Layout, bits: Tensor) -> None:
    assert layout.grid is not None
    rows, columns = layout.grid
    if columns % 8 and bool((bits[:, -1] >> columns % 8).any()):
        raise InputError("a bit is set behind the last column")
    mask = unpack_bits(bits, columns)
    kept = int(mask.sum()) * (math.prod(layout.geometry) if layout.format == "block" else 1)
    if kept != layout.kept:
        raise InputError("the bits keep another number of weights", asked=f"{layout.kept}", seen=f"{kept}")
    if layout.format == "nm":
        keep, of = layout.geometry
        if bool((mask.reshape(rows, -1, of).sum(-1) != keep).any()):
            raise InputError(f"the bits do not keep exactly {keep} of every {of}")


def _check_shape(name: str, tensor: Tensor, dtype: torch.dtype, shape: Shape) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise InputError(
            f"{name} is not what the format says",
            asked=f"{dtype} {list(shape)}",
            seen=f"{tensor.dtype} {list(tensor.shape)}",
        )


def _finite(values: Tensor) -> bool:
    return not values.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def _short(text: str) -> str:
    """Not a page of what a broken file says."""
    return text if len(text) <= 160 else text[:160] + " …"
