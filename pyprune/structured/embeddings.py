# SPDX-License-Identifier: Apache-2.0
"""Word embeddings as a product of two narrow matrices (GRAIN: Yang et al., ACL 2023, section 4.4)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import adapter_for
from pyprune.structured.factored import FactoredEmbedding
from pyprune.structured.rows import table_of
from pyprune.structured.shapes import rank_from_config, rank_to_config

_ROWS = 8192  # of a table in float64 at a time


def factorise(model: nn.Module, rank: int) -> dict[str, Any]:
    """Replace the word embeddings ``E`` of an encoder, in place, by the product of that rank nearest to them.

    ``E ≈ U Σ Vᵀ``, cut off behind ``rank`` singular values: ``U Σ`` is the new table, ``Vᵀ`` its projection. Position
    and type embeddings stay as they are. Both factors are parameters, to be trained; the config says their rank.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA or DistilBERT, without a head that is tied to the embeddings.
    rank : int

    Returns
    -------
    dict
        JSON-able: ``rank``; ``parameters`` of the word embeddings ``before`` and ``after``; ``error``,
        ``‖E − W V‖² / ‖E‖²``.

    Raises
    ------
    InputError
        Another family, tied embeddings, factors already, or a rank that makes the embeddings no smaller.
    """
    table = _factorable(model)
    count, features = table.weight.shape
    before, after = count * features, (count + features) * rank
    if type(rank) is not int or rank < 1 or after >= before:
        raise InputError(
            "no such rank makes the embeddings smaller",
            asked=f"from 1 to {max((before - 1) // (count + features), 0)} for {count} tokens of {features} features",
            seen=repr(rank)[:40],
        )
    vectors, error = _directions(table.weight.detach(), rank)
    new = _narrow(table, rank)
    with torch.no_grad():
        for old, rows in zip(torch.split(table.weight, _ROWS), torch.split(new.weight, _ROWS), strict=True):
            rows.copy_(old.double() @ vectors)
        new.projection.weight.copy_(vectors)
    for parameter in new.parameters():
        parameter.requires_grad_(table.weight.requires_grad)
    model.set_input_embeddings(new.train(table.training))  # type: ignore[operator]
    rank_to_config(model.config, rank)
    return {"rank": rank, "parameters": {"before": before, "after": after}, "error": error}


def whole_embeddings(model: nn.Module) -> nn.Module:
    """A model whose word embeddings are one table, multiplied out; itself, if they are that already."""
    if not isinstance(model.get_input_embeddings(), FactoredEmbedding):  # type: ignore[operator]
        return model
    large: Any = copy.deepcopy(model)
    old: Any = large.get_input_embeddings()
    options = {"device": old.weight.device, "dtype": old.weight.dtype, "padding_idx": old.padding_idx}
    new = nn.Embedding(old.num_embeddings, old.projection.out_features, **options)
    with torch.no_grad():
        # As a call computes it, not to lose more than that.
        new.weight.copy_(old.projection(old.weight))
    new.weight.requires_grad_(old.weight.requires_grad)
    large.set_input_embeddings(new.train(old.training))
    rank_to_config(large.config, None)
    return large  # type: ignore[no-any-return]


def narrow_embeddings(model: nn.Module) -> None:
    """Give the word embeddings the factors that the config states, if it states any; they have no memory.

    Raises
    ------
    InputError
        The config states what cannot be.
    """
    found: Any = model.get_input_embeddings()  # type: ignore[operator]
    rank = rank_from_config(model.config, features=int(found.embedding_dim))
    if rank is None:
        return
    _untied(model, found)
    new = _narrow(found, rank, device="meta")
    model.set_input_embeddings(new)  # type: ignore[operator]


def _factorable(model: nn.Module) -> nn.Embedding:
    adapter = adapter_for(model)
    if not adapter.norms:
        raise InputError(
            f"embeddings of {adapter.family!r} models cannot be factored", hint="encoders only, such as BERT"
        )
    table = table_of(model)
    if isinstance(table, FactoredEmbedding):
        raise InputError("the embeddings are a product already", seen=f"rank {table.embedding_dim}")
    _untied(model, table)
    return table


def _untied(model: Any, table: nn.Embedding) -> None:
    head = model.get_output_embeddings()
    if head is not None and (head.weight is table.weight or getattr(model.config, "tie_word_embeddings", False)):
        raise InputError(
            "embeddings that predict tokens too (tied to the head) cannot be factored",
            hint="a classifier, or a model with tie_word_embeddings=False",
        )


def _narrow(table: nn.Embedding, rank: int, **options: Any) -> FactoredEmbedding:
    """Factors for a table, not filled in."""
    with torch.random.fork_rng(devices=[]):  # what torch draws for them is written over
        return FactoredEmbedding(
            table.num_embeddings,
            table.embedding_dim,
            rank,
            padding_idx=table.padding_idx,
            **{"device": table.weight.device, "dtype": table.weight.dtype, **options},
        )


def _directions(weight: Tensor, rank: int) -> tuple[Tensor, float]:
    """The right singular vectors ``[features, rank]`` of the largest singular values, float64; and what is lost.

    Those of ``EᵀE``: in float64 its eigenvectors are as good as float32 embeddings ask for, and a table of many tokens
    needs no decomposition of its own. Each vector's largest entry is above zero, so that no library chooses the sign.
    """
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
    for rows in torch.split(weight, _ROWS):
        gram += rows.double().T @ rows.double()
    values, vectors = torch.linalg.eigh(gram)
    found = vectors[:, -rank:].flip(1)
    signs = found.gather(0, found.abs().argmax(dim=0, keepdim=True)).sign()
    lost = values[:-rank].clamp(min=0.0).sum() / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return found * signs, float(lost)
