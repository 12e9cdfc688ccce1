# SPDX-License-Identifier: Apache-2.0
"""Whether a matrix is multiplied faster without its zeros or with them: a pure function of what is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops.sparse_weight import VALUE_TYPES
from pyprune.ops.sparse_windows import FEW

CACHED = 8 << 20  # weights


@dataclass(frozen=True)
class Rows:
    """Costs of products by "rows" and of torch's linear beside them: nanoseconds on one core, calls from Python.

    Only their ratios matter. Fitted by hand to what benchmarks/bench_spmm.py gave.
    """

    call: float
    dense_call: float
    tile: int  # columns
    kept: Mapping[int, float]  # a kept weight, by the tokens of its block
    row: Mapping[int, float]  # a row of a tile of columns
    layout: float  # an element of x or y, there and back
    dense_one: float  # a weight of torch's linear with one token
    dense_one_uncached: float
    dense_read: float  # with more: a weight, and each token of it
    dense_token: float
    widen: Mapping[torch.dtype, float]  # values, with one token; with more tokens it does not show


# Zen 3 in float32, from 384 x 384 to 4096 x 4096, 1 to 128 tokens, 5 to 50 % kept, and runs at up to 100 %.
_AVX2 = Rows(
    call=10_000.0,
    dense_call=3_000.0,
    tile=224,
    kept={1: 0.39, 8: 0.51, 16: 0.61, 32: 0.92},
    row={1: 3.0, 8: 4.0, 16: 5.0, 32: 8.0},
    layout=0.6,
    dense_one=0.13,
    dense_one_uncached=0.18,
    dense_read=0.5,
    dense_token=0.02,
    widen={torch.float32: 1.0, torch.bfloat16: 1.3, torch.float16: 1.1, torch.int8: 1.1},
)
# Zen 5, 384 x 384 to 3072 x 768, 16 to 512 tokens (few go by windows), 5 to 100 % kept: beside torch's linear
# in float32, which oneDNN's packed weights would beat there by 2.3 times, and pairs (AVX-512 BF16) beside bfloat16.
_AVX512 = Rows(
    call=5_000.0,
    dense_call=1_700.0,
    tile=128,
    kept={16: 0.27, 32: 0.36, 64: 0.62},
    row={16: 1.0, 32: 1.0, 64: 2.4},
    layout=0.15,
    dense_one=0.052,
    dense_one_uncached=0.1,
    dense_read=0.06,
    dense_token=0.0195,
    widen=dict.fromkeys(VALUE_TYPES, 1.0),
)
_PAIRS512 = replace(
    _AVX512,
    dense_call=10_000.0,
    tile=256,
    kept={32: 0.26, 64: 0.44},
    row={32: 1.0, 64: 2.0},
    layout=0.12,
    dense_read=0.06,
    dense_token=0.0043,
)
# torch has vectors of its own choice where our kernels were built, or forced, to the baseline.
BASELINE = 2.5


@dataclass(frozen=True)
class Windows:
    """Costs of few tokens by windows, and of torch's linear beside them; units and fit as those of :class:`Rows`."""

    call: float
    padding: float  # places of padding, by weights of the dense matrix
    place: float  # of a weight or of padding
    token: float  # each token of it
    dense_call: float
    dense_one: float  # a weight of torch's linear with one token
    dense_read: float  # with more: a weight, and each token of it
    dense_token: float
    dense_uncached: float  # times as long where the weights are not in the cache


# Zen 5, 384 x 384 to 4096 x 4096, 1 to 8 tokens, 5 to 50 % kept: singles beside torch's float32, and pairs (AVX-512
# BF16) beside its bfloat16.
SINGLES = Windows(2_600.0, 0.053, 0.024, 0.020, 1_700.0, 0.052, 0.06, 0.02, 2.0)
PAIRS = Windows(2_600.0, 0.036, 0.016, 0.0103, 12_000.0, 0.055, 0.051, 0.003, 1.7)
FAR = 32 << 20  # bytes of windows that come from memory
FAR_BYTE = 0.028


@dataclass(frozen=True)
class Verdict:
    """What to multiply by, and why."""

    format: str  # "sparse" or "dense"
    reason: str


