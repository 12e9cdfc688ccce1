# SPDX-License-Identifier: Apache-2.0
"""A matrix without its zeros: what :func:`pyprune.ops.spmm` multiplies by, and what files hold.

The stored formats are few and plain (docs/format.md describes them for readers in any language):

=========  =========================================================  ==================================
format     which weights are kept                                     ``values``
=========  =========================================================  ==================================
dense      all                                                        ``[out, in]``
bitmask    ``bits [out, ⌈in/8⌉]``, column ``8i + j`` is bit ``j``     ``[kept]``, row by row
nm         as bitmask, ``keep`` in every group of ``of``              ``[out, in / of · keep]``
block      ``bits [out/rows, ⌈(in/cols)/8⌉]`` of blocks               ``[blocks, rows, cols]``
=========  =========================================================  ==================================

Values are float32, bfloat16, float16, or int8 with one ``scale`` a row: ``weight = scale[row] · value``. Kernels may
want another arrangement of the same numbers: :func:`pyprune.ops.prepare` makes it, :func:`restore` goes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.ops import semi_structured, sparse_rows, sparse_tiles
from pyprune.ops.places import Places
from pyprune.ops.sparse_windows import Windows

STORED = ("dense", "bitmask", "nm", "block")
VALUE_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """A compressed ``[out, in]`` matrix.

    Attributes
    ----------
    shape : (int, int)
        ``(out, in)``.
    format : str
        One of :data:`STORED`, or an arrangement: "rows", the CPU kernel's (:mod:`pyprune.ops.sparse_rows`), "tiles",
        that of GPUs (:mod:`pyprune.ops.sparse_tiles`), or "semi", torch's for 2:4 (:mod:`pyprune.ops.semi_structured`).
    parts : dict of str to Tensor
        The tensors of the format, ``values`` among them.
    scale : Tensor of float32, shape (out,), optional
        With int8 values only.
    geometry : (int, int)
        ``(keep, of)`` of "nm", ``(rows, cols)`` of "block", the kernel's own of an arrangement, else ``(1, 1)``.
    places : Places
        For kernels: what they made of the addresses of the parts.
    windows : Windows
        Of "rows": the same matrix as few tokens are multiplied by, made when it is first wanted.
    """

    shape: tuple[int, int]
    format: str
    parts: Mapping[str, Tensor]
    scale: Tensor | None = None
    geometry: tuple[int, int] = (1, 1)
    places: Places = field(default_factory=Places, init=False, repr=False)
    windows: Windows = field(default_factory=Windows, init=False, repr=False)

    @property
    def values(self) -> Tensor:
        """The kept weights, in the order of the format."""
        return self.parts["values"]

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Of all parts."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        tensors = [*self.parts.values(), *([] if self.scale is None else [self.scale])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix with its zeros, shape ``(out, in)``; by default in the values' dtype, float32 for int8."""
        return to_dense(self.format, self.parts, self.scale, self.shape, self.geometry, dtype)

    def mask(self) -> Tensor:
        """Bool ``(out, in)``, True = kept; a kept weight may be zero by chance."""
        if self.format == "dense":
            return torch.ones(self.shape, dtype=torch.bool, device=self.device)
        return _mask(self.format, self.parts, self.shape, self.geometry)


