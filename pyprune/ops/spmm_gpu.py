# SPDX-License-Identifier: Apache-2.0
"""Products with compressed matrices on a GPU: the arrangement of each, and the way it is multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.ops import gpu_plan, semi_structured, sparse_tiles, tile_products
from pyprune.ops.sparse_weight import SparseWeight, pack_bits, restore, unpack_bits
from pyprune.triton_kernels.device import arch_of

ARRANGED = ("dense", "tiles", "semi")  # what stays as it is
BLOCK_SIDES = (16, 32, 64, 128)  # of the blocks that Triton multiplies by


def arrangement_of(
    shape: tuple[int, int], dtype: torch.dtype, format: str, geometry: tuple[int, int], arch: int, backend: str
) -> str:
    """In which arrangement a matrix is multiplied: "dense", "semi", "block" or "tiles"; by torch else as it is stored.

    Parameters
    ----------
    shape, dtype, format, geometry
        Of the matrix and its values.
    arch : int
        Compute capability as two digits.
    backend : str
        That serves ``spmm``. Where ``PYPRUNE_BACKEND`` forces a kernel of ours, 2:4 is multiplied by it as well.
    """
    if format in ARRANGED:
        return format
    if format == "block" and set(geometry) <= set(BLOCK_SIDES) and _has_triton(backend):
        return "block"
    ours = backends.forced() in gpu_plan.KERNELS
    if format == "nm" and not ours and semi_structured.why_not(shape, dtype, geometry, arch) is None:
        return "semi"
    return format if backend == "torch" else "tiles"


def _has_triton(backend: str) -> bool:
    return backend == "triton" or (backend == "cuda" and backends.unavailable("triton") is None)


def arrange(weight: SparseWeight, backend: str) -> SparseWeight:
    """The matrix as :func:`arrangement_of` says; where torch turns out to have no 2:4 products here, the next best."""
    kind = arrangement_of(weight.shape, weight.dtype, weight.format, weight.geometry, arch_of(weight.device), backend)
    if kind == weight.format:
        return weight
    mask, dense = weight.mask(), restore(weight, "dense").values
    if kind == "semi" and (halves := semi_structured.arrange(dense, pack_bits(mask))) is not None:
        return SparseWeight(weight.shape, "semi", halves, None, weight.geometry)
    if backend == "torch":
        return weight
    parts, geometry = sparse_tiles.arrange(mask, dense)
    return SparseWeight(weight.shape, "tiles", parts, weight.scale, geometry)


def spread_wanted(x: Tensor, weight: SparseWeight, backend: str) -> bool:
    """Whether this product is multiplied with its zeros: no kernel takes it, or so many tokens are faster that way."""
    if weight.format == "semi":
        return x.dtype != weight.dtype
    if backend == "torch":
        return True
    if weight.format != "tiles":
        return False
    (out, columns), tokens = weight.shape, x.shape[:-1].numel()
    density = weight.values.numel() / max(1, out * columns)
    wide = x.dtype == torch.float32 or weight.dtype not in (x.dtype, torch.int8)
    product = gpu_plan.Product(out, columns, min(1.0, density), weight.dtype, tokens, wide)
    return gpu_plan.spread_first(product, arch_of(x.device), backend)


def multiply(x: Tensor, weight: SparseWeight, bias: Tensor | None, activation: int, backend: str) -> Tensor:
    """``activation(x Wᵀ + b)``, x ``[tokens, in]`` to ``[tokens, out]``; the matrix as :func:`arrange` leaves it."""
    if weight.format == "semi":
        return _finished(semi_structured.multiply(x, weight.parts, weight.shape), bias, activation)
    if weight.format == "tiles" and backend == "cuda":
        return tile_products.multiply_tiles(x, weight, bias, activation)
    from pyprune.triton_kernels.spmm import ACTIVATIONS, spmm_tiles  # imports triton, only where it is used
    from pyprune.triton_kernels.spmm_blocks import spmm_blocks

    y = x.new_empty(x.shape[0], weight.shape[0])
    bias = None if bias is None else bias.contiguous()
    if weight.format == "tiles":
        spmm_tiles(y, x, weight.parts, weight.scale, bias, ACTIVATIONS[activation])
    else:
        spmm_blocks(y, x, lines_of_blocks(weight), weight.scale, bias, ACTIVATIONS[activation])
    return y


def _finished(y: Tensor, bias: Tensor | None, activation: int) -> Tensor:
    """What follows torch's product, in float32; the result is rounded a second time."""
    if bias is None and not activation:
        return y
    sums = y.float() if bias is None else y.float() + bias.float()
    return (torch.nn.functional.gelu(sums) if activation == 1 else sums.relu() if activation else sums).to(y.dtype)


def lines_of_blocks(weight: SparseWeight) -> dict[str, Tensor]:
    """Kept blocks as the kernel walks over them: the column of each, and where each row of blocks begins."""
    across = weight.shape[1] // weight.geometry[1]
    chosen = unpack_bits(weight.parts["bits"], across)
    # Sorted, not searched for: how many there are is known, and a GPU need not be waited for.
    kept = chosen.logical_not().flatten().to(torch.uint8).argsort(stable=True)[: len(weight.values)]
    starts = torch.nn.functional.pad(chosen.sum(1).cumsum(0), (1, 0))
    columns = kept % max(1, across)
    return {"values": weight.values, "columns": columns.to(torch.int32), "starts": starts.to(torch.int32)}
