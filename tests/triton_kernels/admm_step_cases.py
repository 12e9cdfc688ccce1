# SPDX-License-Identifier: Apache-2.0
"""The elementwise halves of an ADMM iteration, and the whole of it, against float64."""

from __future__ import annotations

from typing import Any

import torch
from buffers import Guarded, refused

from pyprune.ops.admm_step import _admm_step_triton, admm_step_reference
from pyprune.triton_kernels.admm_step import admm_fold, admm_input


def run(device: str, rows: int, columns: int, relax: float, momentum: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows + columns)

    def guarded() -> Guarded:
        buffer = Guarded(rows, columns, torch.float32, device)
        buffer.view.copy_(torch.randn(rows, columns, generator=generator))
        return buffer

    state, previous, start = guarded(), guarded(), guarded()
    mask = Guarded(rows, columns, torch.bool, device)
    mask.view.copy_(torch.rand(rows, columns, generator=generator) < 0.5)
    multiplier = torch.randn(columns, columns, generator=generator).to(device) / max(columns, 1) ** 0.5
    before = state.view.clone()
    wanted, wanted_previous = state.view.double(), previous.view.double()
    arguments = (mask.view, start.view, multiplier, relax, momentum)
    admm_step_reference(wanted, wanted_previous, *arguments)
    _admm_step_triton(state.view, previous.view, *arguments)
    return {
        "error": float((state.view.double() - wanted).abs().max()) if before.numel() else 0.0,
        "previous": torch.equal(previous.view, before),
        "intact": all(buffer.intact() for buffer in (state, previous, start, mask)),
    }


def findings(device: str) -> dict[str, Any]:
    one = torch.zeros(2, 3, device=device)
    mask = torch.zeros(2, 3, dtype=torch.bool, device=device)
    return {
        "cases": {
            "one": run(device, 1, 1, 1.0, 0.0),
            "no rows": run(device, 0, 3, 1.0, 0.0),
            "primes": run(device, 37, 61, 1.4, 0.25),
            "under-relaxed": run(device, 5, 23, 0.4, 0.0),
            "momentum": run(device, 8, 128, 1.0, -0.35),
        },
        "refusals": refused(
            {
                "float64": lambda: admm_input(one.double(), one.double(), mask, one.double()),
                "mask of bytes": lambda: admm_input(one, one, mask.to(torch.uint8), one),
                "apart": lambda: admm_input(one, one.T.contiguous().T, mask, one),
                "another shape": lambda: admm_fold(one, one, mask, one[:1], one, 1.0, 0.0),
                "elsewhere": lambda: admm_fold(one, one, mask, one.to("meta"), one, 1.0, 0.0),
            }
        ),
    }
