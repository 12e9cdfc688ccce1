# SPDX-License-Identifier: Apache-2.0
"""What tile choices know of a device."""

from __future__ import annotations

import torch

# Multiprocessors to fill, by compute capability; the smallest part sold with it where parts differ.
_PROCESSORS = {80: 108, 86: 28, 89: 24, 90: 114, 100: 148, 120: 20}


def processors_of(arch: int) -> int:
    """Multiprocessors of a device of compute capability `arch` (90 for 9.0); an unknown one as the nearest below."""
    known = [number for number in _PROCESSORS if number <= arch]
    return _PROCESSORS[max(known)] if known else min(_PROCESSORS.values())


def arch_of(device: torch.device) -> int:
    """Compute capability as two digits."""
    if device.type != "cuda":
        return 80  # the interpreter: any will do
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
