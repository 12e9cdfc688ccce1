# SPDX-License-Identifier: Apache-2.0
"""Rows of embeddings and of what predicts tokens: those of kept tokens stay, in a new order, and the config says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.structured.factored import FactoredEmbedding


def table_of(model: nn.Module) -> nn.Embedding:
    """The embeddings of tokens, a row for each; of factored ones that is the narrow factor.

    Raises
    ------
    InputError
        The model has none of the usual kind, or they are not in memory.
    """
    found: Any = model.get_input_embeddings()  # type: ignore[operator]
    if (
        type(found) not in (nn.Embedding, FactoredEmbedding)
        or found.weight.is_meta
        or not found.weight.dtype.is_floating_point
    ):
        raise InputError(
            "the embeddings of the model cannot be trimmed",
            seen=type(found).__name__,
            hint="load it unquantised, without device_map offloading",
        )
    table: nn.Embedding = found
    return table


def special_ids(config: Any) -> dict[str, Any]:
    """Entries of a config, or of generation settings, that are ids of tokens or lists of them."""
    names = [name for name in config.to_dict() if name.endswith(("token_id", "token_ids"))]
    return {name: value for name in names if (value := getattr(config, name, None)) is not None}


def named_ids(model: nn.Module) -> set[int]:
    """All ids of tokens that the config and the generation settings name."""
    found: set[int] = set()
    for config in _configs(model):
        for value in special_ids(config).values():
            found |= {entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, int)}
    return {entry for entry in found if entry >= 0}


def keep_rows(model: nn.Module, kept: Tensor) -> None:
    """Leave only these tokens in a model.

    Parameters
    ----------
    model : nn.Module
        Of transformers, changed in place: embeddings, a head that predicts tokens with its bias, whatever is tied to
        them, sizes and ids in the config.
    kept : Tensor of int64, shape (tokens,)
        Old ids by new id; all that :func:`named_ids` gives are among them.
    """
    table, padding = table_of(model), getattr(model.config, "pad_token_id", None)
    before = table.num_embeddings
    new = {old: index for index, old in enumerate(kept.tolist())}
    cut: dict[int, nn.Parameter] = {}
    for parameter in _parameters(model, table):
        rows = parameter.detach().index_select(0, kept.to(parameter.device))
        cut[id(parameter)] = nn.Parameter(rows, requires_grad=parameter.requires_grad)
    for module in model.modules():
        entries: dict[str, Any] = module._parameters
        changed = False
        for name, parameter in entries.items():
            if id(parameter) in cut:
                entries[name], changed = cut[id(parameter)], True
        if isinstance(module, nn.Embedding) and changed:
            module.num_embeddings = len(kept)
        if isinstance(module, nn.Linear) and changed:
            module.out_features = len(kept)
        if getattr(module, "vocab_size", None) == before:
            module.vocab_size = len(kept)  # type: ignore[assignment]
        if padding is not None and getattr(module, "padding_idx", None) == padding and padding in new:
            module.padding_idx = new[padding]  # type: ignore[assignment]
    for config in _configs(model):
        for name, value in special_ids(config).items():
            setattr(config, name, [_moved(v, new) for v in value] if isinstance(value, list) else _moved(value, new))
    model.config.vocab_size = len(kept)  # type: ignore[union-attr]


def _moved(value: Any, new: dict[int, int]) -> Any:
    return new.get(value, value) if isinstance(value, int) and value >= 0 else value


def _configs(model: nn.Module) -> list[Any]:
    generation = getattr(model, "generation_config", None)
    return [model.config] if generation is None else [model.config, generation]


def _parameters(model: nn.Module, table: nn.Embedding) -> list[nn.Parameter]:
    """All with a row for each token: the embeddings, and weight and biases of a head that predicts tokens."""
    found: list[Any] = [table.weight]
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        return found
    rows = table.num_embeddings
    if not isinstance(head, nn.Linear) or head.out_features != rows:
        raise InputError("the head that predicts tokens is not of the size of the embeddings", seen=str(head)[:80])
    # BERT and RoBERTa hold the bias a second time, beside the linear.
    owner = next(module for module in model.modules() if any(child is head for child in module.children()))
    biases = [head.bias, owner._parameters.get("bias")]
    found.append(head.weight)
    found += [bias for bias in biases if bias is not None and bias.shape == torch.Size([rows])]
    return found
