# SPDX-License-Identifier: Apache-2.0
"""Random problems the op tests share: well, badly and not at all conditioned."""

from __future__ import annotations

import torch
from torch import Tensor


def features(tokens: int, columns: int, generator: torch.Generator, kind: str = "plain") -> Tensor:
    """Token features ``[tokens, columns]`` in float64, of a kind that tries a kernel."""
    x = torch.randn(tokens, columns, dtype=torch.float64, generator=generator)
    if kind == "correlated":
        x = x @ torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    elif kind == "scaled":  # columns from 1e-3 to 1e3
        x = x * torch.logspace(-3, 3, columns, dtype=torch.float64)
    elif kind == "deficient":  # rank at most a third of the columns
        rank = max(columns // 3, 1)
        x = x[:, :rank] @ torch.randn(rank, columns, dtype=torch.float64, generator=generator)
    elif kind == "dead":
        x[:, :: max(columns // 4, 1)] = 0.0
    elif kind != "plain":
        raise ValueError(kind)
    return x


def gram_of(x: Tensor, damp: float = 0.0) -> Tensor:
    """``xᵀx / tokens`` plus a ridge relative to its mean diagonal."""
    gram = x.T @ x / len(x)
    return gram + damp * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
