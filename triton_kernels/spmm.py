# SPDX-License-Identifier: Apache-2.0
"""Products with a matrix held in tiles: y = x W^T + b, W read sparse and multiplied dense.

The idea is that of Flash-LLM (Xia et al., VLDB 2024) and SpInfer (Fan et al., EuroSys 2025): with few tokens a product
waits for memory, so that a kept weight and one bit of mask are read instead of all weights, and tensor cores may
multiply the zeros. `pyprune/ops/sparse_tiles.py` describes the arrangement; cells are 16 rows by 64 columns.

One program owns 32 rows of `y` for all tokens of its block and walks over the columns, two cells at a time: mask words
become flags, a prefix sum of the flags gives each kept weight its place among the cell's values, which are gathered and
turned into a dense tile for `tl.dot`. The order of columns inside a cell is left as it is stored: x is read in the same
order. Where rows alone do not fill the device, columns are split over programs, and `finish_kernel` adds the parts in
their order: no atomics, equal input gives equal bits.

Cost, with R rows, C columns, density d, value size s, T tokens: 2 R C T operations; R C (d s + 1/8) bytes of the matrix
and R C T / 16 bytes of 16-bit x through the second-level cache; decoding takes some dozens of instructions a weight
for every block of tokens. Not measured on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels.device import arch_of, processors_of
from pyprune.triton_kernels.token_sums import multiplied_as_is

ROWS, COLUMNS, UNIT = 16, 64, 16  # of a cell; bytes
STRIPS = 2  # rows of cells of one program
ACTIVATIONS = ("none", "gelu", "relu")
ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Cut:
    """How a product is divided among programs."""

    tokens: int  # of one program
    cells: int  # side by side in one step
    splits: int  # of the columns
    warps: int


@triton.jit
def dense_cells(  # type: ignore[no-untyped-def]
    bits_ptr, starts_ptr, values_ptr, strip, cell, strips, cells, EACH: tl.constexpr
):
    """Values of [strip] x [cell] cells, [S, C, 1024] in the stored order, zero where none is kept; in their type."""
    height: tl.constexpr = strip.shape[0]
    width: tl.constexpr = cell.shape[0]
    number = strip[:, None] * cells + cell[None, :]
    inside = (strip < strips)[:, None] & (cell < cells)[None, :]
    words = tl.load(
        bits_ptr + number.to(tl.int64)[:, :, None] * 32 + tl.arange(0, 32)[None, None, :],
        mask=inside[:, :, None],
        other=0,
    )
    shifts = 8 * tl.arange(0, 4)[None, None, :, None, None] + tl.arange(0, 8)[None, None, None, None, :]
    flags = tl.reshape((words[:, :, None, :, None] >> shifts) & 1, (height, width, 1024))
    place = tl.cumsum(flags, axis=2) - flags
    first = tl.load(starts_ptr + number, mask=inside, other=0).to(tl.int64) * EACH
    return tl.load(values_ptr + first[:, :, None] + place, mask=flags != 0, other=0)


@triton.jit
def in_rows(values):  # type: ignore[no-untyped-def]
    """[S, C, 1024] as [16 S, 64 C]: rows in order, columns of each cell by step, lane and bit (`column_order`)."""
    height: tl.constexpr = values.shape[0]
    width: tl.constexpr = values.shape[1]
    # step, g, lane's four columns, row / 8, i % 2
    pieces = tl.reshape(values, (height, width, 4, 8, 8, 2, 2))
    return tl.reshape(tl.permute(pieces, (0, 5, 3, 1, 2, 4, 6)), (16 * height, 64 * width))


@triton.jit
def column_order(CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The columns that `in_rows` has side by side."""
    at = tl.arange(0, 64 * CELLS)
    step = at // 16 % 4
    return at // 64 * 64 + step // 2 * 32 + at // 4 % 4 * 8 + step % 2 * 4 + at % 4


