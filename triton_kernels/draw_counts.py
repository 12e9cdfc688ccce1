# SPDX-License-Identifier: Apache-2.0
"""Votes of weighted draws without replacement: by 16 bits for almost every entry, by logarithms for the others.

`pyprune/ops/draw_counts.py` says what is drawn; `pyprune/ops/races.py` calls these kernels and says which halves of a
word decide.

- `vote_kernel` makes Philox4x32-10 of its entries, eight draws at a time, counts what is sure and lists what is not:
  2.5 products of 32 bits an entry and draw, in registers. Traffic are 8 bytes an entry, one addition for two draws and
  program, and what is listed. Places in lists come from atomics; their order decides nothing.
- `key_kernel` makes the logarithms of times of what is listed, in float64 and without fused multiply-adds, so that they
  have the bits that `pyprune/ops/exponential_race.py` gives.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # entries of a program
KEYS = 256  # listed entries of a program
WARPS = 4
GROUP = 8  # draws of one counter


@triton.jit
def philox(c0, c1, c2, c3, low, high):  # type: ignore[no-untyped-def]
    """Four words of a counter, uint32."""
    for _ in tl.static_range(10):
        first, a = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        second, b = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = second ^ c1 ^ low, b, first ^ c3 ^ high, a
        low = low + 0x9E3779B9
        high = high + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def judge(  # type: ignore[no-untyped-def]
    total, word, draw, draws, place, inside, before, after, arrived_ptr, listed_ptr, lists_ptr, room
):
    """Two draws by the halves of a word."""
    packed = tl.zeros_like(total)
    for part in tl.static_range(2):
        half = (word >> (16 * part)).to(tl.uint16)
        signed = half.to(tl.int16, bitcast=True)
        there = inside & (draw + part < draws)
        sure = (there & (signed < before)).to(tl.int32)
        near = there & (signed >= before) & (signed <= after)
        packed += sure << (16 * part)
        # int64: so many lists may be longer together than int32 counts.
        row = (draw + part).to(tl.int64)
        slot = tl.atomic_add(listed_ptr + row + tl.zeros_like(place), 1, mask=near)
        entry = (place << 16) | half.to(tl.int64)
        tl.store(lists_ptr + row * room + slot, entry, mask=near & (slot < room))
    both = tl.sum(packed, axis=0)  # at most BLOCK in each half
    tl.atomic_add(arrived_ptr + draw, both & 0xFFFF)
    tl.atomic_add(arrived_ptr + draw + 1, both >> 16)
    return total + (packed & 0xFFFF) + (packed >> 16)


@triton.jit(do_not_specialize=["group", "seed_low", "seed_high"])
def vote_kernel(  # type: ignore[no-untyped-def]
    # counts, [n] int32, added to
    counts_ptr,
    # before and after, [n] int16: halves below the one are sure, above the other out of the question
    before_ptr,
    after_ptr,
    # arrived and listed, [groups * GROUP] int32, added to: how many are sure in a draw, and how many are not
    arrived_ptr,
    listed_ptr,
    # lists, [groups * GROUP, room] int64: the entry, and in the lowest 16 bits its half
    lists_ptr,
    n,
    room,
    draws,
    # of GROUP draws each; the number of the first, and how many there are
    group,
    groups,
    seed_low,
    seed_high,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    before = tl.load(before_ptr + place, mask=inside, other=0)
    after = tl.load(after_ptr + place, mask=inside, other=0)
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    c0, c1 = place.to(tl.uint32), (place >> 32).to(tl.uint32)
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    for step in range(groups):
        c2 = tl.zeros_like(c0) + (group + step).to(tl.uint32)
        w0, w1, w2, w3 = philox(c0, c1, c2, tl.zeros_like(c0), low, high)
        d = step * 8
        total = judge(total, w0, d, draws, place, inside, before, after, arrived_ptr, listed_ptr, lists_ptr, room)
        total = judge(total, w1, d + 2, draws, place, inside, before, after, arrived_ptr, listed_ptr, lists_ptr, room)
        total = judge(total, w2, d + 4, draws, place, inside, before, after, arrived_ptr, listed_ptr, lists_ptr, room)
        total = judge(total, w3, d + 6, draws, place, inside, before, after, arrived_ptr, listed_ptr, lists_ptr, room)
    counts = tl.load(counts_ptr + place, mask=inside, other=0)
    tl.store(counts_ptr + place, counts + total, mask=inside)


@triton.jit
def log_sum(exponent, f):  # type: ignore[no-untyped-def]
    """Give exponent · log 2 + log(1 + f) as `exponential_race.log_sum`."""
    s = f / (f + 2.0)
    square = s * s
    series = square * (1.0 / 21.0) + 1.0 / 19.0
    series = series * square + 1.0 / 17.0
    series = series * square + 1.0 / 15.0
    series = series * square + 1.0 / 13.0
    series = series * square + 1.0 / 11.0
    series = series * square + 1.0 / 9.0
    series = series * square + 1.0 / 7.0
    series = series * square + 1.0 / 5.0
    series = series * square + 1.0 / 3.0
    twice = s + s
    # 0x1.62e42feep-1 and 0x1.a39ef35793c76p-33
    return exponent * 0.6931471803691238 + (exponent * 1.9082149292705877e-10 + (twice * (series * square) + twice))


@triton.jit
def split(x):  # type: ignore[no-untyped-def]
    """Exponent e and f with x = 2^e (1 + f), of normal positive float64."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits - 0x3FE6A09E00000000) >> 52
    return exponent.to(tl.float64), (bits - (exponent << 52)).to(tl.float64, bitcast=True) - 1.0


