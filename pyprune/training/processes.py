# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model: what each has measured becomes what all have."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def processes() -> int:
    """How many there are; 1 where torch knows of no others."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_parallel(model: nn.Module) -> bool:
    """Whether a model is in a wrapper that averages gradients over processes, ``torch.compile`` around it or not."""
    inner = getattr(model, "_orig_mod", model)
    return isinstance(inner, nn.parallel.DistributedDataParallel)


def average_over_processes(values: Mapping[str, Tensor]) -> None:
    """Put means over all processes into the places of tensors; all processes call it, with the same names in order."""
    count = processes()
    if count > 1:
        for value in values.values():
            torch.distributed.all_reduce(value)
            value /= count
