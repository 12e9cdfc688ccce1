# SPDX-License-Identifier: Apache-2.0
"""Features and padding for the cases of `gram` and `cross_gram`."""

from __future__ import annotations

import torch
from buffers import Guarded
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def features(tokens: int, columns: int, dtype: str, device: str) -> Tensor:
    """Random features, rows apart, NaN around them."""
    generator = torch.Generator().manual_seed(tokens * 1009 + columns)
    x = Guarded(tokens, columns, DTYPES[dtype], device, pitch=columns + 5).view
    return x.copy_(torch.randn(tokens, columns, generator=generator))


def padding(tokens: int, device: str) -> Tensor:
    """Which tokens are real: three in five."""
    generator = torch.Generator().manual_seed(tokens)
    return (torch.rand(tokens, generator=generator) < 0.6).to(device)


def deviation(out: Tensor, start: float, left: Tensor, right: Tensor) -> dict[str, float]:
    """Error of `out - start` against float64, relative to the magnitudes that went into an entry."""
    left, right = left.double(), right.double()
    scale = (left.abs().T @ right.abs()).clamp_min(1e-3)
    if out.dtype == torch.float32:
        scale += start  # a float32 out rounds what it already held as well
    error = (out.double() - start - left.T @ right).abs() / scale
    return {
        "max": error.max().item() if out.numel() else 0.0,
        "rms": error.square().mean().sqrt().item() if out.numel() else 0.0,
    }
