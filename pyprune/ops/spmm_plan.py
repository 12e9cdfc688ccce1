# SPDX-License-Identifier: Apache-2.0
"""Whether a matrix is multiplied faster without its zeros or with them: a pure function of what is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops.sparse_weight import VALUE_TYPES

# Nanoseconds on one core of a Zen 3 (AVX2) in float32, calls from Python: fitted by hand to what
# benchmarks/bench_spmm.py gave from 384 x 384 to 4096 x 4096, 1 to 128 tokens, 5 to 50 % kept, and to runs at up
# to 100 %. Only their ratios matter.
CALL, DENSE_CALL = 10_000.0, 3_000.0
KEPT = {1: 0.39, 8: 0.51, 16: 0.61, 32: 0.92}  # a kept weight, by the tokens of its block
ROW = {1: 3.0, 8: 4.0, 16: 5.0, 32: 8.0}  # a row of a tile of columns
LAYOUT = 0.6  # an element of x or y, there and back
DENSE_ONE, DENSE_ONE_UNCACHED = 0.13, 0.18  # a weight of torch's linear with one token
DENSE_READ, DENSE_TOKEN = 0.5, 0.02  # with more: a weight, and each token of it
CACHED = 8 << 20  # weights
TILE = 224
# Widening with one token, measured at 768 x 768; with more tokens it does not show.
WIDEN = {torch.float32: 1.0, torch.bfloat16: 1.3, torch.float16: 1.1, torch.int8: 1.1}
# torch has vectors of its own choice where our kernels were built, or forced, to the baseline.
BASELINE = 2.5


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
        Instruction set; by default this process's. The measurements are those of AVX2; with wider vectors both sides
        are taken to gain alike.

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
    ratio = _sparse(out, columns, density, dtype, tokens, isa) / _dense(out, columns, tokens)
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


def _sparse(out: int, columns: int, density: float, dtype: torch.dtype, tokens: int, isa: str) -> float:
    blocks = dict.fromkeys(KEPT, 0)
    blocks[32] = tokens // 32
    rest = tokens % 32
    if rest:
        blocks[1 if tokens == 1 else min(size for size in (8, 16, 32) if size >= rest)] += 1
    kept, segments = density * out * columns, out * max(1, -(-columns // TILE))
    work = sum(count * (KEPT[size] * kept + ROW[size] * segments) for size, count in blocks.items())
    work *= WIDEN[dtype] if tokens == 1 else 1.0
    layout = LAYOUT * tokens * (out + columns) if tokens > 1 else 0.0
    return CALL + (work + layout) * (BASELINE if isa == "baseline" else 1.0)


def _dense(out: int, columns: int, tokens: int) -> float:
    one = DENSE_ONE if out * columns <= CACHED else DENSE_ONE_UNCACHED
    return DENSE_CALL + (one if tokens <= 1 else DENSE_READ + DENSE_TOKEN * tokens) * out * columns
