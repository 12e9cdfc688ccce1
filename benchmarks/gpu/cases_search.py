# SPDX-License-Identifier: Apache-2.0
"""What one iteration of a mask search takes: `admm_step`, `select` and `nm`, beside torch's kernels one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu.measure import Case, ways
from torch import Tensor

from pyprune import ops

SHAPES = ((4096, 4096), (4096, 11008))
QUICK = ((24, 32),)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Of the three ops."""
    for rows, columns in QUICK if quick else SHAPES:
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(rows, columns, generator=generator).to(device)
        what = {"rows": rows, "columns": columns}
        yield _select(scores, columns // 2, "row", device)
        yield _select(scores, scores.numel() // 2, "layer", device)
        yield Case(
            "nm",
            {**what, "pattern": "2:4"},
            {**ways("nm", lambda scores=scores: ops.nm(scores, 2, 4), device), "torch": lambda s=scores: _torch_nm(s)},
            operations=0.0,
            bytes=5.0 * scores.numel(),
        )
        yield _admm_step(scores, device)


def _select(scores: Tensor, count: int, scope: str, device: str) -> Case:
    def by_torch() -> Tensor:
        flat = scores if scope == "row" else scores.reshape(1, -1)
        mask = torch.zeros_like(flat, dtype=torch.bool)
        return mask.scatter_(1, flat.topk(count, dim=1, sorted=False).indices, True)

    return Case(
        "select",
        {"rows": scores.shape[0], "columns": scores.shape[1], "scope": scope},
        {**ways("select", lambda: ops.select(scores, count, scope), device), "torch.topk": by_torch},
        operations=0.0,
        bytes=5.0 * scores.numel(),
        error=lambda mask: float(abs(int(mask.sum()) - count * (len(scores) if scope == "row" else 1))),
    )


def _torch_nm(scores: Tensor) -> Tensor:
    groups = scores.reshape(-1, 4)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(1, groups.topk(2, dim=1, sorted=False).indices, True).reshape(scores.shape)


def _admm_step(start: Tensor, device: str) -> Case:
    rows, columns = start.shape
    multiplier = torch.eye(columns, device=device) / 2
    mask, state, previous = start > 0, start.clone(), start.clone()

    def by_torch() -> Tensor:
        kept = torch.where(mask, state, 0.0)
        dual = state - kept
        dense = start + (kept - dual - start) @ multiplier
        return 1.5 * dense - 0.5 * kept + dual + 0.2 * (state - previous)

    return Case(
        "admm_step",
        {"rows": rows, "columns": columns},
        {
            **ways(
                "admm_step",
                lambda: ops.admm_step(state, mask, start, multiplier, 1.5, momentum=0.2, previous=previous),
                device,
            ),
            "torch": by_torch,
        },
        operations=2.0 * rows * columns**2,
        bytes=4.0 * columns**2 + 22.0 * start.numel(),
    )
