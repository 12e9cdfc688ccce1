# SPDX-License-Identifier: Apache-2.0
"""The one table of tolerances: what each arithmetic may lose against float64.

Errors are measured as ``max |got - wanted| / scale``, with a scale that the test states (usually the largest
magnitude of the exact result, or the sum of magnitudes that went into it).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Moments of float32/bf16/fp16 input: exact products in float32, chains of 256 in float32, float64 beyond.
# c · eps32 · sqrt(256) with c = 1: 1.9e-6. float64 input: chains of 256 in float64.
MOMENTS = {
    torch.float32: 2e-6,
    torch.bfloat16: 2e-6,
    torch.float16: 2e-6,
    torch.float64: 1e-13,
}

# A product, relative to the sum of the magnitudes that went into an entry: chains of up to 1,030.
PRODUCT = {torch.float32: 1e-6, torch.float64: 1e-14}

# A product with a compressed matrix, by the type of x and y, relative to the magnitudes that went into an entry: sums
# of up to 1,031 in float32, GELU to 4e-7 of its argument, and one rounding of the result.
SPMM = {torch.float32: 2e-6, torch.bfloat16: 4.1e-3, torch.float16: 5.2e-4, torch.float64: 1e-14}

# Two layers of an encoder, relative to the largest entry: sums of up to 300 in float32 (5e-6 where no instruction fuses
# products and sums), and norms that magnify them.
ENCODER = 1e-5

# Sums over a bank, by the type of the queries. Of scores: relative to the magnitudes that went into them (the largest
# score's for log_sum), chains of up to 1,030. The gradient: relative to the magnitudes of its weights, which are powers
# of scores, times 1 + the largest of those, and rounded once.
BANK = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6, torch.float64: 1e-14}
BANK_GRADIENT = {torch.float32: 2e-6, torch.bfloat16: 4.1e-3, torch.float16: 5.2e-4, torch.float64: 1e-14}

# A Cholesky factor times itself, relative to the matrix: up to 300 columns.
FACTOR = {torch.float32: 2e-6, torch.float64: 1e-13}

# Systems are solved in float64 whatever the input; what is left is condition · eps64, with the conditions the
# tests use (up to 1e6), and the rounding of the stored result.
SOLVE = 1e-8
STORED = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 0.0}

# SparseGPT's sweep in float32, on grams with conditions up to 1e4.
SWEEP_SINGLE = 1e-4

# Greedy OBS: thousands of dependent updates in float64. Weights come from a float64 residual, so that they are held to
# this also where the removals were chosen in float32; the losses seen while choosing are not.
GREEDY = 1e-7
GREEDY_LOSS_SINGLE = 1e-4

# One row's greedy objective in float32 against that in float64, where the same columns went; and the sum over rows,
# where a choice between two columns whose losses agree to five digits may have fallen the other way.
SAME_CHOICE = 1e-6
OTHER_CHOICES = 1e-2


def relative(got: Tensor, wanted: Tensor, scale: float | None = None) -> float:
    """Largest deviation relative to ``scale`` (default: the largest magnitude wanted); NaN-safe."""
    if wanted.numel() == 0:
        assert got.shape == wanted.shape
        return 0.0
    size = float(wanted.double().abs().max()) if scale is None else scale
    worst = float((got.double() - wanted.double()).abs().max())
    return worst if size == 0.0 else worst / size
