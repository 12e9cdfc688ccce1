# SPDX-License-Identifier: Apache-2.0
"""Cross moment of targets and activations: out += sum over kept tokens of y_t^T x_t.

One program owns one square tile of `out` and walks over the tokens of a launch. No atomics and no autotuning: equal
input gives equal bits on equal hardware.

With T tokens, R targets, C columns, element size s and tile B: 2 T R C operations, 2 T R C s / B bytes read through
L2, and 16 R C bytes of a float64 out for every 16,384 tokens. Accuracy: token_sums.py. A float32 `out` adds its own
rounding, once per call.
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
def cross_gram_kernel(  # type: ignore[no-untyped-def]
    # out, [targets, columns] contiguous, float32 or float64
    out_ptr,
    # y, [tokens, targets], and x, [tokens, columns], with any strides
    y_ptr,
    x_ptr,
    y_stride_token,
    y_stride_column,
    x_stride_token,
    x_stride_column,
    # keep, [tokens] uint8; not read when not HAS_KEEP
    keep_ptr,
    # sizes
    tokens,
    targets,
    columns,
    # constants
    HAS_KEEP: tl.constexpr,
    AS_IS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAIN: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64) * BLOCK
    column = tl.program_id(0).to(tl.int64) * BLOCK
    rows = row + tl.arange(0, BLOCK)
    cols = column + tl.arange(0, BLOCK)
    total = token_sums(
        y_ptr + rows[None, :] * y_stride_column,
        x_ptr + cols[None, :] * x_stride_column,
        y_stride_token,
        x_stride_token,
        (rows < targets)[None, :],
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
    _add(out_ptr, first, row, column, targets, columns, BLOCK, quarter)
    _add(out_ptr, second, row, column + quarter, targets, columns, BLOCK, quarter)
    _add(out_ptr, third, row, column + 2 * quarter, targets, columns, BLOCK, quarter)
    _add(out_ptr, fourth, row, column + 3 * quarter, targets, columns, BLOCK, quarter)


@triton.jit
def _add(  # type: ignore[no-untyped-def]
    out_ptr, part, row, column, targets, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    r = tl.arange(0, HEIGHT)
    c = tl.arange(0, WIDTH)
    at = out_ptr + (row * columns + column) + (r[:, None] * columns + c[None, :])
    inside = (row + r < targets)[:, None] & (column + c < columns)[None, :]
    was = tl.load(at, mask=inside, other=0.0)
    tl.store(at, was + part.to(was.dtype), mask=inside)


def cross_gram_tile(targets: int, columns: int, arch: int, *, itemsize: int, precision: str = "ieee") -> Tile:
    """The tile for an out of this shape; see `token_sums.tile_for`."""
    pieces = tuple(triton.cdiv(targets, block) * triton.cdiv(columns, block) for block in (128, 64))
    return tile_for((pieces[0], pieces[1]), arch, itemsize=itemsize, precision=precision)


def cross_gram_accumulate(
    out: Tensor,  # [targets, columns] float32 or float64
    y: Tensor,  # [tokens, targets] float32, bfloat16 or float16
    x: Tensor,  # [tokens, columns] like y
    keep: Tensor | None = None,  # [tokens] bool or uint8
    *,
    precision: str = "ieee",
    tile: Tile | None = None,
) -> Tensor:
    """Add the cross moment of the kept tokens to `out`, in place, and return it.

    Parameters
    ----------
    out : Tensor, shape (targets, columns), float32 or float64
        Contiguous; must not overlap the inputs.
    y, x : Tensor, shapes (tokens, targets) and (tokens, columns), float32, bfloat16 or float16
        Of one dtype; any strides.
    keep : Tensor, shape (tokens,), bool or uint8, optional
        False (0) marks padding, which is never loaded: NaN there cannot enter.
    precision : {"ieee", "tf32x3"}
        How float32 is multiplied: as it is, or as three TF32 products on tensor cores.
    tile : Tile, optional
        In place of `cross_gram_tile`'s choice, for measurements and tests.

    Raises
    ------
    ValueError
        If a shape, dtype, layout, device or precision does not fit.
    """
    check_sides(out, y, x, keep, precision)
    tokens, columns = x.shape
    targets = y.shape[1]
    keep = checked_keep(keep, tokens)
    if tokens == 0 or out.numel() == 0:
        return out

    if tile is None:
        tile = cross_gram_tile(targets, columns, arch_of(x.device), itemsize=x.element_size(), precision=precision)
    # Sums of several launches are held in float64.
    sums = out if tokens <= SLAB else out.double()
    with torch.cuda.device_of(x):  # Triton launches on the current device; no effect on CPU tensors
        for start in range(0, tokens, SLAB):
            part = x[start : start + SLAB]
            cross_gram_kernel[(triton.cdiv(columns, tile.block), triton.cdiv(targets, tile.block))](
                # output, inputs
                sums,
                y[start : start + SLAB],
                part,
                y.stride(0),
                y.stride(1),
                x.stride(0),
                x.stride(1),
                x if keep is None else keep[start:],
                # sizes
                len(part),
                targets,
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
