# SPDX-License-Identifier: Apache-2.0
"""The three kernels of an exchange in many rows; the algorithm is told in `swap.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("step",))
def choose_kernel(
    # written: numbers [rows, DEPTH, 8], pairs [rows, DEPTH, 4] int32, moved [rows] int32, made [rows] int32
    numbers_ptr,
    pairs_ptr,
    moved_ptr,
    made_ptr,
    # what the tiles found: gain, key [rows, tiles], key int64
    gain_ptr,
    key_ptr,
    # couplings; diagonal, border, place [rows, width]; start, left [rows] int32, least [rows] float64
    coupling_ptr,
    diagonal_ptr,
    border_ptr,
    place_ptr,
    start_ptr,
    left_ptr,
    least_ptr,
    # where the slots of R in a slot's group begin [rows, width] int32
    first_ptr,
    # sizes; `area` and `line`: of a row's couplings, and of one slot's
    tiles,
    width,
    area,
    line,
    step,
    # constants
    GROUPED: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    best = tl.full((), float("-inf"), dtype=gain_ptr.dtype.element_ty)
    key = tl.full((), 0, dtype=tl.int64)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        ok = tile < tiles
        gains = tl.load(gain_ptr + row * tiles + tile, mask=ok, other=float("-inf"))
        keys = tl.load(key_ptr + row * tiles + tile, mask=ok, other=0)
        top = tl.max(gains, axis=0)
        low = tl.min(tl.where(gains == top, keys, 0x7FFFFFFFFFFFFFFF), axis=0)
        key = tl.where(top > best, low, tl.where(top == best, tl.minimum(low, key), key))
        best = tl.maximum(top, best)
    goes = (best.to(tl.float64) > tl.load(least_ptr + row)) & (step < tl.load(left_ptr + row))
    tl.store(moved_ptr + row, goes.to(tl.int32))
    if goes:
        i = key // width
        begin = tl.load(start_ptr + row)
        if GROUPED:
            begin = tl.load(first_ptr + row * width + i)
        j = begin + key % width
        own = tl.load(coupling_ptr + row * area + i * line + (key % width if GROUPED else j))
        alpha, delta = tl.load(diagonal_ptr + row * width + i), tl.load(diagonal_ptr + row * width + j)
        y, z = tl.load(border_ptr + row * width + i), tl.load(border_ptr + row * width + j)
        scale = 1.0 / (alpha * delta + own * own)
        numbers_ptr += (row * DEPTH + step) * 8
        tl.store(numbers_ptr, -delta * scale)
        tl.store(numbers_ptr + 1, alpha * scale)
        tl.store(numbers_ptr + 2, own * scale)
        tl.store(numbers_ptr + 3, scale * (own * z - delta * y))
        tl.store(numbers_ptr + 4, scale * (own * y + alpha * z))
        tl.store(numbers_ptr + 5, 1.0 - alpha)
        tl.store(numbers_ptr + 6, delta - 1.0)
        tl.store(numbers_ptr + 7, own)
        pairs_ptr += (row * DEPTH + step) * 4
        tl.store(pairs_ptr, i.to(tl.int32))
        tl.store(pairs_ptr + 1, j.to(tl.int32))
        tl.store(pairs_ptr + 2, tl.load(place_ptr + row * width + i))
        tl.store(pairs_ptr + 3, tl.load(place_ptr + row * width + j))
        tl.store(made_ptr + row, step + 1)


@triton.jit
def _built(tableau_ptr, position, place, start, width, ok):  # type: ignore[no-untyped-def]
    # A row of the tableau as it was built; above the diagonal its blocks between N and R may have changed since.
    turned = (position < start) & (place >= start)
    high = tl.where(turned, place, position).to(tl.int64)
    low = tl.where(turned, position, place)
    return tl.load(tableau_ptr + high * width + low, mask=ok, other=0.0)


@triton.jit
def _factors(past_ptr, numbers_ptr, position, record, real, width):  # type: ignore[no-untyped-def]
    # What former exchanges took from a row of the tableau, as multiples of their x0 (even records) and x1 (odd).
    same = tl.load(past_ptr + record * width + position, mask=real, other=0.0)
    other = tl.load(past_ptr + (record ^ 1) * width + position, mask=real, other=0.0)
    own = tl.load(numbers_ptr + record // 2 * 8 + record % 2, mask=real, other=0.0)
    across = tl.load(numbers_ptr + record // 2 * 8 + 2, mask=real, other=0.0)
    return own * same + across * other


@triton.jit(do_not_specialize=("step",))
def turn_kernel(
    # past [rows, 2 DEPTH, width], by position, and now [rows, 2, width], by slot: x0 and x1; written
    past_ptr,
    now_ptr,
    # diagonal, border, place [rows, width]: changed
    diagonal_ptr,
    border_ptr,
    place_ptr,
    # tableau [rows, width, width], numbers [rows, DEPTH, 8], pairs [rows, DEPTH, 4], moved, start [rows]
    tableau_ptr,
    numbers_ptr,
    pairs_ptr,
    moved_ptr,
    start_ptr,
    # sizes
    width,
    step,
    # constants
    DEPTH: tl.constexpr,
    RECORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    if tl.load(moved_ptr + row) != 0:
        slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        ok = slot < width
        at = row * width + slot
        numbers_ptr += row * DEPTH * 8
        past_ptr += row * 2 * DEPTH * width
        tableau_ptr += row * width * width
        pairs_ptr += (row * DEPTH + step) * 4
        i, j = tl.load(pairs_ptr), tl.load(pairs_ptr + 1)
        p, q = tl.load(pairs_ptr + 2), tl.load(pairs_ptr + 3)
        start = tl.load(start_ptr + row)
        place = tl.load(place_ptr + at, mask=ok, other=0)
        x0 = _built(tableau_ptr, p, place, start, width, ok)
        x1 = _built(tableau_ptr, q, place, start, width, ok)
        for first in range(0, 2 * step, RECORDS):
            record = first + tl.arange(0, RECORDS)
            real = record < 2 * step
            seen = real[:, None] & ok[None, :]
            x = tl.load(past_ptr + record[:, None] * width + place[None, :], mask=seen, other=0.0)
            x0 -= tl.sum(_factors(past_ptr, numbers_ptr, p, record, real, width)[:, None] * x, axis=0)
            x1 -= tl.sum(_factors(past_ptr, numbers_ptr, q, record, real, width)[:, None] * x, axis=0)
        numbers_ptr += step * 8
        out, into, across = tl.load(numbers_ptr), tl.load(numbers_ptr + 1), tl.load(numbers_ptr + 2)
        b0, b1 = tl.load(numbers_ptr + 3), tl.load(numbers_ptr + 4)
        own = tl.load(numbers_ptr + 7)
        x0 = tl.where(slot == i, tl.load(numbers_ptr + 5), tl.where(slot == j, own, x0))
        x1 = tl.where(slot == j, tl.load(numbers_ptr + 6), tl.where(slot == i, own, x1))
        tl.store(past_ptr + 2 * step * width + place, x0, mask=ok)
        tl.store(past_ptr + (2 * step + 1) * width + place, x1, mask=ok)
        tl.store(now_ptr + row * 2 * width + slot, x0, mask=ok)
        tl.store(now_ptr + row * 2 * width + width + slot, x1, mask=ok)
        change = x0 * (out * x0 + across * x1) + x1 * (across * x0 + into * x1)
        diagonal = tl.load(diagonal_ptr + at, mask=ok, other=1.0)
        diagonal = tl.where(slot < start, diagonal + change, diagonal - change)
        diagonal = tl.where(slot == i, into, tl.where(slot == j, -out, diagonal))
        border = tl.load(border_ptr + at, mask=ok, other=0.0) - x0 * b0 - x1 * b1
        border = tl.where(slot == i, b1, tl.where(slot == j, -b0, border))
        tl.store(diagonal_ptr + at, diagonal, mask=ok)
        tl.store(border_ptr + at, border, mask=ok)
        tl.store(place_ptr + at, tl.where(slot == i, q, tl.where(slot == j, p, place)), mask=ok)


@triton.jit(do_not_specialize=("step",))
def pairs_kernel(
    # what a tile found: gain, key [rows, tiles], key int64; written
    gain_ptr,
    key_ptr,
    # couplings: changed
    coupling_ptr,
    # now [rows, 2, width], diagonal, border [rows, width], numbers [rows, DEPTH, 8], pairs [rows, DEPTH, 4]
    now_ptr,
    diagonal_ptr,
    border_ptr,
    numbers_ptr,
    pairs_ptr,
    # moved, start, inside, outside [rows] int32; first, count [rows, width] int32: slots of R in a slot's group
    moved_ptr,
    start_ptr,
    inside_ptr,
    outside_ptr,
    first_ptr,
    count_ptr,
    # sizes
    width,
    area,
    line,
    step,
    sign,
    # constants
    MOVED: tl.constexpr,
    GROUPED: tl.constexpr,
    DEPTH: tl.constexpr,
    HEIGHT: tl.constexpr,
    BREADTH: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    if (not MOVED) or (tl.load(moved_ptr + row) != 0):
        a = tl.program_id(1) * HEIGHT + tl.arange(0, HEIGHT)
        c = tl.program_id(2) * BREADTH + tl.arange(0, BREADTH)
        real = a < tl.load(inside_ptr + row)
        begin = tl.multiple_of(tl.load(start_ptr + row), 32)
        place = row * area + a.to(tl.int64)[:, None] * line + c[None, :]
        if GROUPED:
            b = tl.load(first_ptr + row * width + a, mask=real, other=0)[:, None] + c[None, :]
            count = tl.load(count_ptr + row * width + a, mask=real, other=0)
            ok = real[:, None] & (c[None, :] < count[:, None])
            some, held = ok, ok
        else:
            b = begin + c[None, :]
            outside = tl.load(outside_ptr + row)
            ok = real[:, None] & (c[None, :] < outside)
            # The padding after R goes along, so that whole vectors are loaded and stored.
            some = c[None, :] < (outside + 31) // 32 * 32
            held = real[:, None] & some
            place += begin
        own = tl.load(coupling_ptr + place, mask=held, other=0.0)
        if MOVED:
            numbers_ptr += (row * DEPTH + step) * 8
            out, into, across = tl.load(numbers_ptr), tl.load(numbers_ptr + 1), tl.load(numbers_ptr + 2)
            pairs_ptr += (row * DEPTH + step) * 4
            i, j = tl.load(pairs_ptr), tl.load(pairs_ptr + 1)
            now_ptr += row * 2 * width
            left0 = tl.load(now_ptr + a, mask=real, other=0.0)
            left1 = tl.load(now_ptr + width + a, mask=real, other=0.0)
            right0 = tl.load(now_ptr + b, mask=some, other=0.0)
            right1 = tl.load(now_ptr + width + b, mask=some, other=0.0)
            u0, u1 = out * right0 + across * right1, across * right0 + into * right1
            own -= left0[:, None] * u0 + left1[:, None] * u1
            # The two slots hold other columns now: their couplings are set.
            back = -(out * left0 + across * left1)[:, None]
            own = tl.where(b == j, tl.where((a == i)[:, None], across, back), tl.where((a == i)[:, None], u1, own))
            tl.store(coupling_ptr + place, own, mask=held)
        alpha = tl.load(diagonal_ptr + row * width + a, mask=real, other=0.0)[:, None]
        y = tl.load(border_ptr + row * width + a, mask=real, other=0.0)[:, None]
        delta = tl.load(diagonal_ptr + row * width + b, mask=some, other=0.0)
        z = tl.load(border_ptr + row * width + b, mask=some, other=0.0)
        ok = ok & (alpha > 0.0) & (delta > 0.0)
        gain = sign * (alpha * z * z + 2.0 * own * y * z - delta * y * y)
        gain = gain / tl.where(ok, alpha * delta + own * own, 1.0)
        gain = tl.where(ok & (gain > float("-inf")), gain, float("-inf"))  # nor a NaN
        best = tl.max(tl.max(gain, axis=1), axis=0)
        here = tl.arange(0, HEIGHT)[:, None] * BREADTH + tl.arange(0, BREADTH)[None, :]
        here = tl.min(tl.min(tl.where(gain == best, here, HEIGHT * BREADTH - 1), axis=1), axis=0)
        slot, column = tl.program_id(1) * HEIGHT + here // BREADTH, tl.program_id(2) * BREADTH + here % BREADTH
        tile = (row * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
        tl.store(gain_ptr + tile, best)
        tl.store(key_ptr + tile, slot.to(tl.int64) * width + column)
