# SPDX-License-Identifier: Apache-2.0
"""Which way a product with a compressed matrix goes on a GPU: pure functions of sizes, density, type and architecture.

By analysis, not measured: a way takes as long as the slowest of three, its bytes, its operations and the instructions
that decode it, each at a share of what the data sheet says. The shares are guesses, the instructions were counted in
machine code for sm_90. `benchmarks/gpu/cases_sparse.py` is there to correct both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyprune.ops.spmm_plan import Verdict, described


@dataclass(frozen=True)
class Card:
    """Of a data sheet."""

    bandwidth: float  # bytes a second
    tensor: float  # 16-bit operations a second on tensor cores, zeros multiplied, float32 sums
    lanes: float  # float32 operations a second; half as many instructions


# By compute capability, the smallest part sold with it: the same ones as in triton_kernels/device.py.
CARDS = {
    80: Card(1.56e12, 312e12, 19.5e12),
    86: Card(0.36e12, 25.6e12, 12.7e12),
    89: Card(0.27e12, 30.2e12, 15.1e12),
    90: Card(2.04e12, 756e12, 51.2e12),
    100: Card(8.0e12, 2250e12, 75e12),
    120: Card(0.32e12, 26.4e12, 13.2e12),
}

LAUNCH, OUR_LAUNCH = 5e-6, 8e-6  # seconds before a product does anything; ours is called from Python
TORCH, OURS = 0.85, 0.7  # shares of the sheet's rates
TOKENS = {"cuda": (32, 8), "triton": (32, 32)}  # of a block at most: on tensor cores, on float32 lanes
# Instructions a weight for each block of tokens, of few tokens and of as many as it takes; tensor cores, lanes.
DECODE = {"cuda": ((9.0, 10.3), (13.5, 33.0)), "triton": ((43.0, 52.0), (68.0, 91.0))}
KERNELS = tuple(DECODE)  # backends that have one of ours
SPREAD = 52.0  # the same, of the kernel that puts the zeros back
SEMI_GAIN = 1.6  # of tensor cores by 2:4; twice on the sheet
SEMI_LAUNCHES = 3  # torch pads x and transposes y


def card_of(arch: int) -> Card:
    """What a card of compute capability ``arch`` (90 for 9.0) does; an unknown one as the nearest below."""
    known = [number for number in CARDS if number <= arch]
    return CARDS[max(known)] if known else min(CARDS.values(), key=lambda card: card.bandwidth)


@dataclass(frozen=True)
class Product:
    """What is known of a product beforehand."""

    out: int
    columns: int
    density: float
    dtype: torch.dtype  # of the values
    tokens: int
    wide: bool = False  # x is float32, or not of the values' type: multiplied in float32

    @property
    def size(self) -> float:
        """Weights, zeros included."""
        return float(self.out) * self.columns

    @property
    def in_float32(self) -> bool:
        """Whether float32 lanes multiply."""
        return self.wide or self.dtype == torch.float32


def dense_seconds(product: Product, card: Card) -> float:
    """By torch with the zeros, in the type that is multiplied; the matrix lies there."""
    item = 4 if product.in_float32 else 2
    return LAUNCH + _torch(product, card, item * product.size, 2.0 * product.size * product.tokens)


def tiles_seconds(product: Product, card: Card, backend: str) -> float:
    """By a kernel of ours on tiles: matrix read once, decoded for every block of tokens."""
    lanes = product.in_float32
    most = TOKENS[backend][lanes]
    few, many = DECODE[backend][lanes]
    passes = max(1, -(-product.tokens // most))
    instructions = few + (many - few) * min(1.0, product.tokens / most)
    read = product.size * (product.density * product.dtype.itemsize + 1 / 8 + 1 / 256)
    seconds = max(
        (read + _ends(product)) / card.bandwidth,
        passes * product.size * instructions / (card.lanes / 2),
        0.0 if lanes else 2.0 * product.size * passes * most / card.tensor,  # lanes: among the instructions
    )
    return OUR_LAUNCH + seconds / OURS


def spread_seconds(product: Product, card: Card) -> float:
    """The zeros put back into memory (by Triton), then dense."""
    item = 4 if product.in_float32 else 2
    moved = product.size * (product.density * product.dtype.itemsize + 1 / 8 + item)
    decoded = product.size * SPREAD / (card.lanes / 2)
    return OUR_LAUNCH + max(moved / card.bandwidth, decoded) / OURS + dense_seconds(product, card)


def semi_seconds(product: Product, card: Card) -> float:
    """2:4 by torch."""
    stored = product.size * (product.dtype.itemsize / 2 + 1 / 8)
    operations = 2.0 * product.size * max(8, product.tokens) / SEMI_GAIN
    return SEMI_LAUNCHES * LAUNCH + _torch(product, card, stored, operations)


def blocks_seconds(product: Product, card: Card) -> float:
    """By Triton on kept blocks."""
    kept = product.density * product.size
    rate = card.lanes if product.in_float32 else card.tensor
    seconds = max(
        (kept * product.dtype.itemsize + _ends(product)) / card.bandwidth,
        2.0 * kept * max(16, product.tokens) / rate,
    )
    return OUR_LAUNCH + seconds / OURS


def _torch(product: Product, card: Card, stored: float, operations: float) -> float:
    rate = card.lanes if product.in_float32 else card.tensor
    return max((stored + _ends(product)) / card.bandwidth, operations / rate) / TORCH


def _ends(product: Product) -> float:
    """Bytes of x and y."""
    return (4 if product.in_float32 else 2) * float(product.tokens) * (product.out + product.columns)


def spread_first(product: Product, arch: int, backend: str) -> bool:
    """Whether so many tokens are multiplied faster with the zeros put back first.

    Never by int8 on tensor cores: the scaled weights would have to be rounded to 16 bits.
    """
    if product.dtype == torch.int8 and not product.in_float32:
        return False
    card = card_of(arch)
    return spread_seconds(product, card) < tiles_seconds(product, card, backend)


def faster_on_gpu(
    out: int,
    columns: int,
    density: float,
    *,
    dtype: torch.dtype,
    tokens: int,
    arch: int,
    backend: str,
    arrangement: str = "tiles",
    wide: bool = False,
) -> Verdict:
    """Whether :func:`pyprune.ops.spmm` or a dense product is faster on a GPU; by analysis, not measured.

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
    arch : int
        Compute capability as two digits (90 for 9.0).
    backend : str
        That serves ``spmm`` there: "cuda", "triton", or one without a kernel of ours.
    arrangement : {"tiles", "block", "semi"}
        What :func:`pyprune.ops.spmm_gpu.arrangement_of` gives for the matrix.
    wide : bool
        x and the dense matrix are float32; else they are of the values' type, 16-bit where that is int8.

    Raises
    ------
    InputError
        A size is negative, the density is not between 0 and 1, or no value has this type.

    Examples
    --------
    >>> faster_on_gpu(4096, 4096, 0.1, dtype=torch.bfloat16, tokens=1, arch=90, backend="cuda").reason
    '10 % of 4096 x 4096 kept, 1 tokens: by analysis 0.68 x the time of the dense product'
    """
    what = described("faster_on_gpu", out, columns, density, dtype, tokens)
    product, card = Product(out, columns, density, dtype, tokens, wide), card_of(arch)
    if arrangement != "semi" and backend not in KERNELS:
        return Verdict("dense", f"{what}: there is no kernel for it on this GPU")
    seconds = {
        "semi": lambda: semi_seconds(product, card),
        "block": lambda: blocks_seconds(product, card),
        "tiles": lambda: tiles_seconds(product, card, backend),
    }[arrangement]()
    ratio = seconds / dense_seconds(product, card)
    return Verdict(
        "sparse" if ratio < 1 else "dense", f"{what}: by analysis {ratio:.2g} x the time of the dense product"
    )
