# SPDX-License-Identifier: Apache-2.0
"""Exact-count selection of the largest scores of each row, the earlier of equals, without a sort.

Scores become unsigned integers of the same order (both zeros the same). The threshold of a row is the largest integer
that at least `count` of them reach. Everything above it is kept, and the first of its equals until the count is full.

- A row of at most 8192 is held on chip by one program, which settles the threshold bit by bit, each by counting; equals
  are ordered by a prefix sum. One launch; scores read once, 5 bytes a score (9 for float64).
- Longer rows (a whole matrix is one) are cut into chunks. The threshold is settled 8 bits at a time by a histogram of
  those scores that agree with the bits so far, then chunks count their equals, and a prefix sum over chunks tells each
  how many of its own to keep. Scores are read 6 times (10 for float64); 2 launches for every 8 bits and 2 more. Counts
  are whole numbers, so that adding them with atomics gives the same bits every time. Nothing waits for the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ON_CHIP = 8192  # longest row of one program
CHUNK = 4096  # scores of a program on longer rows
WARPS = 8
DIGIT = 8  # bits
BINS = 1 << DIGIT


@triton.jit
def order_of(scores):  # type: ignore[no-untyped-def]
    """Unsigned integers in the order of scores."""
    if scores.dtype == tl.float64:
        whole = (scores + 0.0).to(tl.int64, bitcast=True)
        keys = (whole ^ ((whole >> 63) | (-9223372036854775808))).to(tl.uint64, bitcast=True)
    else:
        whole = (scores + 0.0).to(tl.int32, bitcast=True)
        keys = (whole ^ ((whole >> 31) | (-2147483648))).to(tl.uint32, bitcast=True)
    return keys


@triton.jit
def row_kernel(  # type: ignore[no-untyped-def]
    # mask, uint8, and scores, float32 or float64, [rows, columns] contiguous
    mask_ptr,
    scores_ptr,
    columns,
    count,
    # constants: `columns` rounded up to a power of 2, and bits of a score
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
):
    place = tl.arange(0, WIDTH)
    inside = place < columns
    row = tl.program_id(0).to(tl.int64) * columns
    keys = order_of(tl.load(scores_ptr + row + place, mask=inside, other=0.0))
    threshold = tl.full((), 0, keys.dtype)
    one = tl.full((), 1, keys.dtype)
    for step in range(0, BITS):
        candidate = threshold | (one << (BITS - 1 - step))
        reached = tl.sum((inside & (keys >= candidate)).to(tl.int32), axis=0)
        threshold = tl.where(reached >= count, candidate, threshold)
    above = inside & (keys > threshold)
    equal = inside & (keys == threshold)
    places = count - tl.sum(above.to(tl.int32), axis=0)
    first = equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= places)
    tl.store(mask_ptr + row + place, (above | first).to(tl.uint8), mask=inside)


@triton.jit
def histogram_kernel(  # type: ignore[no-untyped-def]
    # bins, [rows, BINS] int32, added to
    bins_ptr,
    scores_ptr,
    # threshold, [rows] int64: the bits settled so far
    threshold_ptr,
    columns,
    chunks,
    # constants: bits below the digit that is counted
    SHIFT: tl.constexpr,
    DIGIT: tl.constexpr,
    BITS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = (tl.program_id(0) // chunks).to(tl.int64)
    place = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
    keys = order_of(tl.load(scores_ptr + row * columns + place, mask=place < columns, other=0.0))
    agrees = place < columns
    if SHIFT + DIGIT < BITS:
        settled = tl.load(threshold_ptr + row).to(keys.dtype)
        agrees = agrees & ((keys >> (SHIFT + DIGIT)) == (settled >> (SHIFT + DIGIT)))
    digit = ((keys >> SHIFT) & ((1 << DIGIT) - 1)).to(tl.int32)
    counts = tl.histogram(tl.where(agrees, digit, 0), 1 << DIGIT)
    bins = tl.arange(0, 1 << DIGIT)
    outside = tl.sum((~agrees).to(tl.int32), axis=0)
    counts = tl.where(bins == 0, counts - outside, counts)
    tl.atomic_add(bins_ptr + row * (1 << DIGIT) + bins, counts, mask=counts > 0)


@triton.jit
def digit_kernel(  # type: ignore[no-untyped-def]
    # bins, [rows, BINS] int32, cleared for the next digit
    bins_ptr,
    # threshold and places, [rows] int64: settled bits, and how many of the scores that agree are wanted
    threshold_ptr,
    places_ptr,
    SHIFT: tl.constexpr,
    DIGIT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    bins = tl.arange(0, 1 << DIGIT)
    counts = tl.load(bins_ptr + row * (1 << DIGIT) + bins).to(tl.int64)
    places = tl.load(places_ptr + row)
    reached = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0) + counts  # in this bin and above
    digit = tl.maximum(tl.sum((reached >= places).to(tl.int64), axis=0) - 1, 0)
    above = tl.sum(tl.where(bins > digit, counts, 0), axis=0)
    tl.store(places_ptr + row, places - above)
    tl.store(threshold_ptr + row, tl.load(threshold_ptr + row) | (digit << SHIFT))
    tl.store(bins_ptr + row * (1 << DIGIT) + bins, tl.zeros((1 << DIGIT,), dtype=tl.int32))


@triton.jit
def equals_kernel(  # type: ignore[no-untyped-def]
    # equals, [rows, chunks] int32
    equals_ptr,
    scores_ptr,
    threshold_ptr,
    columns,
    chunks,
    CHUNK: tl.constexpr,
):
    row = (tl.program_id(0) // chunks).to(tl.int64)
    place = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
    inside = place < columns
    keys = order_of(tl.load(scores_ptr + row * columns + place, mask=inside, other=0.0))
    equal = inside & (keys == tl.load(threshold_ptr + row).to(keys.dtype))
    tl.store(equals_ptr + tl.program_id(0), tl.sum(equal.to(tl.int32), axis=0))


@triton.jit
def mark_kernel(  # type: ignore[no-untyped-def]
    mask_ptr,
    scores_ptr,
    threshold_ptr,
    places_ptr,
    # upto, [rows, chunks] int64: equals in this chunk and before it
    upto_ptr,
    equals_ptr,
    columns,
    chunks,
    CHUNK: tl.constexpr,
):
    row = (tl.program_id(0) // chunks).to(tl.int64)
    place = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
    inside = place < columns
    keys = order_of(tl.load(scores_ptr + row * columns + place, mask=inside, other=0.0))
    threshold = tl.load(threshold_ptr + row).to(keys.dtype)
    before = tl.load(upto_ptr + tl.program_id(0)) - tl.load(equals_ptr + tl.program_id(0))
    equal = inside & (keys == threshold)
    first = equal & (before + tl.cumsum(equal.to(tl.int32), axis=0) <= tl.load(places_ptr + row))
    kept = (inside & (keys > threshold)) | first
    tl.store(mask_ptr + row * columns + place, kept.to(tl.uint8), mask=inside)


def keep_largest(mask: Tensor, scores: Tensor, count: int, *, on_chip: int = ON_CHIP, chunk: int = CHUNK) -> Tensor:
    """Fill a mask, and return it.

    Parameters
    ----------
    mask : Tensor of bool, shape (rows, columns)
    scores : Tensor, shape (rows, columns), float32 or float64
        Contiguous, no NaN.
    count : int
        Kept in every row, 0 to `columns`.
    on_chip, chunk : int
        In place of the module's choice, for measurements and tests; powers of 2.

    Raises
    ------
    ValueError
        Shapes, dtypes, layouts, devices or the count do not fit.
    """
    check_selection(mask, scores)
    rows, columns = scores.shape
    if not 0 <= count <= columns:
        raise ValueError(f"cannot keep {count} of {columns}")
    if not scores.numel():
        return mask
    marks, bits = mask.view(torch.uint8), 8 * scores.element_size()
    with torch.cuda.device_of(scores):
        if columns <= on_chip:
            width = triton.next_power_of_2(columns)
            row_kernel[(rows,)](marks, scores, columns, count, WIDTH=width, BITS=bits, num_warps=warps_for(width))
        else:
            _in_chunks(marks, scores, count, bits, chunk)
    return mask


def warps_for(width: int) -> int:
    """Warps that hold a row of so many scores, 16 to a thread."""
    return min(max(width // 512, 1), 16)


def _in_chunks(marks: Tensor, scores: Tensor, count: int, bits: int, chunk: int) -> None:
    rows, columns = scores.shape
    chunks = triton.cdiv(columns, chunk)
    grid = (rows * chunks,)  # one axis: others end at 65,535
    bins = torch.zeros(rows, BINS, dtype=torch.int32, device=scores.device)
    threshold = torch.zeros(rows, dtype=torch.int64, device=scores.device)
    places = torch.full((rows,), count, dtype=torch.int64, device=scores.device)
    for shift in range(bits - DIGIT, -1, -DIGIT):
        histogram_kernel[grid](
            bins,
            scores,
            threshold,
            columns,
            chunks,
            SHIFT=shift,
            DIGIT=DIGIT,
            BITS=bits,
            CHUNK=chunk,
            num_warps=WARPS,
        )
        digit_kernel[(rows,)](bins, threshold, places, SHIFT=shift, DIGIT=DIGIT, num_warps=1)
    equals = torch.empty(rows, chunks, dtype=torch.int32, device=scores.device)
    equals_kernel[grid](equals, scores, threshold, columns, chunks, CHUNK=chunk, num_warps=WARPS)
    mark_kernel[grid](
        marks,
        scores,
        threshold,
        places,
        equals.cumsum(dim=1),
        equals,
        columns,
        chunks,
        CHUNK=chunk,
        num_warps=WARPS,
    )


def check_selection(mask: Tensor, scores: Tensor) -> None:
    """ValueError unless scores can be selected into the mask."""
    if scores.ndim != 2 or scores.dtype not in (torch.float32, torch.float64) or not scores.is_contiguous():
        raise ValueError(f"scores must be a contiguous float32 or float64 matrix, got {scores.dtype}")
    if mask.shape != scores.shape or mask.dtype != torch.bool or not mask.is_contiguous():
        raise ValueError(f"mask must be contiguous bool {tuple(scores.shape)}, got {tuple(mask.shape)} {mask.dtype}")
    if scores.shape[1] >= 2**31:
        raise ValueError(f"rows must be shorter than 2^31, got {scores.shape[1]}")
    if mask.device != scores.device:
        raise ValueError(f"mask is on {mask.device}, scores on {scores.device}")
