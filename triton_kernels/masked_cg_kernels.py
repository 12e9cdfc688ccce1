# SPDX-License-Identifier: Apache-2.0
"""The kernels of conjugate gradients on many supports; the algorithm is told in `masked_cg.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def start_kernel(
    # residual, direction, scaled [rows, k]; angle, loss [rows] float64, going [rows] uint8; all written
    residual_ptr,
    direction_ptr,
    scaled_ptr,
    angle_ptr,
    loss_ptr,
    going_ptr,
    # x H, c, x, d [rows, k], mask [rows, k] uint8, 1 / D [k]
    product_ptr,
    target_ptr,
    x_ptr,
    dense_ptr,
    mask_ptr,
    rest_ptr,
    # sizes
    columns,
    # constants
    KIND: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    angle = tl.zeros((BLOCK,), dtype=tl.float64)
    loss = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        ok = column < columns
        at = row * columns + column
        kept = tl.load(mask_ptr + at, mask=ok, other=0) != 0
        left = tl.load(target_ptr + at, mask=ok, other=0.0) - tl.load(product_ptr + at, mask=ok, other=0.0)
        residual = tl.where(kept, left, 0.0)
        tl.store(residual_ptr + at, residual, mask=ok)
        if KIND == 0:
            tl.store(direction_ptr + at, residual, mask=ok)
            wide = residual.to(tl.float64)
            angle += wide * wide
        if KIND == 2:
            tl.store(scaled_ptr + at, residual * tl.load(rest_ptr + column, mask=ok, other=0.0), mask=ok)
        if HAS_DENSE:  # (d − x) H (d − x), with H d = c
            x = tl.load(x_ptr + at, mask=ok, other=0.0).to(tl.float64)
            loss += (tl.load(dense_ptr + at, mask=ok, other=0.0).to(tl.float64) - x) * left.to(tl.float64)
    if KIND == 0:
        total = tl.sum(angle, axis=0)
        tl.store(angle_ptr + row, total)
        tl.store(going_ptr + row, (total > 0.0).to(tl.uint8))
    if HAS_DENSE:
        tl.store(loss_ptr + row, tl.maximum(tl.sum(loss, axis=0), 0.0))


@triton.jit
def advance_kernel(
    # x, residual, direction, scaled [rows, k]; worth, angle, loss [rows] float64, going [rows] uint8; all changed
    x_ptr,
    residual_ptr,
    direction_ptr,
    scaled_ptr,
    worth_ptr,
    angle_ptr,
    loss_ptr,
    going_ptr,
    # direction H, c [rows, k], mask [rows, k] uint8, 1 / D [k]
    product_ptr,
    target_ptr,
    mask_ptr,
    rest_ptr,
    # sizes
    columns,
    tolerance,
    # constants
    KIND: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    if tl.load(going_ptr + row) != 0:
        sums = tl.zeros((BLOCK,), dtype=tl.float64)
        for first in range(0, columns, BLOCK):
            column = first + tl.arange(0, BLOCK)
            ok = column < columns
            at = row * columns + column
            direction = tl.load(direction_ptr + at, mask=ok, other=0.0).to(tl.float64)  # zero outside the mask
            sums += direction * tl.load(product_ptr + at, mask=ok, other=0.0).to(tl.float64)
        curvature = tl.sum(sums, axis=0)
        goes = curvature > 0.0
        if goes:
            angle = tl.load(angle_ptr + row)
            length = angle / curvature
            step = length.to(tl.float32)
            energy = tl.zeros((BLOCK,), dtype=tl.float64)
            square = tl.zeros((BLOCK,), dtype=tl.float64)
            for first in range(0, columns, BLOCK):
                column = first + tl.arange(0, BLOCK)
                ok = column < columns
                at = row * columns + column
                kept = tl.load(mask_ptr + at, mask=ok, other=0) != 0
                direction = tl.load(direction_ptr + at, mask=ok, other=0.0)
                x = tl.load(x_ptr + at, mask=ok, other=0.0) + step * direction
                tl.store(x_ptr + at, x, mask=ok)
                product = tl.load(product_ptr + at, mask=ok, other=0.0)
                residual = tl.load(residual_ptr + at, mask=ok, other=0.0) - tl.where(kept, step * product, 0.0)
                tl.store(residual_ptr + at, residual, mask=ok)
                if not HAS_DENSE:
                    energy += x.to(tl.float64) * tl.load(target_ptr + at, mask=ok, other=0.0).to(tl.float64)
                if KIND == 0:
                    wide = residual.to(tl.float64)
                    square += wide * wide
                if KIND == 2:
                    tl.store(scaled_ptr + at, residual * tl.load(rest_ptr + column, mask=ok, other=0.0), mask=ok)
            gain = length * angle
            if HAS_DENSE:
                whole = tl.maximum(tl.load(loss_ptr + row) - gain, 0.0)
                tl.debug_barrier()  # all have read what is changed now
                tl.store(loss_ptr + row, whole)
            else:
                whole = tl.sum(energy, axis=0)
            worth = tl.where(whole > 0.0, gain / whole, 0.0)
            tl.store(worth_ptr + row, worth)
            goes = worth > tolerance
            if KIND == 0:
                following = tl.sum(square, axis=0)
                tl.store(angle_ptr + row, following)
                goes = goes & (following > 0.0)
                turn = (following / angle).to(tl.float32)
                tl.debug_barrier()  # the residual may be read by other threads than wrote it
                for first in range(0, columns, BLOCK):
                    column = first + tl.arange(0, BLOCK)
                    ok = column < columns
                    at = row * columns + column
                    direction = tl.load(direction_ptr + at, mask=ok, other=0.0)
                    residual = tl.load(residual_ptr + at, mask=ok, other=0.0)
                    tl.store(direction_ptr + at, residual + turn * direction, mask=ok)
        tl.store(going_ptr + row, goes.to(tl.uint8))


@triton.jit
def _solved(residual_ptr, product_ptr, mask_ptr, rest_ptr, at, column, ok, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    # The residual, and the preconditioner's answer to it.
    residual = tl.load(residual_ptr + at, mask=ok, other=0.0)
    kept = tl.load(mask_ptr + at, mask=ok, other=0) != 0
    product = tl.load(product_ptr + at, mask=ok, other=0.0)
    if KIND == 2:
        product = (residual - product) * tl.load(rest_ptr + column, mask=ok, other=0.0)
    return residual, tl.where(kept, product, 0.0)


@triton.jit
def turn_kernel(
    # direction [rows, k]; angle [rows] float64, going [rows] uint8; changed
    direction_ptr,
    angle_ptr,
    going_ptr,
    # residual, what the preconditioner's product made of it [rows, k], mask [rows, k] uint8, 1 / D [k]
    residual_ptr,
    product_ptr,
    mask_ptr,
    rest_ptr,
    # sizes
    columns,
    # constants
    FIRST: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    if FIRST or (tl.load(going_ptr + row) != 0):
        sums = tl.zeros((BLOCK,), dtype=tl.float64)
        for first in range(0, columns, BLOCK):
            column = first + tl.arange(0, BLOCK)
            ok = column < columns
            at = row * columns + column
            residual, solved = _solved(residual_ptr, product_ptr, mask_ptr, rest_ptr, at, column, ok, KIND)
            sums += residual.to(tl.float64) * solved.to(tl.float64)
        following = tl.sum(sums, axis=0)
        turn = 0.0
        if not FIRST:
            turn = (following / tl.load(angle_ptr + row)).to(tl.float32)
        for first in range(0, columns, BLOCK):
            column = first + tl.arange(0, BLOCK)
            ok = column < columns
            at = row * columns + column
            _, direction = _solved(residual_ptr, product_ptr, mask_ptr, rest_ptr, at, column, ok, KIND)
            if not FIRST:
                direction += turn * tl.load(direction_ptr + at, mask=ok, other=0.0)
            tl.store(direction_ptr + at, direction, mask=ok)
        tl.debug_barrier()  # all have read what is changed now
        tl.store(angle_ptr + row, following)
        tl.store(going_ptr + row, (following > 0.0).to(tl.uint8))
