# SPDX-License-Identifier: Apache-2.0
"""Gram matrix of activations: out += sum over kept tokens of x_t^T x_t.

One program owns one square tile of `out` on or below the diagonal and walks over the tokens of a launch; tiles
below the diagonal are added a second time, transposed. No atomics and no autotuning: equal input
gives equal bits on equal hardware.

With T tokens, C columns, element size s and tile B: T C (C + B) operations (half of a full product),
T C (C + B) s / B bytes read through L2, T C s from memory while what the programs at work read fits in L2, and 12 C^2
of a float64 out for every 16,384 tokens. Accuracy: token_sums.py. A float32 `out` adds its own rounding, once per
call.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels.device import arch_of
from pyprune.triton_kernels.token_sums import (
    CHAIN,
    SLAB,
    Tile,
    check_sides,
    checked_keep,
    halves,
    multiplied_as_is,
    tile_for,
    token_sums,
)


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
    AS_IS: tl.constexpr,
    PRECISION: tl.constexpr,
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

    row = tile_row * BLOCK
    column = tile_column * BLOCK
    rows = row + tl.arange(0, BLOCK)
    cols = column + tl.arange(0, BLOCK)
    total = token_sums(
        x_ptr + rows[None, :] * x_stride_column,
        x_ptr + cols[None, :] * x_stride_column,
        x_stride_token,
        x_stride_token,
        (rows < columns)[None, :],
        (cols < columns)[None, :],
        keep_ptr,
        tokens,
        HAS_KEEP,
        AS_IS,
        PRECISION,
        BLOCK,
        DEPTH,
        CHAIN,
    )

    # A quarter at a time: float64 copies of a whole tile would take more registers than there are.
    left, right = halves(total)
    first, second = halves(left)
    third, fourth = halves(right)
    quarter: tl.constexpr = BLOCK // 4
    _add_mirrored(out_ptr, first, row, column, columns, BLOCK, quarter)
    _add_mirrored(out_ptr, second, row, column + quarter, columns, BLOCK, quarter)
    _add_mirrored(out_ptr, third, row, column + 2 * quarter, columns, BLOCK, quarter)
    _add_mirrored(out_ptr, fourth, row, column + 3 * quarter, columns, BLOCK, quarter)


@triton.jit
def _add_mirrored(  # type: ignore[no-untyped-def]
    out_ptr, part, row, column, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    """Add a part of the lower triangle, and its mirror image."""
    r = tl.arange(0, HEIGHT)
    c = tl.arange(0, WIDTH)
    # One sum serves an entry and its mirror image, on the diagonal's own tiles too, whatever order a dot sums in.
    lower = (row + r < columns)[:, None] & ((row + r)[:, None] >= (column + c)[None, :])
    below = out_ptr + (row * columns + column) + (r[:, None] * columns + c[None, :])
    above = out_ptr + (column * columns + row) + (c[:, None] * columns + r[None, :])
    was = tl.load(below, mask=lower, other=0.0)
    now = was + part.to(was.dtype)
    tl.store(below, now, mask=lower)
    tl.store(above, tl.trans(now), mask=tl.trans(lower))


def gram_tile(columns: int, arch: int, *, itemsize: int, precision: str = "ieee") -> Tile:
    """The tile for x of so many columns; see `token_sums.tile_for`."""
    wide, narrow = triton.cdiv(columns, 128), triton.cdiv(columns, 64)
    pieces = (wide * (wide + 1) // 2, narrow * (narrow + 1) // 2)
    return tile_for(pieces, arch, itemsize=itemsize, precision=precision)


def gram_accumulate(
    out: Tensor,  # [columns, columns] float32 or float64
    x: Tensor,  # [tokens, columns] float32, bfloat16 or float16
    keep: Tensor | None = None,  # [tokens] bool or uint8
    *,
    precision: str = "ieee",
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
    precision : {"ieee", "tf32x3"}
        How float32 is multiplied: as it is, or as three TF32 products on tensor cores.
    tile : Tile, optional
        In place of `gram_tile`'s choice, for measurements and tests.

    Raises
    ------
    ValueError
        If a shape, dtype, layout, device or precision does not fit.
    """
    check_sides(out, x, x, keep, precision)
    tokens, columns = x.shape
    keep = checked_keep(keep, tokens)
    if tokens == 0 or columns == 0:
        return out

    if tile is None:
        tile = gram_tile(columns, arch_of(x.device), itemsize=x.element_size(), precision=precision)
    across = triton.cdiv(columns, tile.block)
    # Sums of several launches are held in float64.
    sums = out if tokens <= SLAB else out.double()
    with torch.cuda.device_of(x):  # Triton launches on the current device; no effect on CPU tensors
        for start in range(0, tokens, SLAB):
            part = x[start : start + SLAB]
            gram_kernel[(across * (across + 1) // 2,)](
                # output, inputs
                sums,
                part,
                x.stride(0),
                x.stride(1),
                x if keep is None else keep[start:],
                # sizes
                len(part),
                columns,
                # constants
                HAS_KEEP=keep is not None,
                AS_IS=multiplied_as_is(x.dtype, x.device),
                PRECISION=precision,
                BLOCK=tile.block,
                DEPTH=tile.depth,
                CHAIN=CHAIN,
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=True,  # the default differs between Triton versions
            )
    return out if sums is out else out.copy_(sums)
