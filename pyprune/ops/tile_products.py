# SPDX-License-Identifier: Apache-2.0
"""What is done around the CUDA kernel of :func:`pyprune.ops.spmm`: how a product is divided, and the call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune import backends
from pyprune.ops import library, sparse_tiles
from pyprune.ops.sparse_weight import SparseWeight
from pyprune.triton_kernels.device import arch_of, processors_of

MOST_WARPS = 8  # of a block: kSpmmWarps of csrc/cuda/spmm.h
RESIDENT = 2  # blocks of so many warps that fit a multiprocessor's registers
FEWEST_CELLS = 2  # of a warp: one is copied while the other is multiplied


@dataclass(frozen=True)
class Cut:
    """How a product is divided among blocks of threads."""

    tokens: int  # of one block
    warps: int  # of one block: they take turns along the columns
    splits: int  # of the columns


def cut_of(rows: int, columns: int, tokens: int, arch: int, *, tensor_cores: bool) -> Cut:
    """Choose how to divide a product.

    Parameters
    ----------
    rows, columns : int
        Of the matrix.
    tokens : int
    arch : int
        Compute capability as two digits (90 for 9.0); an unknown one counts as the nearest below.
    tensor_cores : bool
        16-bit products on tensor cores, two rows of cells a block; else float32, one.

    Returns
    -------
    Cut
        Columns are split until every multiprocessor has as many blocks as fit, but no warp has less than two cells.
        A block takes at most 64 KiB of shared memory, with cells of which everything is kept: it fits every card.
    """
    sizes = (8, 16, 32) if tensor_cores else (2, 8)
    block = next((size for size in sizes if size >= tokens), sizes[-1])
    height = sparse_tiles.ROWS * (2 if tensor_cores else 1)
    across = sparse_tiles.cells_of((rows, columns))[1]
    warps = max(1, min(MOST_WARPS, across // FEWEST_CELLS))
    blocks = max(1, -(-rows // height) * -(-tokens // block))
    splits = min(RESIDENT * processors_of(arch) // blocks, across // (FEWEST_CELLS * warps))
    return Cut(block, warps, max(1, splits))


def multiply_tiles(
    x: Tensor,  # [tokens, in]
    weight: SparseWeight,  # [out, in], in tiles
    bias: Tensor | None,  # [out]
    activation: int,
) -> Tensor:  # [tokens, out]
    """``activation(x Wᵀ + b)`` by the CUDA kernel.

    16-bit x is multiplied on tensor cores where the values are of its type or int8, else in float32.

    Raises
    ------
    InputError
        The parts do not belong together.
    """
    (rows, columns), tokens = weight.shape, x.shape[0]
    tensor_cores = x.dtype != torch.float32 and weight.dtype in (x.dtype, torch.int8)
    inputs = aligned(x if tensor_cores else x.float())
    bias = None if bias is None else bias.contiguous()
    cut = cut_of(rows, columns, tokens, arch_of(x.device), tensor_cores=tensor_cores)
    y = x.new_empty(tokens, rows)
    parts = y.new_empty(cut.splits, tokens, rows, dtype=torch.float32) if cut.splits > 1 else None
    with library.cuda_stream(x) as stream:
        backends.extension().spmm_cuda(
            y.data_ptr(),
            library.ELEMENT_TYPE[y.dtype],
            inputs.data_ptr(),
            library.ELEMENT_TYPE[inputs.dtype],
            tokens,
            inputs.stride(0) if columns else 0,
            sparse_tiles.pointers(weight.parts, weight.shape, weight.geometry),
            0 if weight.scale is None else weight.scale.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if bias is None else library.ELEMENT_TYPE[bias.dtype],
            activation,
            (cut.tokens, cut.warps, cut.splits),
            0 if parts is None else parts.data_ptr(),
            stream,
        )
    return y


def aligned(x: Tensor) -> Tensor:  # [tokens, in]
    """The same with rows that begin at 16 bytes and end in zeros up to the next 16; itself where it is so already."""
    each = sparse_tiles.UNIT // x.element_size()
    tokens, columns = x.shape
    fits = x.stride(1) == 1 and columns % each == 0 and x.stride(0) % each == 0
    if fits and x.data_ptr() % sparse_tiles.UNIT == 0:
        return x
    whole = x.new_zeros(tokens, -(-columns // each) * each)
    whole[:, :columns] = x
    return whole
