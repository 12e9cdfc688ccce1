# SPDX-License-Identifier: Apache-2.0
"""Gram matrix of activations: out += sum over kept tokens of x_t^T x_t.

One program owns one square tile of `out` on or below the diagonal and walks over all tokens; tiles
below the diagonal are added a second time, transposed. No atomics and no autotuning: equal input
gives equal bits on equal hardware.

With T tokens, C columns, element size s and tile B: T C (C + B) float32 operations (half of a full
product), T C (C + B) s / B bytes read through L2 and T C s from memory while x fits in L2.

Accuracy: products and sums in float32 over chains of at most 256 tokens, every chain added in
float64; the error is at most 256 u |x|^T |x| elementwise (u = 2^-24) however many tokens there are.
A float32 `out` adds its own rounding, once per call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

CHAIN = 256  # tokens per float32 chain; a multiple of every Tile.depth
ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tile:
    """How one launch is cut up."""

    block: int  # rows and columns of out per program
    depth: int  # tokens per step
    warps: int
    stages: int  # panels in flight


# Multiprocessors to fill, by compute capability; the smallest part sold with it where parts differ.
PROCESSORS = {80: 108, 86: 28, 89: 24, 90: 114, 100: 148, 120: 20}


def tile_for(columns: int, tokens: int, arch: int, *, itemsize: int = 4) -> Tile:
    """Choose the tile for a problem.

    Parameters
    ----------
    columns, tokens : int
        Shape of x.
    arch : int
        Compute capability as two digits (90 for 9.0); an unknown one counts as the nearest below.
    itemsize : int
        Bytes of an element of x.

    Returns
    -------
    Tile
        64 wide when the lower triangle then has a program for every multiprocessor, else 32.
    """
    known = [number for number in PROCESSORS if number <= arch]
    processors = PROCESSORS[max(known)] if known else min(PROCESSORS.values())
    across = -(-columns // 64)
    block = 64 if across * (across + 1) // 2 >= processors else 32
    # Longer steps save registers only here: 16-bit types, widened after loading, would take twice as many.
    depth = 32 if block == 64 and itemsize == 4 and tokens > 16 else 16
    # Four warps on a wide tile would need up to 255 registers a thread.
    return Tile(block=block, depth=depth, warps=8 if block == 64 else 4, stages=3)


@triton.jit
def gram_kernel(  # type: ignore[no-untyped-def]
    # out, [columns, columns] contiguous, float32 or float64
    out_ptr,
    # x, [tokens, columns] with any strides
    x_ptr,
    x_stride_token,
    x_stride_column,
    # keep, [tokens] uint8; not read when not HAS_KEEP
    keep_ptr,
    # sizes
    tokens,
    columns,
    # constants
    HAS_KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAIN: tl.constexpr,
):
    # Row and column of this program's tile, counting the lower triangle row by row. The square root
    # is off by far less than one row, so one correction either way settles it.
    index = tl.program_id(0).to(tl.int64)
    guess = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int64)
    guess = tl.where(guess * (guess + 1) // 2 > index, guess - 1, guess)
    tile_row = tl.where((guess + 1) * (guess + 2) // 2 <= index, guess + 1, guess)
    tile_column = index - tile_row * (tile_row + 1) // 2

    rows = tile_row * BLOCK + tl.arange(0, BLOCK)
    cols = tile_column * BLOCK + tl.arange(0, BLOCK)
    row_ok = rows < columns
    col_ok = cols < columns
    x_rows = x_ptr + rows[None, :] * x_stride_column
    x_cols = x_ptr + cols[None, :] * x_stride_column
    steps = tl.arange(0, DEPTH)

    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float64)
    for start in range(0, tokens, CHAIN):
        chain = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for offset in range(0, CHAIN, DEPTH):
            token = start + offset + steps
            real = token < tokens
            if HAS_KEEP:
                # Select, do not multiply: a dropped token is never loaded, whatever it holds.
                real = real & (tl.load(keep_ptr + token, mask=real, other=0) != 0)
            at = token.to(tl.int64)[:, None] * x_stride_token
            left = tl.load(x_rows + at, mask=real[:, None] & row_ok[None, :], other=0.0)
            right = tl.load(x_cols + at, mask=real[:, None] & col_ok[None, :], other=0.0)
            chain = tl.dot(
                tl.trans(left.to(tl.float32)),
                right.to(tl.float32),
                acc=chain,
                input_precision="ieee",
            )
        total += chain.to(tl.float64)

    below = out_ptr + rows[:, None] * columns + cols[None, :]
    above = out_ptr + cols[None, :] * columns + rows[:, None]
    # One sum serves an entry and its mirror image, on the diagonal's own tiles too, whatever order a dot sums in.
    lower = row_ok[:, None] & col_ok[None, :] & (rows[:, None] >= cols[None, :])
    was = tl.load(below, mask=lower, other=0.0)
    now = (was.to(tl.float64) + total).to(was.dtype)
    tl.store(below, now, mask=lower)
    tl.store(above, now, mask=lower)


def gram_accumulate(
    out: Tensor,  # [columns, columns] float32 or float64
    x: Tensor,  # [tokens, columns] float32, bfloat16 or float16
    keep: Tensor | None = None,  # [tokens] bool or uint8
    *,
    tile: Tile | None = None,
) -> Tensor:
    """Add the Gram matrix of the kept tokens to `out`, in place, and return it.

    Parameters
    ----------
    out : Tensor, shape (columns, columns), float32 or float64
        Contiguous, symmetric (only its lower triangle is read); must not overlap the inputs.
    x : Tensor, shape (tokens, columns), float32, bfloat16 or float16
        Any strides.
    keep : Tensor, shape (tokens,), bool or uint8, optional
        False (0) marks padding, which is never loaded: NaN there cannot enter.
    tile : Tile, optional
        In place of `tile_for`'s choice, for measurements and tests.

    Raises
    ------
    ValueError
        If a shape, dtype, layout or device does not fit.
    """
    if x.ndim != 2 or x.dtype not in ELEMENTS:
        raise ValueError(f"x must be 2-D float32, bfloat16 or float16, got {tuple(x.shape)} {x.dtype}")
    tokens, columns = x.shape
    if out.shape != (columns, columns) or not out.is_contiguous():
        raise ValueError(f"out must be contiguous ({columns}, {columns}), got {tuple(out.shape)}")
    if out.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"out must be float32 or float64, got {out.dtype}")
    if keep is not None:
        if keep.shape != (tokens,) or keep.dtype not in (torch.bool, torch.uint8):
            raise ValueError(f"keep must be ({tokens},) bool or uint8, got {tuple(keep.shape)} {keep.dtype}")
        keep = keep.contiguous().view(torch.uint8)
    for name, tensor in (("out", out), ("keep", keep)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    if tokens == 0 or columns == 0:
        return out

    if tile is None:
        tile = tile_for(columns, tokens, _arch_of(x.device), itemsize=x.element_size())
    across = triton.cdiv(columns, tile.block)
    with torch.cuda.device_of(x):  # Triton launches on the current device; no effect on CPU tensors
        gram_kernel[(across * (across + 1) // 2,)](
            # output, inputs
            out,
            x,
            x.stride(0),
            x.stride(1),
            x if keep is None else keep,
            # sizes
            tokens,
            columns,
            # constants
            HAS_KEEP=keep is not None,
            BLOCK=tile.block,
            DEPTH=tile.depth,
            CHAIN=CHAIN,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,  # the default differs between Triton versions
        )
    return out


def _arch_of(device: torch.device) -> int:
    if device.type != "cuda":
        return 80  # the interpreter: any will do
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
