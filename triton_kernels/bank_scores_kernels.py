# SPDX-License-Identifier: Apache-2.0
"""The two kernels of scores against a bank; the algorithm is told in `bank_scores.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(place, entries, rows_ptr, length, HAS_ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of candidates [CANDIDATES], and whether they are in the bank."""
    there = place < entries
    row = place
    if HAS_ROWS:
        row = tl.load(rows_ptr + place, mask=there, other=0)
    return row, there & (row >= 0) & (row < length)


@triton.jit
def scores_of(  # type: ignore[no-untyped-def]
    queries_ptr,
    bank_ptr,
    stride,
    features,
    scale,
    query,
    inside,
    place,
    entries,
    row,
    known,
    OWN: tl.constexpr,
    AS_IS: tl.constexpr,
    QUERIES: tl.constexpr,
    CANDIDATES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Scores in base 2 [QUERIES, CANDIDATES], minus infinity where a candidate does not count."""
    sums = tl.zeros((QUERIES, CANDIDATES), dtype=tl.float32)
    for start in range(0, features, DEPTH):
        feature = start + tl.arange(0, DEPTH)
        real = feature < features
        left = tl.load(
            queries_ptr + query[:, None] * features + feature[None, :], mask=inside[:, None] & real[None, :], other=0.0
        )
        right = tl.load(
            bank_ptr + row[None, :] * stride + feature[:, None], mask=known[None, :] & real[:, None], other=0.0
        )
        if not AS_IS:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        sums = tl.dot(left, right, acc=sums, input_precision="ieee")
    # A row that is not in the bank is not read; what it enters is NaN.
    score = tl.where(known[None, :], sums * scale, float("nan"))
    score = tl.where((place < entries)[None, :], score, float("-inf"))
    if OWN:
        score = tl.where(query[:, None] == place[None, :], float("-inf"), score)
    return score


@triton.jit
def sums_kernel(  # type: ignore[no-untyped-def]
    # by chunk: largest and total, [chunks, batch] float32, of powers of two
    largest_ptr,
    total_ptr,
    # positives and the best of them, [chunks, kinds, batch] float32, in base 2; counts, int32
    positives_ptr,
    best_ptr,
    counts_ptr,
    # queries, [batch, features]; keys, [kinds, batch] int64
    queries_ptr,
    keys_ptr,
    # bank, [length, features], features contiguous; bank_keys, [kinds, entries] int64; rows, [entries] int64
    bank_ptr,
    bank_keys_ptr,
    rows_ptr,
    # sizes
    batch,
    features,
    kinds,
    length,
    entries,
    stride,
    # of candidates, a multiple of CANDIDATES
    chunk,
    # of scores, log2(e) / τ
    scale,
    # constants
    HAS_ROWS: tl.constexpr,
    OWN: tl.constexpr,
    AS_IS: tl.constexpr,
    KINDS: tl.constexpr,
    QUERIES: tl.constexpr,
    CANDIDATES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    inside = query < batch
    part = tl.program_id(1).to(tl.int64)
    kind_of = tl.arange(0, KINDS)
    largest = tl.full((QUERIES,), -3e38, dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    positives = tl.zeros((KINDS, QUERIES), dtype=tl.float32)
    best = tl.full((KINDS, QUERIES), -3e38, dtype=tl.float32)
    count = tl.zeros((KINDS, QUERIES), dtype=tl.int32)
    for start in range(0, chunk, CANDIDATES):
        place = part * chunk + start + tl.arange(0, CANDIDATES)
        row, known = rows_of(place, entries, rows_ptr, length, HAS_ROWS)
        score = scores_of(
            queries_ptr,
            bank_ptr,
            stride,
            features,
            scale,
            query,
            inside,
            place,
            entries,
            row,
            known,
            OWN,
            AS_IS,
            QUERIES,
            CANDIDATES,
            DEPTH,
        )
        top = tl.maximum(largest, tl.max(score, axis=1))
        total = total * tl.exp2(largest - top) + tl.sum(tl.exp2(score - top[:, None]), axis=1)
        largest = top
        for kind in range(kinds):
            own_key = tl.load(keys_ptr + kind * batch + query, mask=inside, other=0)
            key = tl.load(bank_keys_ptr + kind * entries + place, mask=place < entries, other=0)
            positive = (own_key[:, None] == key[None, :]) & (score != float("-inf"))
            mine = (kind_of == kind)[:, None]
            positives += tl.where(mine, tl.sum(tl.where(positive, score, 0.0), axis=1)[None, :], 0.0)
            most = tl.max(tl.where(positive, score, -3e38), axis=1)
            best = tl.maximum(best, tl.where(mine, most[None, :], -3e38))
            count += tl.where(mine, tl.sum(positive.to(tl.int32), axis=1)[None, :], 0)
    tl.store(largest_ptr + part * batch + query, largest, mask=inside)
    tl.store(total_ptr + part * batch + query, total, mask=inside)
    at = (part * kinds + kind_of)[:, None] * batch + query[None, :]
    stored = (kind_of < kinds)[:, None] & inside[None, :]
    tl.store(positives_ptr + at, positives, mask=stored)
    tl.store(best_ptr + at, best, mask=stored)
    tl.store(counts_ptr + at, count, mask=stored)


@triton.jit
def gradient_kernel(  # type: ignore[no-untyped-def]
    # gradients by chunk, [chunks, batch, features] float32
    parts_ptr,
    # log_sum in base 2, [batch], and the gradients by it and by positives, [kinds, batch], over τ; float32
    log_sum_ptr,
    to_log_sum_ptr,
    to_positives_ptr,
    # as above
    queries_ptr,
    keys_ptr,
    bank_ptr,
    bank_keys_ptr,
    rows_ptr,
    batch,
    features,
    kinds,
    length,
    entries,
    stride,
    chunk,
    scale,
    HAS_ROWS: tl.constexpr,
    OWN: tl.constexpr,
    AS_IS: tl.constexpr,
    QUERIES: tl.constexpr,
    CANDIDATES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    inside = query < batch
    part = tl.program_id(1).to(tl.int64)
    log_sum = tl.load(log_sum_ptr + query, mask=inside, other=0.0)
    to_log_sum = tl.load(to_log_sum_ptr + query, mask=inside, other=0.0)
    for start in range(0, chunk, CANDIDATES):
        place = part * chunk + start + tl.arange(0, CANDIDATES)
        row, known = rows_of(place, entries, rows_ptr, length, HAS_ROWS)
        score = scores_of(
            queries_ptr,
            bank_ptr,
            stride,
            features,
            scale,
            query,
            inside,
            place,
            entries,
            row,
            known,
            OWN,
            AS_IS,
            QUERIES,
            CANDIDATES,
            DEPTH,
        )
        weight = to_log_sum[:, None] * tl.exp2(score - log_sum[:, None])
        for kind in range(kinds):
            own_key = tl.load(keys_ptr + kind * batch + query, mask=inside, other=0)
            slope = tl.load(to_positives_ptr + kind * batch + query, mask=inside, other=0.0)
            key = tl.load(bank_keys_ptr + kind * entries + place, mask=place < entries, other=0)
            weight += tl.where(own_key[:, None] == key[None, :], slope[:, None], 0.0)
        weight = tl.where(score == float("-inf"), 0.0, weight)
        for first in range(0, features, DEPTH):
            feature = first + tl.arange(0, DEPTH)
            real = feature < features
            candidate = tl.load(
                bank_ptr + row[:, None] * stride + feature[None, :], mask=known[:, None] & real[None, :], other=0.0
            )
            at = parts_ptr + (part * batch + query)[:, None] * features + feature[None, :]
            stored = inside[:, None] & real[None, :]
            was = tl.load(at, mask=stored & (start > 0), other=0.0)
            tl.store(at, tl.dot(weight, candidate.to(tl.float32), acc=was, input_precision="ieee"), mask=stored)
        tl.debug_barrier()  # another thread may read what this one wrote
