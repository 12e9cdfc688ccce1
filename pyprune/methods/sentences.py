# SPDX-License-Identifier: Apache-2.0
"""Which sentences of any kind of data are taken, as token ids; or sequences of one length, for language models."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.tasks.perplexity import token_ids

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class Take:
    """What is taken of texts: by which tokenizer, how many, how long, and whether they are joined first.

    ``labels``, one for every row of the data, go along with the rows taken.
    """

    tokenizer: Any
    samples: int
    length: int
    seed: int
    joined: bool
    labels: Sequence[float] | None = None


@dataclass(frozen=True)
class Rows:
    """Token ids of the sentences taken, how many there were to choose from, and their labels if asked for."""

    encoded: list[dict[str, list[int]]]
    available: int
    labels: list[float] | None = None


@dataclass(frozen=True)
class Ready:
    """Batches that were given as such."""

    batches: list[Mapping[str, Tensor]]


def read_rows(data: Any, take: Take, text: str | None, text_pair: str | None) -> Rows | Ready:
    """Tell the kind of data, and take from it; see :func:`pyprune.methods.calibration.gather`.

    Raises
    ------
    InputError
        No data, no tokenizer for texts, or data of another kind.
    """
    if isinstance(data, (str, bytes, Mapping)) or data is None:
        kind = "nothing" if data is None else f"one {type(data).__name__}"
        if isinstance(data, Mapping) and hasattr(data, "column_names"):
            raise InputError("data is a dictionary of splits", seen=str(list(data)), hint="pass data['train']")
        raise InputError(
            "data must be many sentences",
            seen=kind,
            hint="a list of texts; for a file, pyprune.tasks.load_texts(path)",
        )
    if hasattr(data, "column_names") and hasattr(data, "__getitem__"):
        return _from_dataset(data, take, text, text_pair)
    if hasattr(data, "texts"):
        pairs = getattr(data, "pairs", None)
        return _encode(list(data.texts), None if pairs is None else list(pairs), take)
    iterator = iter(data)
    first = next(iterator, None)
    if first is None:
        raise InputError("the calibration data is empty", hint="at least a few hundred sentences")
    everything = itertools.chain([first], iterator)
    if isinstance(first, str):
        return _encode(_texts(everything, str), None, take)
    if isinstance(first, Mapping) or hasattr(first, "keys"):
        return Ready(_take(everything, take.samples))
    if isinstance(first, (tuple, list)) and len(first) == 2 and all(isinstance(part, str) for part in first):
        both = _texts(everything, tuple)
        return _encode([a for a, _ in both], [b for _, b in both], take)
    raise InputError(
        "calibration data of an unknown kind",
        seen=f"first item: {type(first).__name__}",
        hint="texts, pairs of texts, a datasets.Dataset, or batches with input_ids and attention_mask",
    )


def _texts(items: Iterable[Any], kind: type) -> list[Any]:
    found = []
    for index, item in enumerate(items):
        fits = (
            isinstance(item, str)
            if kind is str
            else (isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, str) for part in item))
        )
        if not fits:
            want = "a text" if kind is str else "a pair of texts"
            raise InputError(f"item {index} of the calibration data is not {want}", seen=repr(item)[:80])
        found.append(item)
    return found


def _from_dataset(data: Any, take: Take, text: str | None, text_pair: str | None) -> Rows:
    if isinstance(data.column_names, Mapping):
        raise InputError("data is a dictionary of splits", seen=str(list(data)), hint="pass data['train']")
    columns = list(data.column_names)
    if text is None and "input_ids" in columns:
        return _tokenised(data, columns, take)
    text, text_pair = _columns(columns, text, text_pair)
    pairs = None if text_pair is None else list(data[text_pair])
    return _encode(list(data[text]), pairs, take)


def _columns(columns: Sequence[str], text: str | None, text_pair: str | None) -> tuple[str, str | None]:
    from pyprune.tasks.columns import PAIRS, TEXTS

    for name in (text, text_pair):
        if name is not None and name not in columns:
            raise InputError(f"the data set has no column {name!r}", seen=", ".join(columns))
    if text is not None:
        return text, text_pair
    for first, second in PAIRS:
        if first in columns and second in columns:
            return first, second
    for name in TEXTS:
        if name in columns:
            return name, text_pair
    raise InputError("which column holds the text?", seen=", ".join(columns), hint="text=..., text_pair=...")


def _tokenised(data: Any, columns: Sequence[str], take: Take) -> Rows:
    names = [name for name in INPUTS if name in columns]
    encoded, chosen = [], []
    for index in _sample(len(data), take.samples, take.seed):
        row = {name: torch.as_tensor(data[index][name]).tolist() for name in names}
        mask = row.setdefault("attention_mask", [1] * len(row["input_ids"]))
        # padding="max_length" is undone: batches pad to their own longest
        end = min(max((at + 1 for at, real in enumerate(mask) if real), default=0), take.length)
        if end:
            encoded.append({name: values[:end] for name, values in row.items()})
            chosen.append(index)
    return Rows(encoded, len(data), _labels(take, chosen))


def _labels(take: Take, chosen: Sequence[int]) -> list[float] | None:
    return None if take.labels is None else [take.labels[index] for index in chosen]


def _encode(texts: list[str], pairs: list[str] | None, take: Take) -> Rows:
    if not texts:
        raise InputError("the calibration data is empty", hint="at least a few hundred sentences")
    if take.tokenizer is None:
        raise InputError("texts need a tokenizer", hint="tokenizer=AutoTokenizer.from_pretrained(...)")
    if take.joined:
        both = texts if pairs is None else [text for pair in zip(texts, pairs, strict=True) for text in pair]
        return _cut(token_ids(take.tokenizer, both), take)
    chosen = _sample(len(texts), take.samples, take.seed)
    output = take.tokenizer(
        [texts[i] for i in chosen],
        None if pairs is None else [pairs[i] for i in chosen],
        truncation=True,
        max_length=take.length,
        padding=False,
        return_attention_mask=True,
    )
    names = [name for name in INPUTS if name in output]
    encoded = [{name: list(output[name][row]) for name in names} for row in range(len(chosen))]
    return Rows(encoded, len(texts), _labels(take, chosen))


def _cut(ids: list[int], take: Take) -> Rows:
    """Sequences of one length; what is left over at the end is not used, unless it is all there is."""
    available = max(len(ids) // take.length, 1)
    rows = [ids[i * take.length : (i + 1) * take.length] for i in _sample(available, take.samples, take.seed)]
    return Rows([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], available)


def _sample(count: int, samples: int, seed: int) -> list[int]:
    if count == 0:
        raise InputError("the calibration data is empty", hint="at least a few hundred sentences")
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(count, generator=generator)[:samples].tolist())


def _take(batches: Iterable[Any], samples: int) -> list[Mapping[str, Tensor]]:
    taken: list[Mapping[str, Tensor]] = []
    count = 0
    for batch in batches:
        if "input_ids" not in batch:
            raise InputError("a batch without input_ids", seen=f"keys {sorted(batch)}")
        taken.append(batch)
        count += len(batch["input_ids"])
        if count >= samples:
            break
    return taken
