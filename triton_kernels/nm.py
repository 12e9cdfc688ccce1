# SPDX-License-Identifier: Apache-2.0
"""N:M selection: the `keep` largest of every `of` consecutive scores, the earlier of equals.

One program holds a run of groups on chip, a group to a row of its tile, and counts for every score how many of its
group come before it: `of` comparisons a score, the others read one column at a time from the first-level cache. No
sort, no branch on the data. Memory: 5 bytes a score (9 for float64).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels.select import check_selection, keep_largest

TILE = 2048  # scores of a program
WARPS = 4
MOST = 256  # of a group; longer ones are rows for select.py


@triton.jit
def nm_kernel(  # type: ignore[no-untyped-def]
    # mask, uint8, and scores, float32 or float64, [groups, of] contiguous
    mask_ptr,
    scores_ptr,
    groups,
    keep,
    of,
    # constants: groups of a program, and `of` rounded up to a power of 2
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * GROUPS
    group = tl.arange(0, GROUPS)
    place = tl.arange(0, WIDTH)
    real = first + group < groups
    inside = real[:, None] & (place < of)[None, :]
    scores_ptr += first * of
    mask_ptr += first * of
    at = group[:, None] * of + place[None, :]
    scores = tl.load(scores_ptr + at, mask=inside)
    before = tl.zeros((GROUPS, WIDTH), dtype=tl.int32)
    for other in range(0, of):
        rival = tl.load(scores_ptr + group * of + other, mask=real)[:, None]
        wins = (rival > scores) | ((rival == scores) & (other < place)[None, :])
        before += wins.to(tl.int32)
    tl.store(mask_ptr + at, (before < keep).to(tl.uint8), mask=inside)


def nm_tile(of: int) -> tuple[int, int]:
    """Groups of a program, and the width of a group on chip."""
    width = triton.next_power_of_2(of)
    return max(1, TILE // width), width


def keep_of_groups(mask: Tensor, scores: Tensor, keep: int, of: int) -> Tensor:
    """Fill a mask, and return it.

    Parameters
    ----------
    mask : Tensor of bool, shape (rows, columns)
    scores : Tensor, shape (rows, columns), float32 or float64
        Contiguous, no NaN; `of` divides the columns.
    keep, of : int

    Raises
    ------
    ValueError
        Shapes, dtypes, layouts, devices or groups do not fit.
    """
    check_selection(mask, scores)
    if of < 1 or not 0 <= keep <= of or scores.shape[1] % of:
        raise ValueError(f"cannot keep {keep} of every {of} in rows of {scores.shape[1]}")
    groups = scores.numel() // of
    if groups == 0:
        return mask
    if of > MOST:
        keep_largest(mask.view(groups, of), scores.view(groups, of), keep)
        return mask
    height, width = nm_tile(of)
    with torch.cuda.device_of(scores):
        nm_kernel[(triton.cdiv(groups, height),)](
            mask.view(torch.uint8),
            scores,
            groups,
            keep,
            of,
            GROUPS=height,
            WIDTH=width,
            num_warps=WARPS,
        )
    return mask
