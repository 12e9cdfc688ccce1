# SPDX-License-Identifier: Apache-2.0
"""`gram` and `cross_gram`: bf16 beside a product with float32 sums, float32 beside cuBLAS without TF32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from common import activations
from gpu.measure import Case, relative, ways
from torch import Tensor

from pyprune import ops

SHAPES = ((65536, 4096), (65536, 768))
QUICK = ((300, 64),)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Of both ops."""
    for tokens, columns in QUICK if quick else SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            x = activations(tokens, columns).to(device, dtype)
            yield _gram(x, device)
            yield _cross_gram(x.roll(1, dims=0), x, device)


def _gram(x: Tensor, device: str) -> Case:
    exact = x.double().T @ x.double()
    out = torch.zeros_like(exact)
    return Case(
        "gram",
        _what(x),
        {**ways("gram", lambda: ops.gram(x, out=out.zero_()), device), "torch": _torch(x, x)},
        operations=float(len(x)) * x.shape[1] * (x.shape[1] + 1),
        bytes=x.numel() * x.element_size() + 8.0 * out.numel(),
        peak=str(x.dtype).removeprefix("torch."),
        error=lambda got: relative(got, exact),
    )


def _cross_gram(y: Tensor, x: Tensor, device: str) -> Case:
    exact = y.double().T @ x.double()
    out = torch.zeros_like(exact)
    return Case(
        "cross_gram",
        {**_what(x), "targets": y.shape[1]},
        {**ways("cross_gram", lambda: ops.cross_gram(y, x, out=out.zero_()), device), "torch": _torch(y, x)},
        operations=2.0 * len(x) * x.shape[1] * y.shape[1],
        bytes=(x.numel() + y.numel()) * x.element_size() + 8.0 * out.numel(),
        peak=str(x.dtype).removeprefix("torch."),
        error=lambda got: relative(got, exact),
    )


def _what(x: Tensor) -> dict[str, object]:
    return {"tokens": len(x), "columns": x.shape[1], "dtype": str(x.dtype).removeprefix("torch.")}


def _torch(y: Tensor, x: Tensor) -> Callable[[], Tensor]:
    if x.dtype == torch.bfloat16 and x.is_cuda:
        return lambda: torch.mm(y.T, x, out_dtype=torch.float32)
    return lambda: y.T @ x
