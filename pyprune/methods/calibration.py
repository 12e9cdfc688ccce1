# SPDX-License-Identifier: Apache-2.0
"""Calibration text: how much of it, how it is batched, checked and fingerprinted."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.methods.gold import batch_labels, row_labels
from pyprune.methods.sentences import INPUTS, Ready, Take, read_rows
from pyprune.models import Adapter
from pyprune.tasks.perplexity import is_language_model

DEFAULT_SAMPLES = 2560  # sentences; what the authors of AKR calibrate on (methods of arXiv 2310.13191, released code)
DEFAULT_LENGTH = 128
DEFAULT_BATCH = 64
# Of language models: what SparseGPT and most that came after it calibrate on (Frantar & Alistarh 2023).
DEFAULT_SEQUENCES = 128
DEFAULT_SEQUENCE = 2048

# Padded tokens of one batch at most: a feed-forward activation of BERT-base is then 100 MB. Of wider decoders fewer.
_MOST_TOKENS = 8192
_WIDTH = 3072


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
    asked : int
        Sentences there were to be at most.
    max_length : int or None
        Tokens a sentence could have at most; None for batches, which are taken as they are.
    labels : tuple of tuple of Tensor
        Of every batch, if they were asked for: classes or numbers ``[rows]``, or starts and ends of answers.
    """

    batches: list[dict[str, Tensor]]
    sentences: int
    tokens: int
    padded: int
    available: int | None
    sha256: str
    asked: int
    max_length: int | None = None
    notes: tuple[str, ...] = ()
    labels: tuple[tuple[Tensor, ...], ...] = ()

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

    def choices(self, batch_size: int | None) -> dict[str, Any]:
        """Settings that led to these batches, for a report."""
        return {
            "samples": self.asked,
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
    labels: str | None = None,
) -> Calibration:
    """Sample, tokenise and batch calibration data.

    Sentences are drawn without replacement from ``seed``, by a generator of their own. Batches hold sentences of
    similar length, longest first (so that a lack of memory shows at once), padded to their longest.

    For a causal language model texts are joined, empty lines between them, and cut into sequences of ``max_length``
    tokens without padding; "sentences" are then these sequences.

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
        Sentences at most. Default 2560, for language models 128.
    max_length : int, optional
        Tokens a sentence at most; the rest is cut off. Default 128, for language models 2048, or the model's limit if
        that is less.
    batch_size : int, optional
        Sentences a batch at most. Default 64; fewer where they are long.
    seed : int
    text, text_pair : str, optional
        Columns of a ``Dataset``; guessed otherwise.
    device : torch.device, optional
        Where the batches go. Default: where the model is.
    labels : {"classification", "regression", "answers"}, optional
        Take labels along, of this kind.

    Raises
    ------
    InputError
        No data, no tokenizer for texts, or data of another kind; no labels where they were asked for.
    """
    config: Any = getattr(model, "config", None)
    limit = adapter.longest(config)
    samples, length, batch_size = _sizes(model, adapter, samples, max_length, batch_size)
    accepted = [name for name in INPUTS if name in inspect.signature(model.forward).parameters]
    device = next(model.parameters()).device if device is None else device
    known = None if labels is None else row_labels(data, model, labels)
    take = Take(tokenizer, samples, length, seed, joined=is_language_model(model), labels=known)
    rows = read_rows(data, take, text, text_pair)
    notes: tuple[str, ...] = ()
    gold: list[tuple[Tensor, ...]] = []
    if isinstance(rows, Ready):
        batches = [_ready_batch(batch, accepted) for batch in rows.batches]
        gold = [] if labels is None else [batch_labels(batch, labels) for batch in rows.batches]
        _check_length(batches, limit)
        available, reached = None, None
    else:
        available, reached = rows.available, length
        pad = _padding_id(model, tokenizer)
        most = _most_tokens(adapter, config)
        groups = _by_length(rows.encoded, batch_size, most)
        batches = [_pad([rows.encoded[row] for row in group], accepted, pad) for group in groups]
        if rows.labels is not None:
            kind = torch.float32 if labels == "regression" else torch.int64
            gold = [(torch.tensor([rows.labels[row] for row in group]).to(kind),) for group in groups]
        cut = sum(len(row["input_ids"]) == length for row in rows.encoded)
        if 2 * cut > len(rows.encoded) and not take.joined:
            notes = (f"{cut} of {len(rows.encoded)} sentences reach max_length {length} and may be cut off",)
    _check_ids(batches, model)
    return Calibration(
        batches=[{key: value.to(device) for key, value in batch.items()} for batch in batches],
        sentences=sum(batch["input_ids"].shape[0] for batch in batches),
        tokens=sum(int(batch["attention_mask"].sum()) for batch in batches),
        padded=sum(batch["input_ids"].numel() for batch in batches),
        available=available,
        sha256=_digest(batches),
        asked=samples,
        max_length=reached,
        notes=notes,
        labels=tuple(tuple(label.to(device) for label in found) for found in gold),
    )


def random_batches(
    model: nn.Module, adapter: Adapter, samples: int | None, max_length: int | None, batch_size: int | None, seed: int
) -> list[dict[str, Tensor]]:
    """Batches of random tokens, for a model whose weights are random too; arguments as for :func:`gather`."""
    config: Any = model.config
    count, length, size = _sizes(model, adapter, samples, max_length, batch_size)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(int(config.vocab_size), (count, length), generator=generator)
    parts = torch.split(ids, min(size, max(1, _most_tokens(adapter, config) // length)))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]


def _sizes(
    model: nn.Module, adapter: Adapter, samples: int | None, max_length: int | None, batch_size: int | None
) -> tuple[int, int, int]:
    """Sentences, tokens of a sentence, sentences of a batch."""
    usual = (DEFAULT_SEQUENCES, DEFAULT_SEQUENCE) if is_language_model(model) else (DEFAULT_SAMPLES, DEFAULT_LENGTH)
    limit = adapter.longest(getattr(model, "config", None))
    length = _positive("max_length", max_length, min(usual[1], limit or usual[1]))
    if limit is not None and length > limit:
        raise InputError(f"max_length {length} is more than the model can read", seen=f"{limit} positions")
    return _positive("samples", samples, usual[0]), length, _positive("batch_size", batch_size, DEFAULT_BATCH)


def _most_tokens(adapter: Adapter, config: Any) -> int:
    if not adapter.causal:
        return _MOST_TOKENS
    inner = int(getattr(config, "intermediate_size", 0) or config.ffn_dim)
    return min(_MOST_TOKENS, _MOST_TOKENS * _WIDTH // inner)


def _positive(name: str, value: int | None, default: int) -> int:
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive whole number", seen=repr(value))
    return value


def _by_length(encoded: list[dict[str, list[int]]], batch_size: int, most: int) -> list[list[int]]:
    """Numbers of the rows of each batch."""
    order = sorted(range(len(encoded)), key=lambda row: (-len(encoded[row]["input_ids"]), row))
    groups: list[list[int]] = []
    room = 0
    for row in order:
        if room == 0:
            longest = max(len(encoded[row]["input_ids"]), 1)
            room = max(1, min(batch_size, most // longest))
            groups.append([])
        groups[-1].append(row)
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
    kept = {name: torch.as_tensor(batch[name]) for name in INPUTS if name in accepted and name in batch}
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
