# SPDX-License-Identifier: Apache-2.0
"""The Triton selection against a stable sort, on chip and in chunks."""

from __future__ import annotations

from typing import Any

import torch
from buffers import Guarded, refused
from torch import Tensor

from pyprune.ops.select import select_reference
from pyprune.triton_kernels.select import CHUNK, ON_CHIP, keep_largest

F32, F64 = torch.float32, torch.float64
PIECES = {"on_chip": 1, "chunk": 32}


def plain(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, dtype=F64, generator=torch.Generator().manual_seed(rows + columns))


def few_values(rows: int, columns: int) -> Tensor:
    """Ties everywhere, both zeros, infinities, and numbers too small to be normal."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 3.5, torch.inf, -torch.inf, 1e-42, -1e-42], dtype=F64)
    pick = torch.randint(len(values), (rows, columns), generator=torch.Generator().manual_seed(rows * columns))
    return values[pick]


def run(device: str, scores: Tensor, count: int, dtype: torch.dtype = F32, **pieces: int) -> dict[str, bool]:
    rows, columns = scores.shape
    source = Guarded(rows, columns, dtype, device).view.copy_(scores)
    found = {}
    for way in (pieces,) if pieces else ({"on_chip": ON_CHIP, "chunk": CHUNK}, PIECES):
        buffer = Guarded(rows, columns, torch.bool, device)
        returned = keep_largest(buffer.view, source, count, **way)
        wanted = select_reference(source, count, True)
        found[f"equal {way}"] = torch.equal(returned, wanted)
        found[f"intact {way}"] = buffer.intact()
    return found


def findings(device: str) -> dict[str, Any]:
    scores = torch.zeros(2, 3, device=device)
    mask = torch.zeros(2, 3, dtype=torch.bool, device=device)
    return {
        "cases": {
            "one": run(device, plain(1, 1), 1),
            "no columns": run(device, plain(3, 0), 0),
            "no rows": run(device, plain(0, 3), 1),
            "none of a row": run(device, few_values(2, 37), 0),
            "all of a row": run(device, few_values(2, 37), 37),
            "primes": run(device, plain(5, 131), 47),
            "one of many": run(device, plain(2, 67), 1),
            "all but one": run(device, plain(2, 67), 66),
            "ties": run(device, few_values(3, 97), 31),
            "ties of float64": run(device, few_values(2, 61), 29, F64),
            "float64": run(device, plain(2, 61), 29, F64),
            "equal in float32 only": run(device, 1.0 + 1e-12 * plain(2, 40), 13, F64),
            "all equal": run(device, torch.ones(2, 70, dtype=F64), 35),
            "a whole matrix": run(device, plain(1, 2 * ON_CHIP + 77), ON_CHIP, on_chip=ON_CHIP, chunk=CHUNK),
        },
        "refusals": refused(
            {
                "float16": lambda: keep_largest(mask, scores.half(), 1),
                "apart": lambda: keep_largest(mask, torch.zeros(2, 6, device=device)[:, ::2], 1),
                "mask of bytes": lambda: keep_largest(mask.to(torch.uint8), scores, 1),
                "mask of a wrong shape": lambda: keep_largest(mask[:1], scores, 1),
                "mask elsewhere": lambda: keep_largest(mask.to("meta"), scores, 1),
                "too many": lambda: keep_largest(mask, scores, 4),
                "less than none": lambda: keep_largest(mask, scores, -1),
            }
        ),
    }