@triton.jit(do_not_specialize=["draw", "seed_low", "seed_high"])
def key_kernel(  # type: ignore[no-untyped-def]
    # keys, [draws, room] float64, and entries, [draws, room] int64; infinity and n where there is none
    keys_ptr,
    entries_ptr,
    lists_ptr,
    listed_ptr,
    # rates, [n] float64
    rates_ptr,
    n,
    room,
    chunks,
    # the number of the first draw
    draw,
    seed_low,
    seed_high,
    KEYS: tl.constexpr,
):
    row = tl.program_id(0) // chunks
    place = tl.program_id(0) % chunks * KEYS + tl.arange(0, KEYS)
    there = place < tl.minimum(tl.load(listed_ptr + row), room)
    start = row.to(tl.int64) * room
    packed = tl.load(lists_ptr + start + place, mask=there, other=0)
    entry = packed >> 16
    zero = tl.zeros_like(entry).to(tl.uint32)
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    c2 = zero + (draw + row).to(tl.uint32)
    w0, w1, _w2, _w3 = philox(entry.to(tl.uint32), (entry >> 32).to(tl.uint32), c2, zero + 1, low, high)
    half = (packed & 0xFFFF) ^ 0x8000
    bits = (half << 48) | ((w1 & 0xFFFF).to(tl.int64) << 32) | w0.to(tl.int64)
    upper = bits < 0
    v = (tl.where(upper, ~bits, bits).to(tl.float64) + 0.5) * 5.421010862427522e-20  # 2^-64
    exponent, f = split(tl.where(upper, v, 1.0 - v))
    f = tl.where((v <= 0.25) & (bits >= 0), -v, f)
    exponent, f = split(-log_sum(exponent, f))
    keys = log_sum(exponent, f) - tl.load(rates_ptr + entry, mask=there, other=0.0)
    tl.store(keys_ptr + start + place, tl.where(there, keys, float("inf")), mask=place < room)
    tl.store(entries_ptr + start + place, tl.where(there, entry, n), mask=place < room)


