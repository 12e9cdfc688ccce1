# SPDX-License-Identifier: Apache-2.0
"""The kernels of lazy OBS and of the fit it ends in; the algorithm is told in `obs.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _best(score, first, best, place):  # type: ignore[no-untyped-def]
    # The better of the best so far and of these scores.
    least = tl.min(score, axis=0)
    index = first + tl.argmin(score, axis=0)
    return tl.minimum(least, best), tl.where(least < best, index, place)


@triton.jit
def remove_kernel(
    # order [rows, steps] int32, score, alpha, root [rows, steps], done [rows] int32: written up to `done`
    order_ptr,
    score_ptr,
    alpha_ptr,
    root_ptr,
    done_ptr,
    sure_ptr,
    # V [rows, steps, k]; w, D, floor [rows, k]; room [rows, groups] int32: changed
    factor_ptr,
    weight_ptr,
    pivot_ptr,
    floor_ptr,
    room_ptr,
    # A [k, k], counts [rows] int32
    inverse_ptr,
    count_ptr,
    # sizes
    columns,
    steps,
    groups,
    # constants
    OF: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    deep = tl.arange(0, DEPTH)
    closed = float("inf")
    weight_ptr += row * columns
    pivot_ptr += row * columns
    floor_ptr += row * columns
    factor_ptr += row * steps * columns
    count = tl.load(count_ptr + row)

    best = tl.full((), float("inf"), dtype=weight_ptr.dtype.element_ty)
    place = tl.full((), 0, dtype=tl.int32)
    for first in range(0, columns, BLOCK):
        at = first + lane
        ok = at < columns
        weight = tl.load(weight_ptr + at, mask=ok, other=0.0)
        pivot = tl.load(pivot_ptr + at, mask=ok, other=1.0)
        floor = tl.load(floor_ptr + at, mask=ok, other=closed)
        best, place = _best(tl.where(pivot > floor, weight * weight / pivot, closed), first, best, place)

    step = tl.full((), 0, dtype=tl.int32)
    lost = tl.full((), 0, dtype=tl.int32)  # open columns without a pivot
    while (step < count) & (best < closed):
        own = tl.load(weight_ptr + place)
        root = 1.0 / tl.sqrt(tl.load(pivot_ptr + place))
        tl.debug_barrier()  # everybody has read what is changed next
        tl.store(order_ptr + row * steps + step, place)
        tl.store(score_ptr + row * steps + step, best)
        tl.store(alpha_ptr + row * steps + step, own * root)
        tl.store(root_ptr + row * steps + step, root)
        tl.store(floor_ptr + place, closed)
        if OF > 0:
            group = place // OF
            room = tl.load(room_ptr + row * groups + group) - 1
            tl.debug_barrier()
            tl.store(room_ptr + row * groups + group, room)
            if room == 0:  # its survivors stay for good
                member = tl.arange(0, GROUP)
                tl.store(floor_ptr + group * OF + member, closed, mask=member < OF)
        tl.debug_barrier()
        line_ptr = inverse_ptr + place.to(tl.int64) * columns
        column = place
        best = tl.full((), float("inf"), dtype=weight_ptr.dtype.element_ty)
        lost = tl.full((), 0, dtype=tl.int32)
        for first in range(0, columns, BLOCK):
            at = first + lane
            ok = at < columns
            line = tl.load(line_ptr + at, mask=ok, other=0.0)
            for above in range(0, step, DEPTH):
                before = (above + deep).to(tl.int64) * columns
                real = above + deep < step
                share = tl.load(factor_ptr + before + column, mask=real, other=0.0)
                block = tl.load(factor_ptr + before[:, None] + at[None, :], mask=real[:, None] & ok[None, :], other=0.0)
                line -= tl.sum(share[:, None] * block, axis=0)
            line *= root
            tl.store(factor_ptr + step.to(tl.int64) * columns + at, line, mask=ok)
            weight = tl.load(weight_ptr + at, mask=ok, other=0.0) - line * (own * root)
            pivot = tl.load(pivot_ptr + at, mask=ok, other=1.0) - line * line
            floor = tl.load(floor_ptr + at, mask=ok, other=closed)
            tl.store(weight_ptr + at, weight, mask=ok)
            tl.store(pivot_ptr + at, pivot, mask=ok)
            best, place = _best(tl.where(pivot > floor, weight * weight / pivot, closed), first, best, place)
            lost += tl.sum(((floor < closed) & (pivot <= floor)).to(tl.int32), axis=0)
        tl.debug_barrier()
        step += 1
    tl.store(done_ptr + row, step)
    tl.store(sure_ptr + row, (lost == 0).to(tl.uint8))


@triton.jit
def substitute_kernel(
    # x [rows, steps], changed: L⁻¹ x when FORWARD, then L⁻ᵀ x
    x_ptr,
    # V [rows, steps, k], root, order [rows, steps], done [rows] int32
    factor_ptr,
    root_ptr,
    order_ptr,
    done_ptr,
    # sizes
    columns,
    steps,
    # constants
    FORWARD: tl.constexpr,
    BACKWARD: tl.constexpr,
    SIZE: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SIZE)
    done = tl.load(done_ptr + row)
    order = tl.load(order_ptr + row * steps + slot, mask=slot < done, other=0)
    x = tl.load(x_ptr + row * steps + slot, mask=slot < done, other=0.0)
    factor_ptr += row * steps * columns
    # L[s, t] = V[t, order[s]]: both ways row t of V serves step t.
    if FORWARD:
        for t in range(0, done):
            line = tl.load(factor_ptr + t * columns + order, mask=(slot > t) & (slot < done), other=0.0)
            value = tl.sum(tl.where(slot == t, x, 0.0), axis=0) * tl.load(root_ptr + row * steps + t)
            x = tl.where(slot == t, value, x - line * value)
    if BACKWARD:
        for back in range(0, done):
            t = done - 1 - back
            line = tl.load(factor_ptr + t * columns + order, mask=(slot > t) & (slot < done), other=0.0)
            value = tl.sum(tl.where(slot == t, x, 0.0) - line * x, axis=0) * tl.load(root_ptr + row * steps + t)
            x = tl.where(slot == t, value, x)
    tl.store(x_ptr + row * steps + slot, x, mask=slot < done)
