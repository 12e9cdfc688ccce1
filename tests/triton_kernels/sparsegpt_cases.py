# SPDX-License-Identifier: Apache-2.0
"""The Triton sweep against the published loop in float64."""

from __future__ import annotations

from typing import Any

import torch
from buffers import Guarded, refused
from problems import features, gram_of
from tolerances import relative
from torch import Tensor

from pyprune.ops.select import select_reference
from pyprune.ops.sparsegpt import _sparsegpt_triton, sparsegpt_reference
from pyprune.triton_kernels.sparsegpt import sweep

F32, F64 = torch.float32, torch.float64


def factor_of(gram: Tensor) -> Tensor:
    """Upper R with gram = R Rᵀ."""
    return torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1).contiguous()


def counts(columns: int, block: int, height: int, part: float) -> Tensor:
    return torch.tensor([int(part * height * min(block, columns - first)) for first in range(0, columns, block)])


def run(
    device: str,
    rows: int,
    columns: int,
    dtype: torch.dtype = F32,
    *,
    part: float | None = None,
    per_row: bool = False,
    keep: int = 0,
    of: int = 0,
    block: int = 32,
    kind: str = "correlated",
) -> dict[str, Any]:
    """Sweep; a random mask is given where neither `part` (to prune of each block) nor `of` is."""
    generator = torch.Generator().manual_seed(rows * 1009 + columns)
    gram = gram_of(features(2 * columns + 5, columns, generator, kind), 1e-2)
    factor = factor_of(gram).to(dtype)
    below = torch.full_like(factor, torch.nan).tril(-1)  # is never read
    weight = torch.randn(rows, columns, dtype=F64, generator=generator).to(dtype)
    mask = torch.rand(rows, columns, generator=generator) < 0.5 if part is None and not of else None
    prune = torch.zeros(-(-columns // block), dtype=torch.int64)
    if part is not None:
        prune = counts(columns, block, 1 if per_row else rows, part)
    wanted, wanted_mask = sparsegpt_reference(weight.double(), factor.double(), mask, prune, per_row, keep, of, block)

    given = (
        weight.to(device), (factor + below).to(device), None if mask is None else mask.to(device), prune.to(device),
        per_row, keep, of, block,
    )  # fmt: skip
    got, kept = _sparsegpt_triton(*given)
    # The same once more, in buffers that tell of what is touched around them.
    inside = Guarded(columns, rows, dtype, device)
    inside.view.copy_(weight.T)
    flags = Guarded(columns, rows, torch.bool, device)
    flags.view.fill_(True) if mask is None else flags.view.copy_(mask.T)
    square = Guarded(columns, columns, dtype, device)
    square.view.copy_(factor)
    sweep(
        inside.view, flags.view, square.view, None if part is None else prune.tolist(), per_row=per_row, keep=keep,
        of=of, block=block, select=select_reference,
    )  # fmt: skip
    return {
        "error": relative(got.cpu(), wanted),
        "masks": torch.equal(kept.cpu(), wanted_mask),
        "zeros": bool((got[~kept] == 0).all()),
        "repeatable": torch.equal(got, inside.view.T) and torch.equal(kept, flags.view.T),
        "intact": all(buffer.intact() for buffer in (inside, flags, square)),
    }


def ties(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Equal scores: the earlier stay, across the runs of a block."""
    weight = torch.ones(3, 40, dtype=dtype, device=device)
    prune = torch.tensor([27], device=device)
    _, kept = _sparsegpt_triton(weight, torch.eye(40, dtype=dtype, device=device), None, prune, True, 0, 0, 40)
    return {"masks": torch.equal(kept.cpu(), (torch.arange(40) < 13).expand(3, 40))}


def findings(device: str) -> dict[str, Any]:
    weight, factor = torch.ones(4, 3, device=device), torch.eye(4, device=device)
    kept = torch.ones(4, 3, dtype=torch.bool, device=device)
    huge = torch.empty(1 << 16, 1 << 16, device="meta")
    rest: dict[str, Any] = {"select": select_reference}
    return {
        "cases": {
            "one": run(device, 1, 1, part=1.0, per_row=True),
            "no rows": run(device, 0, 5, part=0.5),
            "no columns": run(device, 3, 0, part=0.5),
            "rows": run(device, 37, 37, part=0.5, per_row=True),
            "rows, float64": run(device, 3, 21, F64, part=0.3, per_row=True),
            "none goes": run(device, 2, 9, part=0.0, per_row=True),
            "all go": run(device, 2, 9, F64, part=1.0, per_row=True),
            "layer": run(device, 5, 41, part=0.5),
            "layer, float64": run(device, 3, 20, F64, part=0.5, block=7),
            "mask": run(device, 33, 50, block=40),
            "mask, scaled, float64": run(device, 3, 31, F64, kind="scaled"),
            "2:4": run(device, 5, 40, keep=2, of=4, block=36),
            "1:3, float64": run(device, 3, 27, F64, keep=1, of=3, block=18),
            "9:18": run(device, 3, 36, keep=9, of=18, block=18),
            "ties": ties(device, F32),
            "ties, float64": ties(device, F64),
        },
        "refusals": refused(
            {
                "float16": lambda: sweep(weight.half(), kept, factor.half(), [1], **rest),
                "two dtypes": lambda: sweep(weight, kept, factor.double(), [1], **rest),
                "mask of bytes": lambda: sweep(weight, kept.to(torch.uint8), factor, [1], **rest),
                "factor of a wrong shape": lambda: sweep(weight, kept, factor[:3], [1], **rest),
                "mask of a wrong shape": lambda: sweep(weight, kept[:3], factor, [1], **rest),
                "apart": lambda: sweep(torch.ones(3, 4, device=device).T, kept, factor, [1], **rest),
                "elsewhere": lambda: sweep(weight, kept, factor.to("meta"), [1], **rest),
                "a count missing": lambda: sweep(weight, kept, factor, [1], block=2, **rest),
                "groups across blocks": lambda: sweep(weight, kept, factor, None, keep=1, of=2, block=3, **rest),
                "a block too wide": lambda: sweep(huge, huge.bool(), huge, None, block=1 << 16, **rest),
            }
        ),
    }
