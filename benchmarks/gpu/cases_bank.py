# SPDX-License-Identifier: Apache-2.0
"""`bank_scores` with its gradient, beside the matrix of scores in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import activations
from gpu.measure import Case, relative, ways
from torch import Tensor

from pyprune import ops

SHAPES = ((32, 67_349, 768), (1024, 67_349, 768))  # batch, entries, features
QUICK = ((5, 70, 24),)
TEMPERATURE = 10.0


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Of the op."""
    for batch, entries, features in QUICK if quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            bank = activations(entries, features).to(device, dtype)
            yield _bank_scores(bank[torch.arange(batch, device=device) * 3], bank, device)


def _bank_scores(start: Tensor, bank: Tensor, device: str) -> Case:
    """Positives are of equal labels, of which there are ten."""
    labels = torch.arange(len(bank), device=device) % 10
    own = labels[: len(start)]

    def ours() -> Tensor:
        queries = start.clone().requires_grad_()
        found = ops.bank_scores(queries, own[None], bank, labels[None], temperature=TEMPERATURE)
        (found.log_sum - found.positives[0] / found.counts[0]).mean().backward()
        assert queries.grad is not None
        return queries.grad

    def by_torch(dtype: torch.dtype) -> Tensor:
        queries = start.to(dtype).clone().requires_grad_()
        scores = (queries @ bank.to(dtype).T).to(torch.promote_types(dtype, torch.float32)) / TEMPERATURE
        positive = own[:, None] == labels
        (scores.logsumexp(1) - (scores * positive).sum(1) / positive.sum(1)).mean().backward()
        assert queries.grad is not None
        return queries.grad

    exact = by_torch(torch.float64)
    batch, features = start.shape
    return Case(
        "bank_scores",
        {"batch": batch, "entries": len(bank), "features": features, "dtype": str(bank.dtype).removeprefix("torch.")},
        {**ways("bank_scores", ours, device), "torch": lambda: by_torch(bank.dtype)},
        operations=6.0 * batch * len(bank) * features,
        bytes=2.0 * bank.numel() * bank.element_size(),
        error=lambda got: relative(got, exact) if bank.dtype == torch.float32 else 0.0,
    )