def compress(
    weight: Tensor,  # [out, in]
    mask: Tensor | None = None,  # [out, in] bool
    *,
    format: str = "bitmask",
    geometry: tuple[int, int] = (1, 1),
    dtype: torch.dtype | None = None,
) -> SparseWeight:
    """Leave out the weights that a mask removes.

    Parameters
    ----------
    weight : Tensor, shape (out, in)
        Floating.
    mask : Tensor of bool, shape (out, in), optional
        True = kept; by default the weights that are not zero.
    format : {"dense", "bitmask", "nm", "block"}
        "nm" needs exactly ``keep`` kept weights in every group of ``of`` inputs, "block" whole blocks.
    geometry : (int, int)
        ``(keep, of)`` of "nm", ``(rows, cols)`` of "block".
    dtype : torch.dtype, optional
        Of the stored values: float32, bfloat16, float16, or int8 (symmetric, one scale a row: the largest size of a
        row becomes 127). By default the weight's own, float32 for float64.

    Raises
    ------
    InputError
        An unknown format, shapes that do not fit, a mask that is not of the format, a value that is not finite.

    Examples
    --------
    >>> sparse = compress(torch.tensor([[0.0, 2.0, 0.0, -1.0]]))
    >>> sparse.values
    tensor([ 2., -1.])
    >>> sparse.to_dense()
    tensor([[ 0.,  2.,  0., -1.]])
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise InputError("compress: the weight must be a floating matrix", seen=f"{weight.dtype} {list(weight.shape)}")
    if format not in STORED:
        raise InputError(f"compress: unknown format {format!r}", hint=", ".join(STORED))
    weight = weight.detach()
    mask = weight != 0 if mask is None else mask.to(weight.device)
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise InputError("compress: the mask must be bool and of the weight's shape", seen=f"{list(mask.shape)}")
    kept = weight.masked_fill(~mask, 0)
    if kept.numel() and not bool(torch.isfinite(kept).all()):
        raise InputError("compress: a kept weight is not finite")
    stored, scale = _stored(kept, dtype)
    parts, geometry = _packed(stored, mask, format, geometry)
    return SparseWeight((weight.shape[0], weight.shape[1]), format, parts, scale, geometry)


def restore(weight: SparseWeight, format: str = "bitmask", geometry: tuple[int, int] = (1, 1)) -> SparseWeight:
    """The same matrix in another stored format: the same bits of values, and what was kept is kept, also zeros.

    Raises
    ------
    InputError
        The mask is not of the format.

    Examples
    --------
    >>> sparse = compress(torch.tensor([[0.0, 2.0, 0.0, -1.0]]), format="nm", geometry=(1, 2))
    >>> restore(sparse).values
    tensor([ 2., -1.])
    """
    stored = _spread(weight.format, weight.parts, weight.values, weight.shape, weight.geometry)
    parts, geometry = _packed(stored, weight.mask(), format, geometry)
    return SparseWeight(weight.shape, format, parts, weight.scale, geometry)


def _packed(
    stored: Tensor, mask: Tensor, format: str, geometry: tuple[int, int]
) -> tuple[dict[str, Tensor], tuple[int, int]]:
    out, columns = stored.shape
    if format == "dense":
        return {"values": stored.contiguous()}, (1, 1)
    if format == "block":
        rows, cols = _check_blocks((out, columns), geometry)
        blocks = mask.reshape(out // rows, rows, columns // cols, cols).transpose(1, 2)
        chosen = blocks.flatten(2).any(-1) if blocks.numel() else blocks.new_zeros(blocks.shape[:2])
        values = stored.reshape(out // rows, rows, columns // cols, cols).transpose(1, 2)[chosen]
        return {"bits": pack_bits(chosen), "values": values.contiguous()}, geometry
    parts = {"bits": pack_bits(mask), "values": stored[mask]}
    if format == "bitmask":
        return parts, (1, 1)
    keep, of = _check_groups((out, columns), geometry)
    if bool((mask.reshape(out, -1, of).sum(-1) != keep).any()):
        raise InputError(f"the mask does not keep exactly {keep} of every {of} inputs")
    parts["values"] = parts["values"].reshape(out, columns // of * keep)
    return parts, geometry


def _stored(kept: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    if dtype is None:
        dtype = kept.dtype if kept.dtype in VALUE_TYPES else torch.float32
    if dtype not in VALUE_TYPES:
        raise InputError(f"compress: values cannot be {dtype}", hint="float32, bfloat16, float16 or int8")
    if dtype != torch.int8:
        stored = kept.to(dtype)
        if stored.numel() and not bool(torch.isfinite(stored).all()):
            raise InputError(f"compress: a weight is too large for {dtype}", hint="bfloat16 or float32")
        return stored, None
    largest = kept.abs().amax(1).float() if kept.shape[1] else kept.new_zeros(kept.shape[0]).float()
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (kept.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def to_dense(
    format: str,
    parts: Mapping[str, Tensor],
    scale: Tensor | None,
    shape: tuple[int, int],
    geometry: tuple[int, int],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What :meth:`SparseWeight.to_dense` gives, from the pieces."""
    values = parts["values"]
    target = dtype or (values.dtype if scale is None else torch.float32)
    exact = torch.float64 if target == torch.float64 else torch.float32
    wide = values.to(target if scale is None else exact)  # a scaled value is rounded once
    dense = _spread(format, parts, wide, shape, geometry)
    return dense if scale is None else (dense * scale.to(dense.dtype)[:, None]).to(target)


