# SPDX-License-Identifier: Apache-2.0
"""Token ids of a training set, and its batches as a pure function of the seed and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError

NUMBERS = "pyprune_rows"  # of a batch's rows, for losses that know them; the model does not see it
_NEARBY = 32  # batches whose rows are sorted by length among themselves
_SEED = 1_000_003


class Rows:
    """Rows of token ids with their labels.

    Parameters
    ----------
    encoded : sequence of mappings
        ``input_ids`` and what else the model takes for each token, lists of equal length in a row.
    labels : sequence of int or float, optional
        One a row.
    padding : mapping of str to int
        What each is filled up with; 0 where it does not say.

    Attributes
    ----------
    labels : Tensor or None, shape (rows,)

    Examples
    --------
    >>> rows = Rows([{"input_ids": [5, 6]}, {"input_ids": [7]}], [0, 1], {"input_ids": 1})
    >>> rows.batch(torch.tensor([0, 1]))["input_ids"].tolist()
    [[5, 6], [7, 1]]
    >>> [sorted(numbers.tolist()) for numbers in rows.order(seed=0, epoch=0, size=2)]
    [[0, 1]]
    """

    def __init__(
        self,
        encoded: Sequence[Mapping[str, Sequence[int]]],
        labels: Sequence[int | float] | None = None,
        padding: Mapping[str, int] | None = None,
    ) -> None:
        if not encoded:
            raise InputError("there are no rows to train on")
        if labels is not None and len(labels) != len(encoded):
            raise InputError("every row has one label", seen=f"{len(encoded)} rows, {len(labels)} labels")
        self._encoded = [{name: torch.tensor(row[name]) for name in encoded[0]} for row in encoded]
        self._lengths = torch.tensor([len(row["input_ids"]) for row in encoded])
        self.labels = None if labels is None else torch.tensor(labels)
        self._padding = dict(padding or {})

    def __len__(self) -> int:
        return len(self._encoded)

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        found: list[int] = self._lengths.tolist()
        return found

    def part(self, numbers: Sequence[int]) -> Rows:
        """Some of the rows, in the order of their numbers here."""
        labels = None if self.labels is None else self.labels[torch.tensor(numbers, dtype=torch.long)]
        found = Rows([{name: value.tolist() for name, value in self._encoded[n].items()} for n in numbers], None)
        found.labels, found._padding = labels, self._padding
        return found

    @property
    def sha256(self) -> str:
        """Hash of ids and labels."""
        digest = hashlib.sha256()
        for row in self._encoded:
            for name, value in row.items():
                digest.update(name.encode() + repr(value.tolist()).encode())
        digest.update(repr(None if self.labels is None else self.labels.tolist()).encode())
        return digest.hexdigest()

    def order(self, *, seed: int, epoch: int, size: int) -> list[Tensor]:
        """Row numbers of every batch of an epoch: shuffled, and rows of about one length together."""
        generator = torch.Generator().manual_seed(seed * _SEED + epoch)
        shuffled = torch.randperm(len(self), generator=generator)
        batches: list[Tensor] = []
        for part in torch.split(shuffled, size * _NEARBY):
            by_length = part[torch.argsort(self._lengths[part], stable=True)]
            batches += torch.split(by_length, size)
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]

    def batch(self, numbers: Tensor) -> dict[str, Tensor]:
        """Inputs ``[rows, tokens]`` filled up to the longest row, and ``labels`` ``[rows]`` if there are any."""
        picked = [self._encoded[number] for number in numbers.tolist()]
        batch: dict[str, Any] = {
            name: torch.nn.utils.rnn.pad_sequence(
                [row[name] for row in picked], batch_first=True, padding_value=self._padding.get(name, 0)
            )
            for name in picked[0]
        }
        if self.labels is not None:
            batch["labels"] = self.labels[numbers]
        return batch
