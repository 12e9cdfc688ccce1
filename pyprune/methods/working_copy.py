# SPDX-License-Identifier: Apache-2.0
"""The model that is worked on: one that can be pruned, in float32 and back in its own types."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import Adapter, adapter_for


def check_model(model: Any) -> Adapter:
    """The adapter of a model that can be pruned.

    Raises
    ------
    InputError
        It is none, of an unknown family, or not what that family computes.
    """
    if isinstance(model, (str, os.PathLike)):
        raise InputError(
            "model must be a loaded model",
            seen=repr(model),
            hint="AutoModelForSequenceClassification.from_pretrained(path)",
        )
    if not isinstance(model, nn.Module):
        raise InputError("model must be a torch module", seen=type(model).__name__)
    adapter = adapter_for(model)
    adapter.check(model)
    return adapter


def to_float32(model: nn.Module) -> dict[str, torch.dtype]:
    """Compute in float32 from here on; the types there were, for :func:`restore_types`."""
    types = {name: tensor.dtype for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    model.float()
    return types


def restore_types(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Give every tensor the type that it had."""
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.dtype != types[name]:
            tensor.data = tensor.data.to(types[name])