def vote(
    counts: Tensor,
    arrived: Tensor,
    listed: Tensor,
    lists: Tensor,
    before: Tensor,
    after: Tensor,
    *,
    first: int,
    draws: int,
    seed: int,
    block: int = BLOCK,
) -> None:
    """Add what is sure to the counts of entries and of draws, and list what is not.

    Parameters
    ----------
    counts : Tensor of int32, shape (n,)
        Added to.
    arrived, listed : Tensor of int32, shape (draws rounded up to GROUP,)
        Added to. `listed` may exceed the room of a list; what has no room is not written.
    lists : Tensor of int64, shape (draws rounded up to GROUP, room)
        ``entry << 16 | half``.
    before, after : Tensor of int16, shape (n,)
        A half below the one is sure, one above the other is not drawn.
    first : int
        The number of the first draw, a multiple of GROUP.
    draws : int
        From there on.
    seed : int
        Any of 64 bits.

    Raises
    ------
    ValueError
        Shapes, dtypes, layouts or devices do not fit.
    """
    n, rows = counts.numel(), -(-draws // GROUP) * GROUP
    _check({"counts": (counts, torch.int32, (n,)), "before": (before, torch.int16, (n,))}, counts.device)
    _check({"after": (after, torch.int16, (n,)), "arrived": (arrived, torch.int32, (rows,))}, counts.device)
    _check({"listed": (listed, torch.int32, (rows,)), "lists": (lists, torch.int64, (rows, -1))}, counts.device)
    if first % GROUP or first < 0 or draws < 0:
        raise ValueError(f"the first draw must be a multiple of {GROUP}, and draws not negative")
    if not n or not draws:
        return
    with torch.cuda.device_of(counts):
        vote_kernel[(triton.cdiv(n, block),)](
            counts,
            before,
            after,
            arrived,
            listed,
            lists,
            n,
            lists.shape[1],
            draws,
            first // GROUP,
            rows // GROUP,
            *_halves(seed),
            BLOCK=block,
            num_warps=WARPS,
        )


def log_times(
    keys: Tensor, entries: Tensor, lists: Tensor, listed: Tensor, rates: Tensor, *, first: int, seed: int
) -> None:
    """Fill in the logarithms of the times at which listed entries arrive.

    Parameters
    ----------
    keys, entries : Tensor of float64 and of int64, shape (draws, room)
        Where there is nothing listed: infinity, and n.
    lists, listed : Tensor of int64, shape (draws, room), and of int32, shape (draws,)
        As `vote` leaves them.
    rates : Tensor of float64, shape (n,)
        Logarithms.
    first : int
        The number of the first draw.

    Raises
    ------
    ValueError
        Shapes, dtypes, layouts or devices do not fit.
    """
    draws, room = keys.shape
    _check(
        {"keys": (keys, torch.float64, (draws, room)), "entries": (entries, torch.int64, (draws, room))}, keys.device
    )
    _check({"lists": (lists, torch.int64, (draws, room)), "listed": (listed, torch.int32, (draws,))}, keys.device)
    _check({"rates": (rates, torch.float64, (-1,))}, keys.device)
    if not keys.numel():
        return
    chunks = triton.cdiv(room, KEYS)
    with torch.cuda.device_of(keys):
        key_kernel[(draws * chunks,)](
            keys,
            entries,
            lists,
            listed,
            rates,
            rates.numel(),
            room,
            chunks,
            first,
            *_halves(seed),
            KEYS=KEYS,
            num_warps=WARPS,
            enable_fp_fusion=False,  # the same bits as on a CPU
        )


def _halves(seed: int) -> tuple[int, int]:
    """Both words of a seed as int32, whose type does not depend on their value."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return low - (low >> 31 << 32), high - (high >> 31 << 32)


def _check(tensors: dict[str, tuple[Tensor, torch.dtype, tuple[int, ...]]], device: torch.device) -> None:
    for name, (tensor, dtype, shape) in tensors.items():
        fits = tensor.dim() == len(shape) and all(
            asked in (-1, size) for asked, size in zip(shape, tensor.shape, strict=True)
        )
        if tensor.dtype != dtype or not fits or not tensor.is_contiguous() or tensor.device != device:
            raise ValueError(
                f"{name} must be contiguous {dtype} {shape} on {device}, got {tensor.dtype} {tuple(tensor.shape)} "
                f"on {tensor.device}"
            )
