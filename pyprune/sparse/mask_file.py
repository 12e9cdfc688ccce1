# SPDX-License-Identifier: Apache-2.0
"""Masks of weights beside dense weights on disk, eight to a byte."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyprune.models.weights import Spec
from pyprune.ops.sparse_weight import pack_bits, unpack_bits

MASKS = "pyprune_masks.safetensors"


def shapes_of(masks: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    """Shapes by name."""
    return {name: mask.shape for name, mask in masks.items()}


def mask_shapes(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Metadata of the file of masks: what shapes the bits have."""
    return {"shapes": json.dumps({name: list(shape) for name, shape in shapes.items()})}


def mask_specs(shapes: Mapping[str, Sequence[int]]) -> dict[str, Spec]:
    """Types and shapes in the file of masks."""
    return {name: Spec(torch.uint8, (rows, -(-columns // 8))) for name, (rows, columns) in shapes.items()}


def mask_bytes(masks: Mapping[str, Tensor]) -> int:
    """What masks take on disk."""
    return sum(spec.bytes for spec in mask_specs(shapes_of(masks)).values())


def write_masks(folder: Path, masks: Mapping[str, Tensor]) -> None:
    """Write masks, bool ``[out, in]`` by linear name, into a folder."""
    from safetensors.torch import save_file

    packed = {name: pack_bits(mask.cpu()) for name, mask in masks.items()}
    save_file(packed, folder / MASKS, metadata=mask_shapes(shapes_of(masks)))


def read_masks(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and masks of a folder, one in memory at a time."""
    from safetensors import safe_open

    with safe_open(folder / MASKS, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        for name, (_, columns) in shapes.items():
            yield name, unpack_bits(file.get_tensor(name), columns)
