# SPDX-License-Identifier: Apache-2.0
"""SparseGPT's sweep: columns pruned left to right, each removal compensated to its right.

With H = R Rᵀ, R upper, the loss of a change δ of a row is ‖δR‖². Going from left to right, with
c_j = Σ_{q<j} δ_q R_qj, a kept weight moves by δ_j = −c_j / R_jj and a pruned one by δ_j = −w_j.

Everything is held with columns first, [k, rows], so that neighbouring lanes are neighbouring rows. A
program owns 32 rows and does a whole block of columns in one launch, a run of columns at a time, held in
registers: what the runs before it in the block push onto it, then its columns one by one. Between two
launches c[right] += R[B, right]ᵀ δ_B is one product, by torch.

What goes is decided in the kernel for N:M (when the sweep reaches the group) and by rows: a sweep that
keeps all gives the scores (w_j R_jj)², and bisection over their bits the exact count, ties by column.
For the whole block that sweep is a launch of its own, and the selection is the caller's.

rows k (k + 2 block) operations, of which all but 3 rows k block in torch's product. Memory: c, w, δ and
the mask read and written once a block; what a block re-reads stays in L1. float32 or float64. A row's
bits depend on its own data only; no atomics, no autotuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # of a program


@dataclass(frozen=True)
class Run:
    """The columns that a program holds at a time."""

    columns: int  # whole groups
    size: int  # of the tile: a power of two
    warps: int


def run_for(of: int, itemsize: int) -> Run:
    """Choose the run for groups of `of` columns (0: no groups) of elements of `itemsize` bytes.

    Returns
    -------
    Run
        16 columns, or the nearest number of whole groups below; at least one group. Warps so that each of the up to
        three tiles takes 16 registers a thread, eight at most.
    """
    columns = 16 if of == 0 else of * max(1, 16 // of)
    size = max(16, triton.next_power_of_2(columns))
    return Run(columns=columns, size=size, warps=min(8, size * itemsize // 64))


@triton.jit
def _take(tile, index, at):  # type: ignore[no-untyped-def]
    # Line `at` of a tile.
    return tl.sum(tl.where(index[:, None] == at, tile, 0.0), axis=0)


@triton.jit
def _run_sums(sums_ptr, delta_ptr, factor_ptr, stride, first, own, own_ok, row, row_ok, rows):  # type: ignore[no-untyped-def]
    # c of a run, with what the block's columns before it push onto it.
    c = tl.load(sums_ptr + own[:, None] * rows + row[None, :], mask=own_ok[:, None] & row_ok[None, :], other=0.0)
    for j in range(0, first):
        delta = tl.load(delta_ptr + j * rows + row, mask=row_ok, other=0.0)
        line = tl.load(factor_ptr + j * stride + own, mask=own_ok, other=0.0)
        c += line[:, None] * delta[None, :]
    return c


@triton.jit
def _push(c, delta, j, factor_ptr, stride, own, own_ok):  # type: ignore[no-untyped-def]
    # What column j of the block pushes onto the run's columns to its right.
    line = tl.load(factor_ptr + j * stride + own, mask=own_ok & (own > j), other=0.0)
    return c + line[:, None] * delta[None, :]


@triton.jit
def _score(
    scores_ptr,
    score_row,
    score_column,
    weight_ptr,
    sums_ptr,
    delta_ptr,
    factor_ptr,
    inverse_ptr,
    stride,
    width,
    row,
    row_ok,
    rows,
    COLUMNS: tl.constexpr,
    RUN: tl.constexpr,
):  # type: ignore[no-untyped-def]
    # (w_j R_jj)² of the weights as they are if nothing of the block goes; δ is scratch.
    near = tl.arange(0, RUN)
    for first in range(0, width, COLUMNS):
        own = (first + near).to(tl.int64)
        own_ok = (near < COLUMNS) & (own < width)
        c = _run_sums(sums_ptr, delta_ptr, factor_ptr, stride, first, own, own_ok, row, row_ok, rows)
        for j in range(first, min(first + COLUMNS, width)):
            diagonal = tl.load(factor_ptr + j * stride + j)
            before = _take(c, near, j - first)
            weight = tl.load(weight_ptr + j * rows + row, mask=row_ok, other=0.0)
            root = weight * diagonal - before
            tl.store(scores_ptr + row * score_row + j * score_column, root * root, mask=row_ok)
            delta = -before * tl.load(inverse_ptr + j)
            tl.store(delta_ptr + j * rows + row, delta, mask=row_ok)
            c = _push(c, delta, j, factor_ptr, stride, own, own_ok)
        tl.debug_barrier()  # δ is read by other threads than wrote it


@triton.jit
def _bits(scores_ptr, first, near, width, row, row_ok, rows, INTEGER: tl.constexpr):  # type: ignore[no-untyped-def]
    # Scores are not negative: their bits are in their order. Past the end: larger than any.
    own = (first + near).to(tl.int64)
    ok = (own < width)[:, None] & row_ok[None, :]
    scores = tl.load(scores_ptr + own[:, None] * rows + row[None, :], mask=ok, other=float("inf"))
    return scores.to(INTEGER, bitcast=True), ok


@triton.jit
def _choose_in_rows(
    kept_ptr,
    scores_ptr,
    remove,
    width,
    row,
    row_ok,
    rows,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    BITS: tl.constexpr,
):  # type: ignore[no-untyped-def]
    INTEGER: tl.constexpr = tl.int32 if BITS == 32 else tl.int64
    near = tl.arange(0, RUN)
    # The largest t with no more than `remove` scores below it: from the highest bit down.
    threshold = tl.zeros((ROWS,), dtype=INTEGER)
    one = tl.full((ROWS,), 1, dtype=INTEGER)
    for step in range(0, BITS - 1):
        candidate = threshold | (one << (BITS - 2 - step))
        below = tl.zeros((ROWS,), dtype=tl.int32)
        for first in range(0, width, RUN):
            bits, ok = _bits(scores_ptr, first, near, width, row, row_ok, rows, INTEGER)
            below += tl.sum((ok & (bits < candidate[None, :])).to(tl.int32), axis=0)
        threshold = tl.where(below <= remove, candidate, threshold)
    below = tl.zeros((ROWS,), dtype=tl.int32)
    equal = tl.zeros((ROWS,), dtype=tl.int32)
    for first in range(0, width, RUN):
        bits, ok = _bits(scores_ptr, first, near, width, row, row_ok, rows, INTEGER)
        below += tl.sum((ok & (bits < threshold[None, :])).to(tl.int32), axis=0)
        equal += tl.sum((ok & (bits == threshold[None, :])).to(tl.int32), axis=0)
    # Among equal scores the first are kept.
    stay = equal - (remove - below)
    seen = tl.zeros((ROWS,), dtype=tl.int32)
    for first in range(0, width, RUN):
        bits, ok = _bits(scores_ptr, first, near, width, row, row_ok, rows, INTEGER)
        same = (ok & (bits == threshold[None, :])).to(tl.int32)
        rank = tl.cumsum(same, axis=0) + seen[None, :]
        kept = (bits > threshold[None, :]) | ((same > 0) & (rank <= stay[None, :]))
        own = (first + near).to(tl.int64)
        tl.store(kept_ptr + own[:, None] * rows + row[None, :], kept.to(tl.uint8), mask=ok)
        seen += tl.sum(same, axis=0)
    tl.debug_barrier()


@triton.jit
def _choose_group(
    kept_ptr,
    c,
    weight_ptr,
    factor_ptr,
    inverse_ptr,
    stride,
    first,
    start,
    keep,
    own,
    own_ok,
    row,
    row_ok,
    rows,
    OF: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
):  # type: ignore[no-untyped-def]
    # The group that begins at column `start` of the block, by its weights as they are if nothing of it goes.
    near = tl.arange(0, RUN)
    scores = tl.zeros((RUN, ROWS), dtype=c.dtype)
    for j in range(start, start + OF):
        diagonal = tl.load(factor_ptr + j * stride + j)
        before = _take(c, near, j - first)
        root = tl.load(weight_ptr + j * rows + row, mask=row_ok, other=0.0) * diagonal - before
        scores = tl.where((near == j - first)[:, None], (root * root)[None, :], scores)
        c = _push(c, -before * tl.load(inverse_ptr + j), j, factor_ptr, stride, own, own_ok)
    # Kept if fewer than `keep` come before it in descending, stable order.
    ahead = tl.zeros((RUN, ROWS), dtype=tl.int32)
    for j in range(start, start + OF):
        other = _take(scores, near, j - first)[None, :]
        earlier = (near > j - first)[:, None]
        ahead += ((other > scores) | ((other == scores) & earlier)).to(tl.int32)
    group = own_ok & (own >= start) & (own < start + OF)
    at = own[:, None] * rows + row[None, :]
    tl.store(kept_ptr + at, (ahead < keep).to(tl.uint8), mask=group[:, None] & row_ok[None, :])
    tl.debug_barrier()


@triton.jit
def score_kernel(
    # scores [rows, width], any strides
    scores_ptr,
    score_row,
    score_column,
    # w, c, δ [width, rows] of this block, R from this block's corner on, 1 / R_jj
    weight_ptr,
    sums_ptr,
    delta_ptr,
    factor_ptr,
    inverse_ptr,
    # sizes
    stride,
    width,
    rows,
    # constants
    COLUMNS: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_ok = row < rows
    _score(
        scores_ptr, score_row, score_column, weight_ptr, sums_ptr, delta_ptr, factor_ptr, inverse_ptr, stride, width,
        row, row_ok, rows, COLUMNS, RUN,
    )  # fmt: skip


@triton.jit
def sweep_kernel(
    # w and mask [width, rows] of this block, changed; δ [width, rows], written
    weight_ptr,
    kept_ptr,
    delta_ptr,
    # c [width, rows] of this block, R from this block's corner on, 1 / R_jj; scores [width, rows], scratch if PER_ROW
    sums_ptr,
    factor_ptr,
    inverse_ptr,
    scores_ptr,
    # sizes; how many go of each row, how many stay of each group
    stride,
    width,
    rows,
    remove,
    keep,
    # constants
    PER_ROW: tl.constexpr,
    OF: tl.constexpr,
    BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_ok = row < rows
    near = tl.arange(0, RUN)
    if PER_ROW:
        _score(
            scores_ptr, 1, rows, weight_ptr, sums_ptr, delta_ptr, factor_ptr, inverse_ptr, stride, width,
            row, row_ok, rows, COLUMNS, RUN,
        )  # fmt: skip
        _choose_in_rows(kept_ptr, scores_ptr, remove, width, row, row_ok, rows, RUN, ROWS, BITS)
    GROUP: tl.constexpr = OF if OF > 0 else COLUMNS
    for first in range(0, width, COLUMNS):
        own = (first + near).to(tl.int64)
        own_ok = (near < COLUMNS) & (own < width)
        c = _run_sums(sums_ptr, delta_ptr, factor_ptr, stride, first, own, own_ok, row, row_ok, rows)
        for start in range(first, min(first + COLUMNS, width), GROUP):
            if OF > 0:
                _choose_group(
                    kept_ptr, c, weight_ptr, factor_ptr, inverse_ptr, stride, first, start, keep, own, own_ok, row,
                    row_ok, rows, OF, RUN, ROWS,
                )  # fmt: skip
            for j in range(start, min(start + GROUP, width)):
                at = j * rows + row
                weight = tl.load(weight_ptr + at, mask=row_ok, other=0.0)
                kept = tl.load(kept_ptr + at, mask=row_ok, other=0) != 0
                moved = -_take(c, near, j - first) * tl.load(inverse_ptr + j)
                delta = tl.where(kept, moved, -weight)
                tl.store(delta_ptr + at, delta, mask=row_ok)
                tl.store(weight_ptr + at, tl.where(kept, weight + delta, 0.0), mask=row_ok)
                c = _push(c, delta, j, factor_ptr, stride, own, own_ok)
        tl.debug_barrier()  # δ is read by other threads than wrote it


def sweep(
    weight: Tensor,  # [k, rows]
    kept: Tensor,  # [k, rows] bool
    factor: Tensor,  # [k, k]
    prune: Sequence[int] | None,
    *,
    per_row: bool = False,
    keep: int = 0,
    of: int = 0,
    block: int = 128,
    select: Callable[[Tensor, int, bool], Tensor],
) -> None:
    """Sweep all columns, in place.

    Parameters
    ----------
    weight : Tensor, shape (k, rows), float32 or float64
        Contiguous; ends at zero where pruned.
    kept : Tensor of bool, shape (k, rows)
        Contiguous; the mask to take where neither `prune` nor `of` is given, else written.
    factor : Tensor, shape (k, k)
        R, contiguous; of the dtype of `weight`. Only its upper triangle is read.
    prune : sequence of int, optional
        Weights to remove from each block of `block` columns, or from each row of it with `per_row`.
    keep, of : int
        N:M instead; `block` must be a multiple of `of`.
    select : callable (scores [rows, width], count, per_row) -> mask
        Keeps the `count` largest; called where a block is to be chosen as a whole.

    Raises
    ------
    ValueError
        If a shape, dtype, layout or device does not fit.

    Notes
    -----
    The products follow torch's setting of TF32: turn it off around this.
    """
    features, rows = weight.shape
    if weight.dtype not in (torch.float32, torch.float64) or factor.dtype != weight.dtype or kept.dtype != torch.bool:
        raise ValueError(
            f"weight and factor must be both float32 or float64, kept bool, got {weight.dtype} {kept.dtype}"
        )
    if factor.shape != (features, features) or kept.shape != weight.shape:
        raise ValueError(f"shapes do not fit: {tuple(weight.shape)}, {tuple(kept.shape)}, {tuple(factor.shape)}")
    if block < 1 or (of and block % of) or (prune is not None and len(prune) != triton.cdiv(features, block)):
        raise ValueError(f"{block=} does not fit {of=} and {prune=}")
    if min(block, features) * max(rows, features) >= 2**31:
        raise ValueError(f"{block=} is too wide for {tuple(weight.shape)}: offsets inside a block are 32 bits")
    for tensor in (weight, kept, factor):
        if not tensor.is_contiguous() or tensor.device != weight.device:
            raise ValueError("weight, kept and factor must be contiguous, on one device")
    if rows == 0 or features == 0:
        return

    run = run_for(of, weight.element_size())
    grid = (triton.cdiv(rows, ROWS),)
    inverse = 1.0 / factor.diagonal()
    sums = torch.zeros_like(weight)
    delta = weight.new_empty(min(block, features), rows)
    scores = torch.empty_like(delta) if prune is not None else delta
    launch = {"num_warps": run.warps, "num_stages": 2, "enable_fp_fusion": True}
    tile = {"COLUMNS": run.columns, "RUN": run.size, "ROWS": ROWS}
    for index, first in enumerate(range(0, features, block)):
        stop = min(first + block, features)
        width, own = stop - first, factor[first:, first:]
        remove = 0 if prune is None else prune[index]
        with torch.cuda.device_of(weight):  # Triton launches on the current device; no effect on CPU tensors
            if prune is not None and not per_row:
                whole = scores.view(-1)[: rows * width].view(rows, width)
                score_kernel[grid](
                    whole,
                    width,
                    1,
                    weight[first:],
                    sums[first:],
                    delta,
                    own,
                    inverse[first:],
                    features,
                    width,
                    rows,
                    **tile,
                    **launch,
                )
                kept[first:stop] = select(whole, rows * width - remove, False).T
            sweep_kernel[grid](
                weight[first:],
                kept[first:].view(torch.uint8),
                delta,
                sums[first:],
                own,
                inverse[first:],
                scores,
                features,
                width,
                rows,
                remove,
                keep,
                PER_ROW=prune is not None and per_row,
                OF=of,
                BITS=8 * weight.element_size(),
                **tile,
                **launch,
            )
        if stop < features:
            sums[stop:].addmm_(factor[first:stop, stop:].T, delta[:width])
