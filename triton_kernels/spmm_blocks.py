# SPDX-License-Identifier: Apache-2.0
"""Products with a matrix of kept blocks: y = x W^T + b, the blocks that are gone neither read nor multiplied.

One program owns the rows of one block row (or of a part of it) for all tokens of its own block, and walks over the
blocks that are kept there, a dot for each. No atomics, no split: equal input gives equal bits.

Cost, with n kept blocks of h by w values of size s, T tokens in blocks of B: 2 n h w T operations; n h w s T / B bytes
of the matrix, and as many of x through the second-level cache, n w T s. Not measured on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels.device import arch_of, processors_of
from pyprune.triton_kernels.spmm import ACTIVATIONS, ELEMENTS, activated
from pyprune.triton_kernels.token_sums import multiplied_as_is

SIDES = (16, 32, 64, 128)  # of blocks that this kernel takes


@dataclass(frozen=True)
class BlockCut:
    """How a product is divided among programs."""

    tokens: int  # of one program
    rows: int  # of one program: a block's, or a part of them
    warps: int


@triton.jit
def spmm_blocks_kernel(  # type: ignore[no-untyped-def]
    # y, [tokens, rows] contiguous
    y_ptr,
    # x, [tokens, columns], columns contiguous
    x_ptr,
    x_stride,
    # the matrix: values [blocks, HEIGHT, WIDTH], columns [blocks] of blocks, starts [rows / HEIGHT + 1]
    values_ptr,
    columns_ptr,
    starts_ptr,
    # scale [rows] float32 and bias [rows]; not read when there is none
    scale_ptr,
    bias_ptr,
    # sizes
    tokens,
    rows,
    # constants
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AS_IS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    part = tl.program_id(0)
    line = part // (HEIGHT // ROWS)
    height = part % (HEIGHT // ROWS) * ROWS + tl.arange(0, ROWS)
    width = tl.arange(0, WIDTH)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside = (token < tokens)[None, :]
    x_ptrs = x_ptr + token.to(tl.int64)[None, :] * x_stride + width[:, None]
    first = tl.load(starts_ptr + line)
    weight_ptrs = values_ptr + first.to(tl.int64) * (HEIGHT * WIDTH) + height[:, None] * WIDTH + width[None, :]
    sums = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
    for block in range(first, tl.load(starts_ptr + line + 1)):
        weights = tl.load(weight_ptrs)
        weight_ptrs += HEIGHT * WIDTH
        x = tl.load(x_ptrs + tl.load(columns_ptr + block) * WIDTH, mask=inside, other=0.0)
        if not AS_IS:
            x = x.to(tl.float32)
        sums = tl.dot(weights.to(x.dtype), x, acc=sums, input_precision="ieee")
    row = line * HEIGHT + height
    if HAS_SCALE:
        sums *= tl.load(scale_ptr + row)[:, None]
    if HAS_BIAS:
        sums += tl.load(bias_ptr + row).to(tl.float32)[:, None]
    at = token.to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(y_ptr + at, activated(sums, ACTIVATION).to(y_ptr.dtype.element_ty), mask=inside)


def block_cut(rows: int, height: int, width: int, tokens: int, arch: int, *, itemsize: int) -> BlockCut:
    """Choose how to divide a product.

    Parameters
    ----------
    rows : int
        Of the matrix.
    height, width : int
        Of a block; among `SIDES`.
    tokens : int
    arch : int
        Compute capability as two digits.
    itemsize : int
        Bytes of what is multiplied, 2 or 4.

    Returns
    -------
    BlockCut
        The widest block of tokens, and as many rows of a block as fit with it, that leave a program for every
        multiprocessor. float32 is multiplied in less than 64 rows: on compute capability 10 Triton (3.7 at least) would
        multiply it as TF32.
    """
    most = 32 if itemsize == 4 else 64
    part = min(height, most)
    block = min(2 * most if width <= 64 else most, max(16, triton.next_power_of_2(tokens)))
    while block > 16 and rows // part * triton.cdiv(tokens, block) < processors_of(arch):
        block //= 2
    while part > 16 and rows // part * triton.cdiv(tokens, block) < processors_of(arch):
        part //= 2
    return BlockCut(tokens=block, rows=part, warps=8 if part * block > 4096 else 4)


def spmm_blocks(
    y: Tensor,  # [tokens, rows] float32, bfloat16 or float16
    x: Tensor,  # [tokens, columns] float32, bfloat16 or float16
    parts: Mapping[str, Tensor],
    scale: Tensor | None = None,  # [rows] float32
    bias: Tensor | None = None,  # [rows]
    activation: str = "none",
    *,
    cut: BlockCut | None = None,
) -> Tensor:
    """Fill `y` with `activation(x W^T + b)`, and return it.

    Parameters
    ----------
    y : Tensor, shape (tokens, rows)
        Contiguous.
    x : Tensor, shape (tokens, columns)
        Columns contiguous, any stride of tokens. Multiplied in its own type where the values have it too or are int8,
        else in float32.
    parts : mapping of str to Tensor
        Of the arrangement "blocks": values (blocks, height, width), columns (blocks,) and starts
        (rows / height + 1,) int32.
    scale, bias : Tensor, shape (rows,), optional
        Scale is float32, bias of any floating type; contiguous.
    activation : {"none", "gelu", "relu"}
    cut : BlockCut, optional
        In place of `block_cut`'s choice, for measurements and tests.

    Raises
    ------
    ValueError
        Shapes, dtypes, layouts or devices do not fit.
    """
    tokens, rows = y.shape
    values, columns, starts = parts["values"], parts["columns"], parts["starts"]
    if values.ndim != 3 or values.shape[1] not in SIDES or values.shape[2] not in SIDES or rows % values.shape[1]:
        raise ValueError(f"blocks must have sides among {SIDES} that divide, got {tuple(values.shape)}")
    blocks, height, width = values.shape
    if columns.shape != (blocks,) or starts.shape != (rows // height + 1,):
        raise ValueError(
            f"columns and starts must fit {blocks} blocks, got {tuple(columns.shape), tuple(starts.shape)}"
        )
    if columns.dtype != torch.int32 or starts.dtype != torch.int32 or values.dtype not in (*ELEMENTS, torch.int8):
        raise ValueError(f"columns and starts must be int32, got {columns.dtype}, {starts.dtype}; {values.dtype}")
    if x.ndim != 2 or len(x) != tokens or x.shape[1] % width or x.dtype not in ELEMENTS or y.dtype not in ELEMENTS:
        raise ValueError(f"y {tuple(y.shape)} {y.dtype} and x {tuple(x.shape)} {x.dtype} do not fit")
    if not y.is_contiguous() or (x.stride(1) != 1 and x.shape[1] > 1) or activation not in ACTIVATIONS:
        raise ValueError(f"y and the columns of x must be contiguous, the activation one of {ACTIVATIONS}")
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None and (tensor.shape != (rows,) or not tensor.is_contiguous()):
            raise ValueError(f"{name} must be contiguous, of {rows} rows, got {tuple(tensor.shape)}")
    for tensor in (x, *parts.values(), scale, bias):
        if tensor is not None and tensor.device != y.device:
            raise ValueError(f"all must be on {y.device}, one is on {tensor.device}")
    if y.numel() == 0:
        return y
    as_is = multiplied_as_is(x.dtype, x.device) and values.dtype in (x.dtype, torch.int8)
    if cut is None:
        cut = block_cut(rows, height, width, tokens, arch_of(y.device), itemsize=2 if as_is else 4)
    with torch.cuda.device_of(y):  # Triton launches on the current device; no effect on CPU tensors
        spmm_blocks_kernel[(rows // cut.rows, triton.cdiv(tokens, cut.tokens))](
            y,
            x,
            x.stride(0),
            values,
            columns,
            starts,
            scale,
            bias,
            tokens,
            rows,
            HAS_SCALE=scale is not None,
            HAS_BIAS=bias is not None,
            ACTIVATION=ACTIVATIONS.index(activation),
            AS_IS=as_is,
            HEIGHT=height,
            WIDTH=width,
            ROWS=cut.rows,
            TOKENS=cut.tokens,
            num_warps=cut.warps,
            num_stages=3,
            enable_fp_fusion=True,
        )
    return y
