# SPDX-License-Identifier: Apache-2.0
"""Random numbers and logarithms that are the same bits on every processor: what `draw_counts` is made of.

Random bits are those of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a
function of seed, entry and draw, without a state. Logarithms are written out in operations that IEEE 754 rounds the
same everywhere (no fused multiply-add), so that what is drawn does not depend on whose library computes them.
`csrc/common/philox.h`, `csrc/common/logarithm.h` and `triton_kernels/draw_counts.py` are the same, operation by
operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW = 0xFFFFFFFF  # the lower 32 bits
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

ROOT_HALF = 0x3FE6A09E00000000  # bits of √½, about: mantissas lie from there to √2
LN2_HIGH = float.fromhex("0x1.62e42feep-1")  # 32 bits: its products with exponents are exact
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
TERMS = 11  # of the series: what is left out is below 1e-18 of the whole
SMALLEST = float.fromhex("0x1p-1022")  # the smallest normal float64: weights below it count as zero
APART = 64.0  # log keys of a draw lie less than 50 apart where weights are equal: −45.1 to 3.9


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 random bits for each counter, in int64 that hold 0 to 2³² − 1."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & LOW, seed >> 32 & LOW
    for _ in range(ROUNDS):
        # The low 64 bits of a product are right whatever its sign says.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (second >> 32 & LOW) ^ c1 ^ k0, second & LOW, (first >> 32 & LOW) ^ c3 ^ k1, first & LOW
        k0, k1 = k0 + KEY_STEPS[0] & LOW, k1 + KEY_STEPS[1] & LOW
    return c0, c1, c2, c3


def uniform_bits(entries: Tensor, draw: int, seed: int) -> Tensor:
    """64 random bits for each entry of a draw, int64.

    The upper 16 come from the counter (entry, draw // 8, 0), for eight draws; the others from (entry, draw, 1).
    """
    low, high, zero = entries & LOW, entries >> 32, torch.zeros_like(entries)
    words = philox((low, high, zero + draw // 8, zero), seed)
    # The sign is flipped: halves are compared as signed numbers where they decide alone.
    half = words[draw % 8 // 2] >> 16 * (draw % 2) & 0xFFFF ^ 0x8000
    fine = philox((low, high, zero + draw, zero + 1), seed)
    return half << 48 | (fine[1] & 0xFFFF) << 32 | fine[0]


def log_sum(exponent: Tensor, f: Tensor) -> Tensor:
    """Give exponent · log 2 + log(1 + f), f in [√½ − 1, √2 − 1], by 2 atanh(s) = 2 (s + s³/3 + …), s = f / (2 + f)."""
    s = f / (2.0 + f)
    square = s * s
    series = torch.full_like(f, 1.0 / (2 * TERMS - 1))
    for term in range(TERMS - 2, 0, -1):
        series = series * square + 1.0 / (2 * term + 1)
    twice = s + s
    return exponent * LN2_HIGH + (exponent * LN2_LOW + (twice * (series * square) + twice))


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Exponent e and f with x = 2^e (1 + f), of normal positive float64."""
    bits = x.view(torch.int64)
    exponent = (bits - ROOT_HALF) >> 52
    return exponent.double(), (bits - (exponent << 52)).view(torch.float64) - 1.0


def log(x: Tensor) -> Tensor:
    """Natural logarithm of normal positive float64, within 2 units in the last place."""
    return log_sum(*split(x))


def log_exponential(bits: Tensor) -> Tensor:
    """Logarithm of an exponential variable E = −log(1 − v), v = (bits + ½) / 2⁶⁴, bits taken as unsigned.

    Both ends keep full relative accuracy: v is used where it is small, 1 − v where that is.
    """
    upper = bits < 0  # v >= 1/2
    v = (torch.where(upper, ~bits, bits).double() + 0.5) * 2.0**-64  # 1 − v where v >= 1/2
    exponent, f = split(torch.where(upper, v, 1.0 - v))
    f = torch.where(~upper & (v <= 0.25), -v, f)  # 1 − v has lost the last bits of v
    return log(-log_sum(exponent, f))


def log_rates(weight: Tensor, exponent: float) -> Tensor:
    """Give exponent · log|w|, float64; of zeros so low that all others come before them, and equal among themselves."""
    size = weight.double().abs()
    zero = size < SMALLEST
    rates = exponent * log(torch.where(zero, 1.0, size))
    lowest = torch.where(zero, torch.inf, rates).amin() - APART if rates.numel() else torch.tensor(0.0)
    return torch.where(zero, torch.where(lowest.isinf(), 0.0, lowest), rates)
