# SPDX-License-Identifier: Apache-2.0
"""A matrix as tensors of a file, and back: docs/format.md.

A matrix ``NAME`` is ``NAME.values``, with int8 values also ``NAME.scale``, and unless everything is kept either
``NAME.bits`` or ``NAME.gaps``, whichever is shorter. Nothing that a file says is believed before it is checked.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.weights import CODES, Spec
from pyprune.ops.sparse_weight import VALUE_TYPES, SparseWeight, pack_bits, unpack_bits
from pyprune.sparse.layout import Layout, check
from pyprune.sparse.positions import decode_gaps, encode_gaps, gaps_bytes

PARTS = ("values", "scale", "bits", "gaps")


def encode(weight: SparseWeight) -> dict[str, Tensor]:
    """Tensors of a matrix in a stored format, by what follows ``NAME.``."""
    layout = Layout.of(weight)
    tensors = {"values": weight.values}
    if weight.scale is not None:
        tensors["scale"] = weight.scale
    if layout.grid is not None:
        bits = weight.parts["bits"]
        mask = unpack_bits(bits, layout.grid[1])
        shorter = gaps_bytes(mask) < bits.numel()
        tensors |= {"gaps": encode_gaps(mask)} if shorter else {"bits": bits}
    return {part: tensor.cpu() for part, tensor in tensors.items()}


def check_specs(layout: Layout, specs: Mapping[str, Spec]) -> None:
    """Raise :class:`InputError` unless tensors of these types and shapes can be a matrix of this layout."""
    dtype = specs["values"].dtype if "values" in specs else None
    if dtype not in VALUE_TYPES:
        raise InputError("its values are missing or of an unknown type", seen=str(dtype))
    wanted = {"values": Spec(dtype, layout.values)}
    if dtype == torch.int8:
        wanted["scale"] = Spec(torch.float32, layout.shape[:1])
    if layout.grid is not None:
        gaps = specs.get("gaps")
        if gaps is not None and len(gaps.shape) == 1:
            wanted["gaps"] = Spec(torch.uint8, gaps.shape)  # its length is checked against what it says
        else:
            wanted["bits"] = Spec(torch.uint8, layout.bits)
    if wanted != dict(specs):
        raise InputError(
            f"not the tensors of {layout.format} {list(layout.shape)} with {layout.kept} kept",
            asked=_told(wanted),
            seen=_told(specs),
        )


def decode(layout: Layout, tensors: Mapping[str, Tensor]) -> SparseWeight:
    """A matrix from its tensors, whose types and shapes were checked (:func:`check_specs`).

    Raises
    ------
    InputError
        The tensors contradict the layout or each other.
    """
    parts = {"values": tensors["values"]}
    if "gaps" in tensors:
        assert layout.grid is not None
        parts["bits"] = pack_bits(decode_gaps(tensors["gaps"], *layout.grid))
    elif "bits" in tensors:
        parts["bits"] = tensors["bits"]
    weight = SparseWeight(layout.shape, layout.format, parts, tensors.get("scale"), layout.geometry)
    if Layout.of(check(weight)) != layout:
        raise InputError("another number of weights is kept than stated", asked=f"{layout.kept}")
    return weight


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a line with type and shape, as in ``F32 384 1536``, and the tensor's bytes."""
    head = " ".join([CODES[tensor.dtype], *map(str, tensor.shape)]) + "\n"
    array: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(memoryview(array), zlib.crc32(head.encode()))


def _told(specs: Mapping[str, Spec]) -> str:
    return ", ".join(f"{name} {CODES.get(spec.dtype, '?')} {list(spec.shape)}" for name, spec in sorted(specs.items()))
