# SPDX-License-Identifier: Apache-2.0
"""`matmul` and `cholesky`, which belong to the vendor's libraries, beside their plain calls and float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import activations
from gpu.measure import Case, relative, ways
from torch import Tensor

from pyprune import ops

SIZES = (4096, 11008)
QUICK = (48,)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Of both ops, in float32 and float64."""
    for size in QUICK if quick else SIZES:
        x = activations(2 * size, size).to(device)
        gram = ops.gram(x).double() / len(x)
        gram.diagonal().add_(0.01 * gram.diagonal().mean())
        for dtype in (torch.float32, torch.float64):
            yield _matmul(x[:size].to(dtype), gram.to(dtype), device)
            yield _cholesky(gram, dtype, device)


def _matmul(a: Tensor, b: Tensor, device: str) -> Case:
    exact = a.double() @ b.double()
    return Case(
        "matmul",
        {"size": len(a), "dtype": str(a.dtype).removeprefix("torch.")},
        {**ways("matmul", lambda: ops.matmul(a, b), device), "torch": lambda: a @ b},
        operations=2.0 * len(a) ** 3,
        bytes=3.0 * a.numel() * a.element_size(),
        peak=str(a.dtype).removeprefix("torch."),
        error=lambda got: relative(got, exact),
    )


def _cholesky(gram: Tensor, dtype: torch.dtype, device: str) -> Case:
    exact = torch.linalg.inv(gram)

    def by_torch() -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(gram.to(dtype)))

    def ours() -> Tensor | None:
        return ops.cholesky(gram, inverse=True, dtype=dtype).inverse

    return Case(
        "cholesky",
        {"size": len(gram), "dtype": str(dtype).removeprefix("torch."), "inverse": True},
        {**ways("cholesky", ours, device), "torch": by_torch},
        operations=float(len(gram)) ** 3,
        bytes=3.0 * gram.numel() * dtype.itemsize,
        peak=str(dtype).removeprefix("torch."),
        error=lambda got: relative(got, exact),
    )