@triton.jit
def activated(sums, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums after gelu (exact) or relu."""
    if ACTIVATION == 1:
        result = 0.5 * sums * (1.0 + tl.erf(sums * 0.7071067811865476))
    elif ACTIVATION == 2:
        result = tl.maximum(sums, 0.0)
    else:
        result = sums
    return result


@triton.jit
def spmm_kernel(  # type: ignore[no-untyped-def]
    # y, [tokens, rows] contiguous, or with SPLITS > 1 parts of it, [SPLITS, tokens, rows] float32
    y_ptr,
    # x, [tokens, columns], columns contiguous
    x_ptr,
    x_stride,
    # the matrix; scale [rows] float32, not read when not HAS_SCALE
    bits_ptr,
    starts_ptr,
    values_ptr,
    scale_ptr,
    # bias, [rows]; not read when not HAS_BIAS or SPLITS > 1
    bias_ptr,
    # sizes
    tokens,
    rows,
    columns,
    strips,
    cells,
    # constants
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AS_IS: tl.constexpr,
    EACH: tl.constexpr,
    SPLITS: tl.constexpr,
    STRIPS: tl.constexpr,
    CELLS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    group = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    strip = group * STRIPS + tl.arange(0, STRIPS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    steps = tl.cdiv(cells, CELLS)
    order = column_order(CELLS)
    x_ptrs = x_ptr + token.to(tl.int64)[None, :] * x_stride
    sums = tl.zeros((16 * STRIPS, TOKENS), dtype=tl.float32)
    for step in range(steps * split // SPLITS, steps * (split + 1) // SPLITS):
        cell = step * CELLS + tl.arange(0, CELLS)
        weights = in_rows(dense_cells(bits_ptr, starts_ptr, values_ptr, strip, cell, strips, cells, EACH))
        column = step * CELLS * 64 + order
        inside = (column < columns)[:, None] & (token < tokens)[None, :]
        x = tl.load(x_ptrs + column[:, None], mask=inside, other=0.0)
        if not AS_IS:
            x = x.to(tl.float32)
        sums = tl.dot(weights.to(x.dtype), x, acc=sums, input_precision="ieee")
    row = group * 16 * STRIPS + tl.arange(0, 16 * STRIPS)
    if HAS_SCALE:
        sums *= tl.load(scale_ptr + row, mask=row < rows, other=0.0)[:, None]
    if SPLITS == 1:
        if HAS_BIAS:
            sums += tl.load(bias_ptr + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        sums = activated(sums, ACTIVATION)
    at = (split.to(tl.int64) * tokens + token)[None, :] * rows + row[:, None]
    tl.store(y_ptr + at, sums.to(y_ptr.dtype.element_ty), mask=(row < rows)[:, None] & (token < tokens)[None, :])


@triton.jit
def finish_kernel(  # type: ignore[no-untyped-def]
    # y, [tokens, rows] contiguous
    y_ptr,
    # parts, [SPLITS, tokens, rows] float32; bias, [rows], not read when not HAS_BIAS
    parts_ptr,
    bias_ptr,
    # tokens * rows, and rows
    size,
    rows,
    # constants
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(0, SPLITS):
        sums += tl.load(parts_ptr + split * size + at, mask=inside, other=0.0)
    if HAS_BIAS:
        sums += tl.load(bias_ptr + at % rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, activated(sums, ACTIVATION).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dense_kernel(  # type: ignore[no-untyped-def]
    # out, [rows, columns] contiguous
    out_ptr,
    bits_ptr,
    starts_ptr,
    values_ptr,
    scale_ptr,
    rows,
    columns,
    strips,
    cells,
    # constants
    HAS_SCALE: tl.constexpr,
    EACH: tl.constexpr,
    STRIPS: tl.constexpr,
    CELLS: tl.constexpr,
):
    strip = tl.program_id(1) * STRIPS + tl.arange(0, STRIPS)
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    weights = in_rows(dense_cells(bits_ptr, starts_ptr, values_ptr, strip, cell, strips, cells, EACH))
    row = tl.program_id(1) * 16 * STRIPS + tl.arange(0, 16 * STRIPS)
    column = tl.program_id(0) * CELLS * 64 + column_order(CELLS)
    if HAS_SCALE:
        weights = weights.to(tl.float32) * tl.load(scale_ptr + row, mask=row < rows, other=0.0)[:, None]
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out_ptr + at, weights.to(out_ptr.dtype.element_ty), mask=inside)


def spmm_cut(rows: int, columns: int, tokens: int, arch: int) -> Cut:
    """Choose how to divide a product.

    Parameters
    ----------
    rows, columns : int
        Of the matrix.
    tokens : int
    arch : int
        Compute capability as two digits (90 for 9.0); an unknown one counts as the nearest below.

    Returns
    -------
    Cut
        Columns are split until every multiprocessor has two programs, what fits by registers, but no part is shorter
        than four steps.
    """
    block = min(32, max(16, triton.next_power_of_2(tokens)))
    steps = triton.cdiv(columns, 2 * COLUMNS)
    programs = triton.cdiv(rows, ROWS * STRIPS) * triton.cdiv(tokens, block)
    splits = max(1, min(2 * processors_of(arch) // max(1, programs), steps // 4))
    return Cut(tokens=block, cells=2, splits=splits, warps=4)


def spmm_tiles(
    y: Tensor,  # [tokens, rows] float32, bfloat16 or float16
    x: Tensor,  # [tokens, columns] float32, bfloat16 or float16
    parts: Mapping[str, Tensor],
    scale: Tensor | None = None,  # [rows] float32
    bias: Tensor | None = None,  # [rows]
    activation: str = "none",
    *,
    cut: Cut | None = None,
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
        Of the arrangement "tiles".
    scale, bias : Tensor, shape (rows,), optional
        Scale is float32, bias of any floating type; contiguous.
    activation : {"none", "gelu", "relu"}
    cut : Cut, optional
        In place of `spmm_cut`'s choice, for measurements and tests.

    Raises
    ------
    ValueError
        Shapes, dtypes, layouts or devices do not fit.
    """
    tokens, rows = y.shape
    columns = x.shape[1] if x.ndim == 2 else 0
    if x.ndim != 2 or len(x) != tokens or x.dtype not in ELEMENTS or y.dtype not in ELEMENTS:
        raise ValueError(f"y {tuple(y.shape)} {y.dtype} and x {tuple(x.shape)} {x.dtype} do not fit")
    if not y.is_contiguous() or (x.stride(1) != 1 and columns > 1) or activation not in ACTIVATIONS:
        raise ValueError(f"y and the columns of x must be contiguous, the activation one of {ACTIVATIONS}")
    check_tiles(parts, rows, columns, y.device, scale=scale, bias=bias, x=x)
    if y.numel() == 0:
        return y
    cut = spmm_cut(rows, columns, tokens, arch_of(y.device)) if cut is None else cut
    values = parts["values"]
    target = y if cut.splits == 1 else y.new_empty(cut.splits, tokens, rows, dtype=torch.float32)
    with torch.cuda.device_of(y):  # Triton launches on the current device; no effect on CPU tensors
        spmm_kernel[(triton.cdiv(rows, ROWS * STRIPS) * cut.splits, triton.cdiv(tokens, cut.tokens))](
            target,
            x,
            x.stride(0),
            parts["bits"],
            parts["starts"],
            values,
            scale,
            bias,
            tokens,
            rows,
            columns,
            triton.cdiv(rows, ROWS),
            triton.cdiv(columns, COLUMNS),
            HAS_SCALE=scale is not None,
            HAS_BIAS=bias is not None,
            ACTIVATION=ACTIVATIONS.index(activation),
            AS_IS=multiplied_as_is(x.dtype, x.device) and values.dtype in (x.dtype, torch.int8),
            EACH=UNIT // values.element_size(),
            SPLITS=cut.splits,
            STRIPS=STRIPS,
            CELLS=cut.cells,
            TOKENS=cut.tokens,
            num_warps=cut.warps,
            num_stages=2,
            enable_fp_fusion=True,
        )
        if cut.splits > 1:
            finish_kernel[(triton.cdiv(y.numel(), 1024),)](
                y,
                target,
                bias,
                y.numel(),
                rows,
                HAS_BIAS=bias is not None,
                ACTIVATION=ACTIVATIONS.index(activation),
                SPLITS=cut.splits,
                BLOCK=1024,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return y


def spread_tiles(
    out: Tensor,  # [rows, columns] float32, bfloat16 or float16
    parts: Mapping[str, Tensor],
    scale: Tensor | None = None,  # [rows] float32
) -> Tensor:
    """Fill `out` with the matrix and its zeros, and return it; ValueError where something does not fit."""
    rows, columns = out.shape
    if out.dtype not in ELEMENTS or not out.is_contiguous():
        raise ValueError(f"out must be contiguous float32, bfloat16 or float16, got {out.dtype}")
    check_tiles(parts, rows, columns, out.device, scale=scale)
    if out.numel() == 0:
        return out
    strips, cells = triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS)
    with torch.cuda.device_of(out):
        dense_kernel[(triton.cdiv(cells, 2), triton.cdiv(strips, STRIPS))](
            out,
            parts["bits"],
            parts["starts"],
            parts["values"],
            scale,
            rows,
            columns,
            strips,
            cells,
            HAS_SCALE=scale is not None,
            EACH=UNIT // parts["values"].element_size(),
            STRIPS=STRIPS,
            CELLS=2,
            num_warps=4,
        )
    return out


def check_tiles(
    parts: Mapping[str, Tensor], rows: int, columns: int, device: torch.device, **others: Tensor | None
) -> None:
    """ValueError unless these are tiles of such a matrix; `scale` and `bias` among the others have a row each."""
    cells = triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS)
    values, bits, starts = parts["values"], parts["bits"], parts["starts"]
    if bits.shape != (cells, 32) or starts.shape != (cells + 1,) or values.ndim != 1:
        raise ValueError(f"these are not tiles of {rows} x {columns}: bits {tuple(bits.shape)}")
    if bits.dtype != torch.int32 or starts.dtype != torch.int32 or values.dtype not in (*ELEMENTS, torch.int8):
        raise ValueError(f"bits and starts must be int32, got {bits.dtype}, {starts.dtype}; values {values.dtype}")
    for name in ("scale", "bias"):
        tensor = others.get(name)
        if tensor is not None and (tensor.shape != (rows,) or not tensor.is_contiguous()):
            raise ValueError(f"{name} must be contiguous, of {rows} rows, got {tuple(tensor.shape)}")
    for name, tensor in (*parts.items(), *others.items()):
        if tensor is not None and (tensor.device != device or (name in parts and not tensor.is_contiguous())):
            raise ValueError(f"{name} must be contiguous and on {device}, got {tensor.device}")
