# SPDX-License-Identifier: Apache-2.0
"""The arrangement "semi" of 2:4 matrices on a GPU: as torch packs them for cuSPARSELt, or else for CUTLASS.

=========  ==========================  ==================================================================
part       shape, dtype                what it holds
=========  ==========================  ==================================================================
values     torch's own                 kept weights; with cuSPARSELt also which they are
meta       torch's own, may be empty   which they are, with CUTLASS
bits       ``[out, ⌈in/8⌉]`` uint8     the mask, for the way back: a kept weight may be zero
=========  ==========================  ==================================================================

Tensor cores skip the half that is gone: half the bytes, and up to twice the operations (Mishra et al., "Accelerating
sparse deep neural networks", 2021). Whatever torch lacks here leaves a matrix in tiles: nothing fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

PARTS = ("values", "meta", "bits")
GEOMETRY = (2, 4)
DTYPES = (torch.bfloat16, torch.float16)
MULTIPLES = (32, 64)  # of rows and columns: what CUTLASS asks for, more than cuSPARSELt


def why_not(shape: tuple[int, int], dtype: torch.dtype, geometry: tuple[int, int], arch: int) -> str | None:
    """Why torch cannot multiply an N:M matrix by 2:4 products, or None where it may.

    Parameters
    ----------
    shape : (int, int)
    dtype : torch.dtype
        Of the values. float32 would be cut to TF32, and int8 is multiplied by int8 only, to which x would be cut.
    geometry : (int, int)
        ``(keep, of)``.
    arch : int
        Compute capability as two digits (90 for 9.0).
    """
    if geometry != GEOMETRY:
        return f"{geometry[0]}:{geometry[1]} is not 2:4"
    if dtype not in DTYPES:
        return f"values are {dtype}, not bfloat16 or float16"
    if 0 in shape or any(size % multiple for size, multiple in zip(shape, MULTIPLES, strict=True)):
        return f"{shape[0]} x {shape[1]} is not a multiple of {MULTIPLES[0]} x {MULTIPLES[1]}"
    if arch < 80:
        return f"compute capability {arch / 10} is below 8.0"
    return None


def arrange(dense: Tensor, bits: Tensor) -> dict[str, Tensor] | None:
    """Parts of the arrangement, or None where this torch cannot multiply by them here.

    Parameters
    ----------
    dense : Tensor, shape (out, in)
        With its zeros, contiguous.
    bits : Tensor of uint8, shape (out, ⌈in/8⌉)
        Its mask.
    """
    for pack in (torch.sparse.to_sparse_semi_structured, torch.sparse.SparseSemiStructuredTensorCUTLASS.from_dense):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a prototype: what it lacks is found out here
                packed = pack(dense)
            meta = dense.new_empty(0) if packed.meta is None else packed.meta
            parts: dict[str, Tensor] = {"values": packed.packed, "meta": meta, "bits": bits}  # type: ignore[dict-item]
            multiply(dense.new_zeros(1, dense.shape[1]), parts, (dense.shape[0], dense.shape[1]))
        except (AttributeError, TypeError, NotImplementedError, RuntimeError):  # a build, card or version without it
            continue
        return parts
    return None


def multiply(x: Tensor, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """``x Wᵀ`` for x of the values' type, ``[tokens, in]`` to ``[tokens, out]``; sums in float32, rounded once."""
    if not len(x):
        return x.new_empty(0, shape[0])
    y: Tensor = torch.nn.functional.linear(x.contiguous(), _packed(parts, shape))
    return y


def spread(parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """The matrix with its zeros, ``[out, in]``, to the bit: each entry is one product by one."""
    dense: Tensor = _packed(parts, shape).to_dense()  # type: ignore[no-untyped-call]
    return dense


def _packed(parts: Mapping[str, Tensor], shape: tuple[int, int]) -> torch.sparse.SparseSemiStructuredTensor:
    """Torch's tensor around the parts."""
    by_cutlass = parts["meta"].numel() > 0
    kind = (
        torch.sparse.SparseSemiStructuredTensorCUTLASS
        if by_cutlass
        else torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    )
    return kind(
        torch.Size(shape),
        packed=parts["values"],
        meta=parts["meta"] if by_cutlass else None,
        packed_t=None,
        meta_t=None,
        compressed_swizzled_bitmask=None,
    )
