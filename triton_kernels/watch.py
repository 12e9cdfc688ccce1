# SPDX-License-Identifier: Apache-2.0
"""Flags of a device, watched without stopping it."""

from __future__ import annotations

import torch
from torch import Tensor


class Watch:
    """Whether all flags are down.

    On a GPU the answer is that of the look before: the host waits for work that it gave out one look ago, while the
    device is busy with what came after. On the CPU it is the present one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._looks: list[tuple[Tensor, torch.cuda.Event]] = []

    def all_down(self, flags: Tensor) -> bool:
        """Look at `flags`, any shape, bool or integer."""
        if self._device.type != "cuda":
            return not bool(flags.any())
        seen = torch.empty((), dtype=torch.bool, pin_memory=True)
        seen.copy_(flags.any(), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        self._looks.append((seen, event))
        if len(self._looks) == 1:
            return False
        before, done = self._looks.pop(0)
        done.synchronize()
        return not bool(before)
