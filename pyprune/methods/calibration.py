# SPDX-License-Identifier: Apache-2.0
"""Calibration text: which sentences are taken, how they are tokenised, batched and fingerprinted."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import Adapter

DEFAULT_SAMPLES = 2560  # sentences; what the authors of AKR calibrate on (methods of arXiv 2310.13191, released code)
DEFAULT_LENGTH = 128
DEFAULT_BATCH = 64

# Padded tokens of one batch at most: a feed-forward activation of BERT-base is then 100 MB.
_MOST_TOKENS = 8192
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class Calibration:
    """Batches on the model's device, and what they are.

    Attributes
    ----------
    batches : list of dict of str to Tensor
        ``input_ids``, ``attention_mask`` (int64, 1 = real), and ``token_type_ids`` or ``position_ids`` where the
        model takes them, each ``[sentences, tokens]``.
    sentences, tokens, padded : int
        Counts; ``tokens`` are real ones, ``padded`` includes padding.
    available : int or None
        Sentences there were to choose from; None for batches.
    sha256 : str
        Of token ids and masks, batch by batch.
    max_length : int or None
        Tokens a sentence could have at most; None for batches, which are taken as they are.
    """

    batches: list[dict[str, Tensor]]
    sentences: int
    tokens: int
    padded: int
    available: int | None
    sha256: str
    max_length: int | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        return {
            "sha256": self.sha256,
            "sentences": self.sentences,
            "available": self.available,
            "tokens": self.tokens,
            "padded_tokens": self.padded,
            "batches": len(self.batches),
        }

    def choices(self, samples: int | None, batch_size: int | None) -> dict[str, Any]:
        """Settings that led to these batches, for a report."""
        return {
            "samples": DEFAULT_SAMPLES if samples is None else samples,
            "max_length": self.max_length,
            "batch_size": DEFAULT_BATCH if batch_size is None else batch_size,
        }


def gather(
    data: Any,
    model: nn.Module,
    adapter: Adapter,
    *,
    tokenizer: Any = None,
    samples: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    text: str | None = None,
    text_pair: str | None = None,
    device: torch.device | None = None,
) -> Calibration:
    """Sample, tokenise and batch calibration data.

    Sentences are drawn without replacement from ``seed``, by a generator of their own. Batches hold sentences of
    similar length, longest first (so that a lack of memory shows at once), padded to their longest.

    Parameters
    ----------
    data
        Texts; pairs of texts; an object with ``texts`` and ``pairs`` (:class:`pyprune.tasks.Examples`); a
        ``datasets.Dataset`` of texts or of token ids; or ready batches with ``input_ids`` and ``attention_mask``,
        which are taken as they are, in order, until ``samples`` is reached.
    model, adapter
        What the batches are for.
    tokenizer : optional
        Of transformers; needed for texts.
    samples : int, optional
        Sentences at most. Default 2560.
    max_length : int, optional
        Tokens a sentence at most; the rest is cut off. Default 128, or the model's limit if that is less.
    batch_size : int, optional
        Sentences a batch at most. Default 64; fewer where they are long.
    seed : int
    text, text_pair : str, optional
        Columns of a ``Dataset``; guessed otherwise.
    device : torch.device, optional
        Where the batches go. Default: where the model is.

    Raises
    ------
    InputError
        No data, no tokenizer for texts, or data of another kind.
    """
    samples = _positive("samples", samples, DEFAULT_SAMPLES)
    batch_size = _positive("batch_size", batch_size, DEFAULT_BATCH)
    config: Any = getattr(model, "config", None)
    limit, length = adapter.longest(config), _length(adapter, config, max_length)
    accepted = [name for name in _INPUTS if name in inspect.signature(model.forward).parameters]
    device = next(model.parameters()).device if device is None else device
    rows = _rows(data, tokenizer, samples, length, seed, text, text_pair)
    notes: tuple[str, ...] = ()
    if isinstance(rows, _Ready):
        batches = [_ready_batch(batch, accepted) for batch in rows.batches]
        _check_length(batches, limit)
        available, reached = None, None
    else:
        available, reached = rows.available, length
        pad = _padding_id(model, tokenizer)
        batches = [_pad(chosen, accepted, pad) for chosen in _by_length(rows.encoded, batch_size)]
        cut = sum(len(row["input_ids"]) == length for row in rows.encoded)
        if 2 * cut > len(rows.encoded):
            notes = (f"{cut} of {len(rows.encoded)} sentences reach max_length {length} and may be cut off",)
    _check_ids(batches, model)
    return Calibration(
        batches=[{key: value.to(device) for key, value in batch.items()} for batch in batches],
        sentences=sum(batch["input_ids"].shape[0] for batch in batches),
        tokens=sum(int(batch["attention_mask"].sum()) for batch in batches),
        padded=sum(batch["input_ids"].numel() for batch in batches),
        available=available,
        sha256=_digest(batches),
        max_length=reached,
        notes=notes,
    )


def random_batches(
    model: nn.Module, adapter: Adapter, samples: int | None, max_length: int | None, batch_size: int | None, seed: int
) -> list[dict[str, Tensor]]:
    """Batches of random tokens, for a model whose weights are random too; arguments as for :func:`gather`."""
    config: Any = model.config
    length = _length(adapter, config, max_length)
    count = _positive("samples", samples, DEFAULT_SAMPLES)
    size = min(_positive("batch_size", batch_size, DEFAULT_BATCH), max(1, _MOST_TOKENS // length))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(int(config.vocab_size), (count, length), generator=generator)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in torch.split(ids, size)]


def _length(adapter: Adapter, config: Any, asked: int | None) -> int:
    limit = adapter.longest(config)
    length = _positive("max_length", asked, min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH))
    if limit is not None and length > limit:
        raise InputError(f"max_length {length} is more than the model can read", seen=f"{limit} positions")
    return length


@dataclass(frozen=True)
class _Rows:
    encoded: list[dict[str, list[int]]]
    available: int


@dataclass(frozen=True)
class _Ready:
    batches: list[Mapping[str, Tensor]]


def _positive(name: str, value: int | None, default: int) -> int:
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive whole number", seen=repr(value))
    return value


def _rows(
    data: Any, tokenizer: Any, samples: int, length: int, seed: int, text: str | None, text_pair: str | None
) -> _Rows | _Ready:
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
        return _from_dataset(data, tokenizer, samples, length, seed, text, text_pair)
    if hasattr(data, "texts"):
        pairs = getattr(data, "pairs", None)
        return _encode(list(data.texts), None if pairs is None else list(pairs), tokenizer, samples, length, seed)
    iterator = iter(data)
    first = next(iterator, None)
    if first is None:
        raise InputError("the calibration data is empty", hint="at least a few hundred sentences")
    everything = itertools.chain([first], iterator)
    if isinstance(first, str):
        return _encode(_texts(everything, str), None, tokenizer, samples, length, seed)
    if isinstance(first, Mapping) or hasattr(first, "keys"):
        return _Ready(_take(everything, samples))
    if isinstance(first, (tuple, list)) and len(first) == 2 and all(isinstance(part, str) for part in first):
        both = _texts(everything, tuple)
        return _encode([a for a, _ in both], [b for _, b in both], tokenizer, samples, length, seed)
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


def _from_dataset(
    data: Any, tokenizer: Any, samples: int, length: int, seed: int, text: str | None, text_pair: str | None
) -> _Rows:
    if isinstance(data.column_names, Mapping):
        raise InputError("data is a dictionary of splits", seen=str(list(data)), hint="pass data['train']")
    columns = list(data.column_names)
    if text is None and "input_ids" in columns:
        return _tokenised(data, columns, samples, length, seed)
    text, text_pair = _columns(columns, text, text_pair)
    pairs = None if text_pair is None else list(data[text_pair])
    return _encode(list(data[text]), pairs, tokenizer, samples, length, seed)


def _columns(columns: Sequence[str], text: str | None, text_pair: str | None) -> tuple[str, str | None]:
    from pyprune.tasks.loading import PAIRS, TEXTS

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


def _tokenised(data: Any, columns: Sequence[str], samples: int, length: int, seed: int) -> _Rows:
    names = [name for name in _INPUTS if name in columns]
    encoded = []
    for index in _sample(len(data), samples, seed):
        row = {name: torch.as_tensor(data[index][name]).tolist() for name in names}
        mask = row.setdefault("attention_mask", [1] * len(row["input_ids"]))
        # padding="max_length" is undone: batches pad to their own longest
        end = min(max((at + 1 for at, real in enumerate(mask) if real), default=0), length)
        encoded.append({name: values[:end] for name, values in row.items()})
    return _Rows([row for row in encoded if row["input_ids"]], len(data))


def _encode(texts: list[str], pairs: list[str] | None, tokenizer: Any, samples: int, length: int, seed: int) -> _Rows:
    if not texts:
        raise InputError("the calibration data is empty", hint="at least a few hundred sentences")
    if tokenizer is None:
        raise InputError("texts need a tokenizer", hint="tokenizer=AutoTokenizer.from_pretrained(...)")
    chosen = _sample(len(texts), samples, seed)
    output = tokenizer(
        [texts[i] for i in chosen],
        None if pairs is None else [pairs[i] for i in chosen],
        truncation=True,
        max_length=length,
        padding=False,
        return_attention_mask=True,
    )
    names = [name for name in _INPUTS if name in output]
    return _Rows([{n: list(output[n][row]) for n in names} for row in range(len(chosen))], len(texts))


def _sample(count: int, samples: int, seed: int) -> list[int]:
    if count == 0:
        raise InputError("the calibration data is empty", hint="at least a few hundred sentences")
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(count, generator=generator)[:samples].tolist())


def _by_length(encoded: list[dict[str, list[int]]], batch_size: int) -> list[list[dict[str, list[int]]]]:
    order = sorted(range(len(encoded)), key=lambda row: (-len(encoded[row]["input_ids"]), row))
    groups: list[list[dict[str, list[int]]]] = []
    room = 0
    for row in order:
        if room == 0:
            longest = max(len(encoded[row]["input_ids"]), 1)
            room = max(1, min(batch_size, _MOST_TOKENS // longest))
            groups.append([])
        groups[-1].append(encoded[row])
        room -= 1
    return groups


def _padding_id(model: nn.Module, tokenizer: Any) -> int:
    for owner in (tokenizer, getattr(model, "config", None)):
        value = getattr(owner, "pad_token_id", None)
        if value is not None:
            return int(value)
    return 0


def _pad(rows: list[dict[str, list[int]]], accepted: Sequence[str], pad: int) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in rows[0]:
        if name in accepted or name == "attention_mask":
            fill = pad if name == "input_ids" else 0
            batch[name] = torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])
    return batch


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


def _ready_batch(batch: Mapping[str, Tensor], accepted: Sequence[str]) -> dict[str, Tensor]:
    ids = torch.as_tensor(batch["input_ids"])
    mask = torch.as_tensor(batch["attention_mask"]) if "attention_mask" in batch else torch.ones_like(ids)
    if ids.dim() != 2 or mask.shape != ids.shape:
        raise InputError(
            "a batch must hold input_ids and attention_mask of one shape [sentences, tokens]",
            seen=f"{list(ids.shape)} and {list(mask.shape)}",
        )
    # Hidden padding would otherwise be counted as tokens; a mask must be 0 or 1 to be one.
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("attention_mask must be 0 or 1", hint="the mask of the tokenizer, not an additive one")
    kept = {name: torch.as_tensor(batch[name]) for name in _INPUTS if name in accepted and name in batch}
    return {**kept, "input_ids": ids, "attention_mask": mask.long()}


def _check_length(batches: Sequence[Mapping[str, Tensor]], limit: int | None) -> None:
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    if limit is not None and longest > limit:
        raise InputError(f"a batch of {longest} tokens is longer than the model can read", seen=f"{limit} positions")


def _check_ids(batches: Sequence[Mapping[str, Tensor]], model: nn.Module) -> None:
    if not any(bool(batch["attention_mask"].any()) for batch in batches):
        raise InputError("no real token in the calibration data", hint="check the attention masks")
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    for batch in batches:
        low, high = int(batch["input_ids"].min()), int(batch["input_ids"].max())
        if low < 0 or (vocabulary is not None and high >= vocabulary):
            raise InputError(
                "token ids outside the model's vocabulary",
                seen=f"{low} to {high}, vocabulary of {vocabulary}",
                hint="the tokenizer has to be the model's own",
            )


def _digest(batches: Sequence[Mapping[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            value = batch[name].long().contiguous()
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()
