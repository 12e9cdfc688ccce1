# SPDX-License-Identifier: Apache-2.0
"""Token ids of a training set, and its batches as a pure function of the seed and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyprune.errors import InputError

NUMBERS = "pyprune_rows"  # of a batch's rows, for losses that know them; the model does not see it
_NEARBY = 32  # batches whose rows are sorted by length among themselves
_SEED = 1_000_003


class Rows:
    """Rows of token ids with what is to be learned of them.

    Parameters
    ----------
    encoded : sequence of mappings
        ``input_ids`` and what else the model takes for each token, lists of equal length in a row.
    labels : sequence of int or float, or mapping of str to such, optional
        One a row; or several, by the names that the model has for them, such as ``start_positions`` and
        ``end_positions``.
    padding : mapping of str to int
        What each is filled up with; 0 where it does not say.

    Attributes
    ----------
    targets : dict of str to Tensor, shape (rows,)
        ``"labels"``, or what they were called.

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
        labels: Sequence[int | float] | Mapping[str, Sequence[int | float]] | None = None,
        padding: Mapping[str, int] | None = None,
    ) -> None:
        if not encoded:
            raise InputError("there are no rows to train on")
        named = {} if labels is None else labels if isinstance(labels, Mapping) else {"labels": labels}
        for name, values in named.items():
            if len(values) != len(encoded):
                what = "label" if name == "labels" else f"of its {name}"
                raise InputError(f"every row has one {what}", seen=f"{len(encoded)} rows, {len(values)} {name}")
        self._encoded = [{name: torch.tensor(row[name]) for name in encoded[0]} for row in encoded]
        self._lengths = torch.tensor([len(row["input_ids"]) for row in encoded])
        self.targets = {name: torch.tensor(values) for name, values in named.items()}
        self._padding = dict(padding or {})

    def __len__(self) -> int:
        return len(self._encoded)

    @property
    def labels(self) -> Tensor | None:
        """One a row, if there are any."""
        return self.targets.get("labels")

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        found: list[int] = self._lengths.tolist()
        return found

    def part(self, numbers: Sequence[int]) -> Rows:
        """Some of the rows, in the order of their numbers here."""
        found = Rows([{name: value.tolist() for name, value in self._encoded[n].items()} for n in numbers], None)
        picked = torch.tensor(numbers, dtype=torch.long)
        found.targets = {name: values[picked] for name, values in self.targets.items()}
        found._padding = self._padding
        return found

    @property
    def sha256(self) -> str:
        """Hash of ids and of what is to be learned."""
        digest = hashlib.sha256()
        for row in self._encoded:
            for name, value in row.items():
                digest.update(name.encode() + repr(value.tolist()).encode())
        labels = self.labels
        digest.update(repr(None if labels is None else labels.tolist()).encode())
        for name, values in self.targets.items():
            if name != "labels":
                digest.update(name.encode() + repr(values.tolist()).encode())
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
        """Inputs ``[rows, tokens]`` filled up to the longest row, and ``labels`` ``[rows]`` or whatever is learned."""
        return self.inputs(numbers) | {name: values[numbers] for name, values in self.targets.items()}

    def inputs(self, numbers: Tensor) -> dict[str, Tensor]:
        """What the model sees of a batch."""
        picked = [self._encoded[number] for number in numbers.tolist()]
        return {
            name: torch.nn.utils.rnn.pad_sequence(
                [row[name] for row in picked], batch_first=True, padding_value=self._padding.get(name, 0)
            )
            for name in picked[0]
        }
