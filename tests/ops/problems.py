# SPDX-License-Identifier: Apache-2.0
"""Random problems the op tests share: well, badly and not at all conditioned."""

from __future__ import annotations

from typing import Any

import numpy as np
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


def masked_fit(gram: Tensor, rhs: Tensor, mask: Tensor, anchor: Tensor | None = None, damp: float = 0.0) -> Tensor:
    """Independent of the library: NumPy's LU on each row's support, float64."""
    g, c, m = gram.double().numpy(), rhs.double().numpy(), mask.numpy()
    ridge = damp * np.trace(g) / max(len(g), 1)
    out = np.zeros_like(c)
    for row in range(len(c)):
        support = np.flatnonzero(m[row])
        target = c[row, support] + (0.0 if anchor is None else ridge * anchor[row].double().numpy()[support])
        out[row, support] = np.linalg.solve(g[np.ix_(support, support)] + ridge * np.eye(len(support)), target)
    return torch.from_numpy(out)


def plain_obs(inverse: Any, weight: Any, count: int, keep: int = 0, of: int = 0) -> tuple[Any, list[int], list[float]]:
    """The published algorithm, one explicit inverse and rank-1 updates, in NumPy float64."""
    a, w = np.array(inverse, dtype=np.float64), np.array(weight, dtype=np.float64)
    alive, order, losses = np.ones(len(w), dtype=bool), [], []
    for _ in range(count):
        open_ = alive.copy()
        if of:
            open_ &= np.repeat(alive.reshape(-1, of).sum(axis=1) > keep, of)
        scores = np.where(open_, w**2 / np.diag(a), np.inf)
        p = int(np.argmin(scores))
        order.append(p)
        losses.append(scores[p])
        w = w - a[:, p] * (w[p] / a[p, p])
        a = a - np.outer(a[:, p], a[p, :]) / a[p, p]
        alive[p] = False
        w[~alive] = 0.0
        # A removed coordinate is decoupled exactly; a unit diagonal keeps the division defined.
        a[~alive, :], a[:, ~alive] = 0.0, 0.0
        a[~alive, ~alive] = 1.0
    return w, order, losses
