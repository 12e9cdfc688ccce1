# SPDX-License-Identifier: Apache-2.0
"""Vocabularies without the tokens that a corpus never uses: of a model all of whose text is of one kind, most go."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.files import REPORT, whole_folder
from pyprune.methods import accounting
from pyprune.methods.driver import Progress, Silent
from pyprune.models import adapter_for
from pyprune.result import load_report, write_report
from pyprune.sparse.mask_file import MASKS
from pyprune.sparse.storage import stored_tensors
from pyprune.structured.rows import keep_rows, named_ids, table_of
from pyprune.structured.tokens import Tokens
from pyprune.structured.unit_file import UNITS

_CHUNK = 1024  # texts


@dataclass(frozen=True)
class TrimmedVocabulary:
    """A model and a tokenizer that know fewer tokens.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        Of the class and type that was given.
    tokenizer : transformers.PreTrainedTokenizerFast
    kept : Tensor of int64, shape (tokens,)
        The old id of each token.
    report : dict
        JSON-able. ``vocabulary``: ``tokenizer`` (WordPiece, BPE, ...), ``tokens`` (``before``, ``after``; of the latter
        ``seen`` in the texts, ``special``, ``letters``, ``asked`` for, and ``parts`` of others), ``parameters`` and
        ``bytes`` of the model, ``data`` (number of texts and tokens, hash of their ids), ``seconds``. ``pyprune`` and
        ``versions``.
    """

    model: Any
    tokenizer: Any
    kept: Tensor
    report: dict[str, Any] = field(repr=False)

    def save(self, path: str | os.PathLike[str], *, source: str | os.PathLike[str] | None = None) -> Path:
        """Write a folder for :func:`pyprune.load`, and for transformers alone unless more than tokens was cut.

        Parameters
        ----------
        path : str or Path
            It appears whole, and replaces an earlier pyprune folder only then.
        source : str or Path, optional
            Folder of the model that was trimmed: its report, masks and units go along.

        Raises
        ------
        InputError
            The path holds something else, or is the folder of the model itself; the disk is full.
        """
        target = Path(path).expanduser().absolute()
        folder = None if source is None else Path(source).expanduser()
        if folder is not None and target.resolve() == folder.resolve():
            raise InputError("the output is the folder of the model itself", hint="another folder")
        report = dict(self.report)
        if folder is not None and (folder / REPORT).is_file():
            report = {**load_report(folder), "vocabulary": report["vocabulary"]}
        with whole_folder(target, _bytes(self.model)) as part:
            self.model.save_pretrained(part)
            self.tokenizer.save_pretrained(part)
            for file in [] if folder is None else [folder / name for name in (MASKS, UNITS)]:
                if file.is_file():
                    shutil.copyfile(file, part / file.name)
            write_report(part, report)
        return target


def trim_vocabulary(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[str | tuple[str, str]],
    *,
    keep: Sequence[str] = (),
    inplace: bool = False,
    progress: Progress | None = None,
) -> TrimmedVocabulary:
    """Cut the tokens that a corpus never uses out of a model and its tokenizer.

    What stays: tokens of the texts, special and added tokens, single characters and bytes (any other text is spelled
    with them and with whatever longer tokens are left), in BPE the tokens that others are merged from, and those asked
    for. The texts themselves are cut up as before, which is checked, so that the model's answers to them are the same.
    Any number of heads, channels and neurons may be cut before or after (:func:`pyprune.compact`).

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Of a family that can be pruned, with any head. Left as it is unless ``inplace``.
    tokenizer : transformers.PreTrainedTokenizerFast
        WordPiece, BPE, Unigram or WordLevel.
    texts : iterable of str or pairs of str
        All kinds of text that the model will meet; the longer, the better.
    keep : sequence of str
        More tokens, as ``tokenizer.convert_ids_to_tokens`` writes them.
    inplace : bool
        Cut the given model itself.
    progress : optional
        Object with ``start(total, description)``, ``advance(description)``, ``note(text)``, ``finish()``.

    Returns
    -------
    TrimmedVocabulary

    Raises
    ------
    InputError
        No fast tokenizer, or one that is not of this model; no text; an unknown token to keep; or a tokenizer that cuts
        the texts up in another way than before.

    Examples
    --------
    >>> trimmed = trim_vocabulary(model, tokenizer, texts)  # doctest: +SKIP
    >>> trimmed.report["vocabulary"]["tokens"]  # doctest: +SKIP
    {'before': 30522, 'after': 14014, 'seen': 13264, 'special': 5, 'letters': 1995, 'asked': 0, 'parts': 0}
    >>> trimmed.save("trimmed")  # doctest: +SKIP
    """
    begin = time.perf_counter()
    progress = Silent() if progress is None else progress
    adapter = adapter_for(model)
    rows, words = table_of(model).num_embeddings, Tokens(tokenizer)
    lines = list(_flat(texts))
    if not lines:
        raise InputError("no vocabulary is left without text", hint="texts of the kind that the model will meet")
    unknown = [token for token in keep if token not in words.ids]
    if unknown:
        raise InputError(
            "tokens to keep that the tokenizer does not have",
            seen=", ".join(map(repr, unknown[:4])),
            hint="as tokenizer.convert_ids_to_tokens writes them; a word of several tokens belongs to the texts",
        )
    progress.start(2 * -(-len(lines) // _CHUNK), "reading the texts")
    try:
        counted = _Reading.of(_encoder(tokenizer), lines, progress)
        needed = _needed(model, adapter.padded_positions, rows)
        groups = _groups(words, counted.seen, needed, keep, rows)
        order = words.order(set().union(*groups.values()))
        kept = [words.ids[token] for token in order]
        kept += sorted(needed - set(kept))
        smaller = words.without_others(order)
        _compare(counted, _encoder(smaller), lines, np.asarray(kept, dtype=np.int64), progress, _encoder(tokenizer))
    finally:
        progress.finish()
    before = _sizes(model)
    work: Any = model if inplace else copy.deepcopy(model)
    places = torch.tensor(kept)
    keep_rows(work, places)
    after = _sizes(work)
    vocabulary = {
        "tokenizer": words.kind,
        "tokens": {"before": rows, "after": len(kept), **{name: len(group) for name, group in groups.items()}},
        **{name: {"before": before[name], "after": after[name]} for name in before},
        "data": {"texts": len(lines), "tokens": counted.tokens, "sha256": counted.sha256},
        "seconds": time.perf_counter() - begin,
    }
    found = accounting.versions()
    report = {"pyprune": found["pyprune"], "versions": found, "vocabulary": vocabulary}
    return TrimmedVocabulary(work, smaller, places, report)


def _flat(texts: Iterable[str | tuple[str, str]]) -> Iterator[str]:
    if isinstance(texts, str):
        raise InputError("one text where a list of them is needed", seen=repr(texts)[:80], hint="[text]")
    for number, text in enumerate(texts):
        parts = (text,) if isinstance(text, str) else text
        if not isinstance(parts, tuple | list) or not all(isinstance(part, str) for part in parts):
            raise InputError(f"text {number} is neither a text nor a pair of texts", seen=repr(text)[:80])
        yield from parts


@dataclass(frozen=True)
class _Reading:
    """What texts come to: ids of all tokens seen, their number, hashes of all and of each chunk."""

    seen: set[int]
    tokens: int
    sha256: str
    chunks: list[int]

    @classmethod
    def of(cls, encoder: Any, lines: Sequence[str], progress: Progress, names: Any = None) -> _Reading:
        """Read the texts; ``names`` are what ids are called instead, int64 by id."""
        seen, tokens, sums, chunks = set[int](), 0, hashlib.sha256(), []
        for start in range(0, len(lines), _CHUNK):
            ids = _ids(encoder, lines[start : start + _CHUNK])
            ids = ids if names is None else names[ids]
            tokens += len(ids)
            seen.update(np.unique(ids).tolist())
            data = ids.tobytes()
            sums.update(data)
            chunks.append(zlib.crc32(data))
            progress.advance("reading the texts")
        return cls(seen, tokens, sums.hexdigest(), chunks)


def _encoder(tokenizer: Any) -> Any:
    """What cuts up texts and does no more."""
    found = copy.deepcopy(tokenizer.backend_tokenizer)
    found.no_truncation()
    found.no_padding()
    return found


def _ids(encoder: Any, lines: Sequence[str]) -> Any:
    """All ids one after another, int64."""
    found = encoder.encode_batch(list(lines), add_special_tokens=False)
    return np.concatenate([np.asarray(one.ids, dtype=np.int64) for one in found])


def _groups(words: Tokens, seen: set[int], needed: set[int], keep: Sequence[str], rows: int) -> dict[str, set[str]]:
    """Which tokens stay, by reason; a token may have several."""
    names = {index: token for token, index in words.ids.items()}
    groups = {
        "seen": {names[index] for index in seen},
        "special": words.special() | {names[index] for index in needed if index in names},
        "letters": {token for token in words.letters() if words.ids[token] < rows},
        "asked": set(keep),
    }
    whole = set().union(*groups.values())
    groups["parts"] = words.with_parts(whole) - whole
    without = sorted(token for group in groups.values() for token in group if words.ids[token] >= rows)
    if without:
        raise InputError(
            "the tokenizer has tokens that the model does not have",
            asked=f"ids below {rows}",
            seen=", ".join(f"{token!r}: {words.ids[token]}" for token in without[:4]),
            hint="the tokenizer of this model; or model.resize_token_embeddings(len(tokenizer)) before",
        )
    return groups


def _needed(model: nn.Module, padded_positions: bool, rows: int) -> set[int]:
    """Rows that stay whether or not a token is theirs."""
    named = named_ids(model)
    if padded_positions:
        # Positions are counted from the padding id, which stays what it is if all before it do.
        config: Any = model.config
        named |= set(range(int(config.pad_token_id) + 1))
    return {index for index in named if index < rows}


def _compare(
    counted: _Reading, smaller: Any, lines: Sequence[str], kept: Any, progress: Progress, encoder: Any
) -> None:
    """Raise unless the smaller tokenizer cuts all texts up as before."""
    again = _Reading.of(smaller, lines, progress, kept)
    if again.sha256 == counted.sha256:
        return
    chunk = next(place for place, (a, b) in enumerate(zip(counted.chunks, again.chunks, strict=True)) if a != b)
    for number in range(chunk * _CHUNK, min(len(lines), (chunk + 1) * _CHUNK)):
        old, new = (encode.encode(lines[number], add_special_tokens=False) for encode in (encoder, smaller))
        if old.ids != kept[new.ids].tolist():
            raise InputError(
                f"the smaller tokenizer cuts text {number} up in another way",
                asked=" ".join(old.tokens)[:200],
                seen=" ".join(new.tokens)[:200],
                hint="tokenizers that choose at random (dropout) cannot be trimmed",
            )
    raise InputError("the smaller tokenizer cuts the texts up in another way at every attempt")


def _sizes(model: nn.Module) -> dict[str, int]:
    tensors = stored_tensors(model)
    return {
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
    }


def _bytes(model: nn.Module) -> int:
    return _sizes(model)["bytes"]
