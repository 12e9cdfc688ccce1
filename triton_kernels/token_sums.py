# SPDX-License-Identifier: Apache-2.0
"""Sums over tokens of products of two feature columns, which `gram` and `cross_gram` share.

Products of 16-bit types are taken on tensor cores as they are: they are exact in float32. float32 is multiplied in
float32, or, if asked, as three TF32 products (`precision="tf32x3"`), whose error is that of float32.

Accuracy: float32 over chains of at most 256 tokens, float32 over the at most 64 chains of a launch, float64 from launch
to launch; the error is at most 320 u |x|^T |y| elementwise (u = 2^-24) however many tokens there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels.device import processors_of

CHAIN = 256  # tokens of one float32 chain; a multiple of every Tile.depth
SLAB = 16384  # tokens of one launch: enough to hide reading and writing a float64 out
ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)
PRECISIONS = ("ieee", "tf32x3")


@dataclass(frozen=True)
class Tile:
    """How one launch is cut up."""

    block: int  # rows and columns of out per program
    depth: int  # tokens per step
    warps: int
    stages: int  # steps in flight


def tile_for(pieces: tuple[int, int], arch: int, *, itemsize: int, precision: str = "ieee") -> Tile:
    """Choose the tile for a problem.

    Parameters
    ----------
    pieces : tuple of int
        Programs there would be with blocks of 128, and with blocks of 64.
    arch : int
        Compute capability as two digits (90 for 9.0); an unknown one counts as the nearest below.
    itemsize : int
        Bytes of an element.
    precision : str
        One of `PRECISIONS`; without effect on 16-bit types.

    Returns
    -------
    Tile
        The widest that has a program for every multiprocessor.
    """
    processors = processors_of(arch)
    if itemsize == 2:
        wide = pieces[0] >= processors
        return Tile(block=128, depth=64, warps=8, stages=3) if wide else Tile(block=64, depth=64, warps=4, stages=3)
    if precision == "tf32x3":
        return Tile(block=64, depth=16, warps=4, stages=3)
    # Four warps on a wide tile would need up to 255 registers a thread. On compute capability 10 Triton (3.7 at least)
    # multiplies float32 as TF32 where a tile is wide enough for its tensor cores, though "ieee" is asked for.
    wide = pieces[1] >= processors and arch // 10 != 10
    return Tile(block=64, depth=32, warps=8, stages=3) if wide else Tile(block=32, depth=16, warps=4, stages=3)


@triton.jit
def token_sums(  # type: ignore[no-untyped-def]
    # columns of the two sides, [1, BLOCK] pointers to their first token
    left_ptrs,
    right_ptrs,
    left_stride,
    right_stride,
    left_ok,
    right_ok,
    # keep, [tokens] uint8; not read when not HAS_KEEP
    keep_ptr,
    tokens,
    # constants
    HAS_KEEP: tl.constexpr,
    AS_IS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """[BLOCK, BLOCK] float32: sum over kept tokens of left_t^T right_t."""
    steps = tl.arange(0, DEPTH)
    chain = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, tokens, DEPTH):
        token = start + steps
        real = token < tokens
        if HAS_KEEP:
            # Select, do not multiply: a dropped token is never loaded, whatever it holds.
            real = real & (tl.load(keep_ptr + token, mask=real, other=0) != 0)
        wide = token.to(tl.int64)[:, None]
        left = tl.load(left_ptrs + wide * left_stride, mask=real[:, None] & left_ok, other=0.0)
        right = tl.load(right_ptrs + wide * right_stride, mask=real[:, None] & right_ok, other=0.0)
        if not AS_IS:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        chain = tl.dot(tl.trans(left), right, acc=chain, input_precision=PRECISION)
        if (start + DEPTH) % CHAIN == 0:
            total += chain
            chain = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    return total + chain


@triton.jit
def halves(tile):  # type: ignore[no-untyped-def]
    """The left and the right half of a tile."""
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


def multiplied_as_is(element: torch.dtype, device: torch.device) -> bool:
    """Whether a dot takes operands of this type; Triton's interpreter does not know bfloat16."""
    return element == torch.float16 or (element == torch.bfloat16 and device.type == "cuda")


def checked_keep(keep: Tensor | None, tokens: int) -> Tensor | None:
    """The padding mask as bytes; ValueError if it does not fit."""
    if keep is None:
        return None
    if keep.shape != (tokens,) or keep.dtype not in (torch.bool, torch.uint8):
        raise ValueError(f"keep must be ({tokens},) bool or uint8, got {tuple(keep.shape)} {keep.dtype}")
    return keep.contiguous().view(torch.uint8)


def check_sides(out: Tensor, left: Tensor, right: Tensor, keep: Tensor | None, precision: str) -> None:
    """ValueError unless [tokens, rows] and [tokens, columns] can be summed into out [rows, columns]."""
    for name, side in (("y", left), ("x", right)):
        if side.ndim != 2 or side.dtype not in ELEMENTS:
            raise ValueError(f"{name} must be 2-D float32, bfloat16 or float16, got {tuple(side.shape)} {side.dtype}")
    if left.dtype != right.dtype or len(left) != len(right):
        raise ValueError(f"y and x must hold the same tokens, got {len(left)} {left.dtype}, {len(right)} {right.dtype}")
    shape = (left.shape[1], right.shape[1])
    if out.shape != shape or not out.is_contiguous():
        raise ValueError(f"out must be contiguous {shape}, got {tuple(out.shape)}")
    if out.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"out must be float32 or float64, got {out.dtype}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    for name, tensor in (("out", out), ("y", left), ("keep", keep)):
        if tensor is not None and tensor.device != right.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {right.device}")