def _spread(
    format: str, parts: Mapping[str, Tensor], values: Tensor, shape: tuple[int, int], geometry: tuple[int, int]
) -> Tensor:
    """``values`` where the format has them, zeros elsewhere, shape ``(out, in)``."""
    if format == "dense":
        return values
    if format == "semi":
        return semi_structured.spread(parts, shape).to(values.dtype)
    if format in ("rows", "tiles"):
        row, column, index = _places(format, parts, shape, geometry)
        return values.new_zeros(shape).index_put((row, column), values[index])
    if format == "block":
        rows, cols = geometry
        chosen = unpack_bits(parts["bits"], shape[1] // cols)[:, :, None, None]
        blocks = values.new_zeros(*chosen.shape[:2], rows, cols).masked_scatter(chosen, values)
        return blocks.transpose(1, 2).reshape(shape)
    if format in ("bitmask", "nm"):
        return values.new_zeros(shape).masked_scatter(unpack_bits(parts["bits"], shape[1]), values)
    raise InputError(f"no way back from the format {format!r}")


def _places(
    format: str, parts: Mapping[str, Tensor], shape: tuple[int, int], geometry: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and index among the values of every kept weight of an arrangement."""
    if format == "rows":
        return sparse_rows.places(parts, shape, geometry)
    return sparse_tiles.places(parts, shape)


def _mask(format: str, parts: Mapping[str, Tensor], shape: tuple[int, int], geometry: tuple[int, int]) -> Tensor:
    if format in ("rows", "tiles"):
        row, column, _ = _places(format, parts, shape, geometry)
        kept = torch.zeros(shape, dtype=torch.bool, device=parts["values"].device)
        return kept.index_put((row, column), kept.new_ones(()))
    if format == "block":
        rows, cols = geometry
        chosen = unpack_bits(parts["bits"], shape[1] // cols)
        return chosen.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    return unpack_bits(parts["bits"], shape[1])


def pack_bits(mask: Tensor) -> Tensor:
    """Bool ``[rows, columns]`` as uint8 ``[rows, ⌈columns/8⌉]``: column ``8i + j`` is bit ``j`` of byte ``i``."""
    rows, columns = mask.shape
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -columns % 8))
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.reshape(rows, math.ceil(columns / 8), 8) * powers).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`pack_bits`."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    spread = bits[..., None].bitwise_right_shift(places).bitwise_and(1).bool()
    return spread.flatten(-2)[..., :columns]


def _check_groups(shape: tuple[int, int], geometry: tuple[int, int]) -> tuple[int, int]:
    keep, of = geometry
    if of < 1 or not 0 <= keep <= of or shape[1] % of:
        raise InputError("the groups do not fit", asked=f"keep {keep} of every {of}", seen=f"rows of {shape[1]}")
    return keep, of


def _check_blocks(shape: tuple[int, int], geometry: tuple[int, int]) -> tuple[int, int]:
    rows, cols = geometry
    if rows < 1 or cols < 1 or shape[0] % rows or shape[1] % cols:
        raise InputError("the blocks do not fit", asked=f"blocks of {rows} x {cols}", seen=f"a matrix of {list(shape)}")
    return rows, cols
