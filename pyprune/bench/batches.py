# SPDX-License-Identifier: Apache-2.0
"""What the models of ``bench model`` are given: random tokens of one length, or real sentences with padding."""

from __future__ import annotations

from typing import Any

import torch

from pyprune.bench.ways import Batch, accepted
from pyprune.errors import InputError
from pyprune.tasks import Examples
from pyprune.tasks.evaluate import longest_input

MOST = 8  # different batches of a case


def random_batches(model: Any, rows: int, length: int, *, seed: int, count: int = 2) -> list[Batch]:
    """Token ids drawn from the whole vocabulary, without padding.

    Raises
    ------
    InputError
        More tokens than the model has positions for.
    """
    longest = longest_input(model, None, None)
    if not 1 <= length <= longest:
        raise InputError(f"sequences of {length} tokens do not fit the model", hint=f"1 to {longest}")
    generator = torch.Generator().manual_seed(seed)
    padding = getattr(model.config, "pad_token_id", None)
    batches = []
    for _ in range(count):
        ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)
        if padding is not None and model.config.vocab_size > 1:
            # some models count positions from the padding id: it would shorten the sequence
            ids = torch.where(ids == padding, (ids + 1) % model.config.vocab_size, ids)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return batches


def real_batches(model: Any, tokenizer: Any, examples: Examples, rows: int, *, seed: int) -> list[Batch]:
    """Rows of the data in random order, each batch padded to its longest row: what a server meets.

    Raises
    ------
    InputError
        The data has fewer rows than a batch.
    """
    if len(examples) < rows:
        raise InputError(f"a batch of {rows} needs as many rows of data", seen=f"{len(examples)} rows")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    length = longest_input(model, tokenizer, None)
    batches = []
    for begin in range(0, min(len(order) // rows, MOST) * rows, rows):
        chosen = order[begin : begin + rows]
        texts = [examples.texts[row] for row in chosen]
        pairs = None if examples.pairs is None else [examples.pairs[row] for row in chosen]
        encoded = tokenizer(texts, pairs, truncation=True, max_length=length, padding=True, return_tensors="pt")
        batches.append(accepted(model, encoded))
    return batches
