# SPDX-License-Identifier: Apache-2.0
"""The Triton N:M selection against a stable sort inside groups."""

from __future__ import annotations

from typing import Any

import torch
from buffers import Guarded, refused
from select_cases import few_values, plain
from torch import Tensor

from pyprune.ops.nm import nm_reference
from pyprune.triton_kernels.nm import MOST, keep_of_groups


def run(device: str, scores: Tensor, keep: int, of: int, dtype: torch.dtype = torch.float32) -> dict[str, bool]:
    source = Guarded(*scores.shape, dtype, device).view.copy_(scores)
    buffer = Guarded(*scores.shape, torch.bool, device)
    returned = keep_of_groups(buffer.view, source, keep, of)
    return {"equal": torch.equal(returned, nm_reference(source, keep, of)), "intact": buffer.intact()}


def findings(device: str) -> dict[str, Any]:
    scores = torch.zeros(2, 6, device=device)
    mask = torch.zeros(2, 6, dtype=torch.bool, device=device)
    return {
        "cases": {
            "one": run(device, plain(1, 1), 1, 1),
            "no columns": run(device, plain(3, 0), 2, 4),
            "2:4": run(device, plain(5, 44), 2, 4),
            "2:4 of few values": run(device, few_values(7, 40), 2, 4),
            "many groups": run(device, few_values(3, 1400), 2, 4),
            "3:7, not a power of 2": run(device, few_values(3, 35), 3, 7),
            "32:64": run(device, few_values(3, 128), 32, 64),
            "none": run(device, plain(2, 12), 0, 4),
            "all": run(device, plain(2, 12), 4, 4),
            "float64": run(device, 1.0 + 1e-12 * plain(3, 24), 1, 4, torch.float64),
            "longer than on chip": run(device, plain(2, 2 * (MOST + 1)), 100, MOST + 1),
        },
        "refusals": refused(
            {
                "groups do not fit": lambda: keep_of_groups(mask, scores, 2, 4),
                "more than a group": lambda: keep_of_groups(mask, scores, 4, 3),
                "empty groups": lambda: keep_of_groups(mask, scores, 0, 0),
                "mask of a wrong shape": lambda: keep_of_groups(mask[:1], scores, 1, 3),
            }
        ),
    }
