# SPDX-License-Identifier: Apache-2.0
"""Whether a matrix is multiplied faster without its zeros or with them: a pure function of what is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops.sparse_weight import VALUE_TYPES
from pyprune.ops.sparse_windows import FEW

CACHED = 8 << 20  # weights
TILE = 224


@dataclass(frozen=True)
class Rows:
    """Costs of products by "rows" and of torch's linear beside them: nanoseconds on one core, calls from Python.

    Only their ratios matter. Fitted by hand to what benchmarks/bench_spmm.py gave.
    """

    call: float
    dense_call: float
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
    kept={1: 0.39, 8: 0.51, 16: 0.61, 32: 0.92},
    row={1: 3.0, 8: 4.0, 16: 5.0, 32: 8.0},
    layout=0.6,
    dense_one=0.13,
    dense_one_uncached=0.18,
    dense_read=0.5,
    dense_token=0.02,
    widen={torch.float32: 1.0, torch.bfloat16: 1.3, torch.float16: 1.1, torch.int8: 1.1},
)
# By the family of instruction sets. Those of AVX-512 are not fitted yet for the tokens that windows do not serve: both
# sides are taken to gain alike.
ROWS = {"avx2": _AVX2, "avx512": _AVX2}
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
        Instruction set; by default this process's. With values in bfloat16 and AVX-512 BF16 few tokens are taken to be
        bfloat16 too, and the dense product; else all is as with x in float32.

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
        rows = ROWS["avx512" if isa.startswith("avx512") else "avx2"]
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
    blocks = dict.fromkeys(costs.kept, 0)
    blocks[32] = tokens // 32
    rest = tokens % 32
    if rest:
        blocks[1 if tokens == 1 else min(size for size in (8, 16, 32) if size >= rest)] += 1
    kept, segments = density * out * columns, out * max(1, -(-columns // TILE))
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
