# SPDX-License-Identifier: Apache-2.0
"""What masks cost before any training: how far each linear's output moves on calibration text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyprune import ops
from pyprune.errors import InputError
from pyprune.training.masks import unwrapped


@torch.no_grad()
def input_grams(model: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean ``x xᵀ`` over real tokens of the inputs of linears.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    names : iterable of str
        Of weights, as in ``model.named_parameters()``.
    batches : iterable of mappings
        What the model takes; without ``attention_mask`` all tokens are real.

    Returns
    -------
    dict of str to Tensor, shape (in, in), float64
        By the name of the weight.

    Raises
    ------
    InputError
        A name is not that of a linear's weight, there are no batches, or one leaves a linear out.
    """
    model = unwrapped(model)
    sums: dict[str, Tensor] = {}
    keep: dict[str, Tensor | None] = {"tokens": None}
    modules = dict(model.named_modules())
    handles = []
    names = list(names)
    for name in names:
        linear = modules.get(name.removesuffix(".weight"))
        if not isinstance(linear, nn.Linear) or not name.endswith(".weight"):
            raise InputError(f"{name} is not the weight of a linear")

        def gather(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            x = inputs[0].detach()
            if name not in sums:
                sums[name] = torch.zeros(x.shape[-1], x.shape[-1], dtype=torch.float64, device=x.device)
            ops.gram(x, keep["tokens"], sums[name])

        handles.append(linear.register_forward_pre_hook(gather))
    training, tokens = model.training, 0
    model.eval()
    try:
        for batch in batches:
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            mask = inputs.get("attention_mask")
            keep["tokens"] = None if mask is None else mask.bool()
            tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    if not tokens or (missing := [name for name in names if name not in sums]):
        raise InputError("no input was seen", seen="no batches" if not tokens else missing[0])
    return {name: total / tokens for name, total in sums.items()}


def reconstruction_error(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], grams: Mapping[str, Tensor]
) -> float:
    """Mean over matrices of ``E‖(W − Ŵ)x‖² / E‖Wx‖²``, Ŵ the weights that a mask keeps.

    Parameters
    ----------
    weights : mapping of str to Tensor, shape (out, in)
    masks : mapping of str to Tensor of bool, shape (out, in)
    grams : mapping of str to Tensor, shape (in, in)
        Of :func:`input_grams`.
    """
    errors = []
    for name, mask in masks.items():
        weight, gram = weights[name].detach().double(), grams[name]
        lost = weight.masked_fill(mask, 0.0)
        energy = float(((weight @ gram) * weight).sum())
        errors.append(float(((lost @ gram) * lost).sum()) / energy if energy > 0.0 else 0.0)
    return sum(errors) / max(len(errors), 1)