def faster(
    out: int, columns: int, density: float, *, dtype: torch.dtype, tokens: int, isa: str | None = None
) -> Verdict:
    """Whether :func:`pyprune.ops.spmm` or a dense product is faster on a CPU.

    Parameters
    ----------
    out, columns : int
        Shape of the matrix.
    density : float
        Share of its weights that are kept, 0 to 1.
    dtype : torch.dtype
        Of the values.
    tokens : int
        Rows of x in a call.
    isa : str, optional
        Instruction set; by default this process's. With values in bfloat16 and AVX-512 BF16 x is taken to be bfloat16,
        and the dense product too; else all is as with x in float32.

    Raises
    ------
    InputError
        A size is negative, the density is not between 0 and 1, or no value has this type.

    Examples
    --------
    >>> faster(768, 3072, 0.1, dtype=torch.float32, tokens=32, isa="avx2").format
    'sparse'
    >>> faster(768, 768, 0.9, dtype=torch.float32, tokens=1, isa="avx2").reason
    '90 % of 768 x 768 kept, 1 tokens: estimated 2.8 x the time of the dense product'
    """
    what = described("faster", out, columns, density, dtype, tokens)
    isa = backends.instructions() if isa is None else isa
    if isa == "none":
        return Verdict("dense", f"{what}: the compiled kernel is missing")
    if isa.startswith("avx512") and 0 < tokens <= FEW:
        windows = PAIRS if isa == "avx512bf16" and dtype == torch.bfloat16 else SINGLES
        ratio = _by_windows(windows, out * columns, density, dtype, tokens) / _beside(windows, out * columns, tokens)
    else:
        rows = _AVX2
        if isa.startswith("avx512"):
            rows = _PAIRS512 if isa == "avx512bf16" and dtype == torch.bfloat16 else _AVX512
        slower = BASELINE if isa == "baseline" else 1.0
        ratio = _by_rows(rows, out, columns, density, dtype, tokens, slower) / _dense(rows, out * columns, tokens)
    return Verdict(
        "sparse" if ratio <= 1 else "dense", f"{what}: estimated {ratio:.2g} x the time of the dense product"
    )


def described(function: str, out: int, columns: int, density: float, dtype: torch.dtype, tokens: int) -> str:
    """A product in words, for reasons.

    Raises
    ------
    InputError
        There is no such product; the message begins with ``function``.
    """
    if min(out, columns, tokens) < 0 or not 0 <= density <= 1:
        raise InputError(
            f"{function}: a size is out of range", seen=f"{out} x {columns}, density {density}, {tokens} tokens"
        )
    if dtype not in VALUE_TYPES:
        raise InputError(f"{function}: values cannot be {dtype}", hint="float32, bfloat16, float16 or int8")
    return f"{density:.0%} of {out} x {columns} kept, {tokens} tokens".replace("%", " %")


def _by_rows(
    costs: Rows, out: int, columns: int, density: float, dtype: torch.dtype, tokens: int, slower: float
) -> float:
    blocks, widest = dict.fromkeys(costs.kept, 0), max(costs.kept)
    blocks[widest] = tokens // widest
    rest = tokens % widest
    if rest:
        blocks[min(size for size in costs.kept if size >= rest and (size > 1 or tokens == 1))] += 1
    kept, segments = density * out * columns, out * max(1, -(-columns // costs.tile))
    work = sum(count * (costs.kept[size] * kept + costs.row[size] * segments) for size, count in blocks.items())
    work *= costs.widen[dtype] if tokens == 1 else 1.0
    layout = costs.layout * tokens * (out + columns) if tokens > 1 else 0.0
    return costs.call + (work + layout) * slower


def _dense(costs: Rows, weights: int, tokens: int) -> float:
    one = costs.dense_one if weights <= CACHED else costs.dense_one_uncached
    return costs.dense_call + (one if tokens <= 1 else costs.dense_read + costs.dense_token * tokens) * weights


def _by_windows(costs: Windows, weights: int, density: float, dtype: torch.dtype, tokens: int) -> float:
    places = (density + costs.padding) * weights
    size = (dtype.itemsize if costs is SINGLES else 2) + 1
    each = costs.place + costs.token * tokens
    return costs.call + places * (max(each, FAR_BYTE * size) if places * size > FAR else each)


def _beside(costs: Windows, weights: int, tokens: int) -> float:
    each = costs.dense_one if tokens == 1 else costs.dense_read + costs.dense_token * tokens
    return costs.dense_call + each * weights * (1.0 if weights <= CACHED else costs.dense_uncached)
