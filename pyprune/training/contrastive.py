# SPDX-License-Identifier: Apache-2.0
"""Contrastive terms against representations of earlier, denser models (CAP: Xu et al., AAAI 2022), and their banks.

A bank holds one representation of each training row for each snapshot of a model. It is a file that is mapped into
memory, so that only the rows that are looked up are read; row numbers are int64.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pyprune.errors import InputError
from pyprune.ops import bank_scores

Normalisation = Literal["published", "anchors"]
_TYPES: dict[torch.dtype, tuple[str, Any]] = {torch.float32: ("F32", np.float32), torch.float16: ("F16", np.float16)}


class Candidates(NamedTuple):
    """What a bank holds of some rows: ``depth`` representations of each, one after another."""

    values: Tensor  # [length, features]
    places: Tensor | None  # int64 [rows · depth]: which of the values they are; without, all of them
    depth: int


class Bank:
    """Representations ``[rows, snapshots, features]`` of unit length in a safetensors file, mapped into memory.

    Parameters
    ----------
    path : Path
        Made if it is not there; else gone on with.
    rows, features : int
    snapshots : int
        Kept at most: a further one takes the place of the oldest.
    dtype : {torch.float32, torch.float16}
        As stored.

    Raises
    ------
    InputError
        The file is of another bank, or the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> bank = Bank(Path(tempfile.mkdtemp()) / "bank.safetensors", rows=3, features=2)
    >>> bank.put(torch.tensor([0, 1, 2]), torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]))
    >>> bank.finish()
    >>> bank.of(torch.tensor([2, 0])).tolist()
    [[[0.0, 1.0]], [[0.6000000238418579, 0.800000011920929]]]
    """

    def __init__(
        self, path: Path, *, rows: int, features: int, snapshots: int = 1, dtype: torch.dtype = torch.float32
    ) -> None:
        if dtype not in _TYPES or min(rows, features, snapshots) < 1:
            raise InputError(
                "a bank has rows, features and snapshots, float32 or float16",
                seen=f"{rows} rows, {features} features, {snapshots} snapshots, {dtype}",
            )
        self.path, self.rows, self.features, self.snapshots = path, rows, features, snapshots
        code, kind = _TYPES[dtype]
        shape = (rows, snapshots, features)
        size = rows * snapshots * features * dtype.itemsize
        head = {
            "finished": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
            "representations": {"dtype": code, "shape": list(shape), "data_offsets": [8, 8 + size]},
        }
        text = json.dumps(head, separators=(",", ":")).encode()
        text = len(text + b" " * (-len(text) % 8)).to_bytes(8, "little") + text + b" " * (-len(text) % 8)
        try:
            if not path.exists():
                with path.open("wb") as file:
                    file.write(text)
                    file.truncate(len(text) + 8 + size)  # zeros that take no room until they are written
            with path.open("rb") as file:
                there = file.read(len(text))
            if there != text or path.stat().st_size != len(text) + 8 + size:
                raise InputError(f"{path} is the file of another bank", asked=str(list(shape)), hint="remove it")
            self._finished: Any = np.memmap(path, np.int64, "r+", offset=len(text), shape=(1,))
            self._values: Any = np.memmap(path, kind, "r+", offset=len(text) + 8, shape=shape)
        except OSError as error:
            raise InputError(f"{path} cannot be a bank", seen=str(error), hint="another folder") from error

    @property
    def finished(self) -> int:
        """Snapshots finished so far, those that were replaced included."""
        return int(self._finished[0])

    @property
    def depth(self) -> int:
        """Snapshots that can be looked up."""
        return min(self.finished, self.snapshots)

    def put(self, rows: Tensor, representations: Tensor) -> None:
        """Write a part of the next snapshot: int64 row numbers ``[n]`` and ``[n, features]`` of any length."""
        self._check(rows)
        if representations.shape != (len(rows), self.features):
            raise InputError(
                "representations do not fit the bank",
                asked=str([len(rows), self.features]),
                seen=str(list(representations.shape)),
            )
        unit = functional.normalize(representations.detach().float(), dim=1).cpu().numpy()
        self._values[rows.cpu().numpy(), self.finished % self.snapshots] = unit

    def finish(self) -> None:
        """The snapshot is whole and may be looked up."""
        self._values.flush()
        self._finished[0] += 1
        self._finished.flush()

    def forget(self, finished: int) -> None:
        """Go back to the first ``finished`` snapshots, while all are there."""
        self._finished[0] = finished
        self._finished.flush()

    def of(self, rows: Tensor) -> Tensor:
        """Representations of rows, float32 ``[n, depth, features]``, on the device of the numbers."""
        self._check(rows)
        found = self._values[rows.cpu().numpy(), : self.depth]
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32)).to(rows.device)

    def candidates(self, rows: Tensor) -> Candidates:
        """The same, on a CPU without a copy: where they lie in the file."""
        if not rows.is_cpu:
            return Candidates(self.of(rows).flatten(0, 1), None, self.depth)
        self._check(rows)
        places = rows[:, None] * self.snapshots + torch.arange(self.depth)
        return Candidates(torch.from_numpy(self._values).flatten(0, 1), places.flatten(), self.depth)

    def _check(self, rows: Tensor) -> None:
        if rows.dtype != torch.int64:
            raise InputError("row numbers are int64: fewer bits make different rows one", seen=str(rows.dtype))
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise InputError("a row that is not in the bank", asked=f"0 to {self.rows - 1}", seen=str(int(rows.max())))


def extra_rows(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different row numbers, int64; all of them where there are fewer."""
    return torch.randperm(rows, generator=generator)[:count]


def contrastive_loss(
    anchors: Tensor,
    rows: Tensor,
    near: Tensor,
    far: Tensor,
    far_rows: Tensor,
    *,
    labels: Tensor | None,
    far_labels: Tensor | None,
    temperature: float,
    unsupervised: float,
    supervised: float,
    normalisation: Normalisation,
) -> Tensor:
    """Contrast a batch with a bank.

    Candidates ``c`` of every anchor ``z_i`` are the other anchors, without gradient, and the representations of the
    batch's own rows and of some more. ``log p_i(c)`` is the log-softmax over candidates of ``z_iᵀ c / τ``, the anchor
    itself left out. Positives are candidates of the same row (``unsupervised``) or of the same label (``supervised``);
    ``L_x = − Σ_i mean over positives of log p_i``, divided by

    * ``"published"``: the number of all positive pairs with ``log p ≠ 0``, as the authors' code does, dividing twice;
    * ``"anchors"``: the number of anchors that have a positive.

    Parameters
    ----------
    anchors : Tensor, shape (batch, features)
        Of any length; made unit here.
    rows : Tensor of int64, shape (batch,)
    near : Tensor, shape (batch, depth, features)
        The bank's representations of the batch, of unit length.
    far : Tensor, shape (more, depth, features)
    far_rows : Tensor of int64, shape (more,)
    labels, far_labels : Tensor of int, shape (batch,) and (more,), optional
        Needed where ``supervised`` is not 0.
    temperature, unsupervised, supervised : float
        ``τ`` and the weights of both terms.
    normalisation : {"published", "anchors"}

    Returns
    -------
    Tensor
        A scalar in float32 at least. Zero where the bank is empty.
    """
    candidates = Candidates(torch.cat([near, far]).flatten(0, 1), None, near.shape[1])
    return bank_loss(
        anchors,
        rows,
        candidates,
        far_rows,
        labels=labels,
        far_labels=far_labels,
        temperature=temperature,
        unsupervised=unsupervised,
        supervised=supervised,
        normalisation=normalisation,
    )


def bank_loss(
    anchors: Tensor,
    rows: Tensor,
    candidates: Candidates,
    far_rows: Tensor,
    *,
    labels: Tensor | None,
    far_labels: Tensor | None,
    temperature: float,
    unsupervised: float,
    supervised: float,
    normalisation: Normalisation,
) -> Tensor:
    """:func:`contrastive_loss` with what a bank holds of ``rows`` and then of ``far_rows``, wherever that lies."""
    if supervised and (labels is None or far_labels is None):
        raise InputError("the supervised term needs labels", hint="supervised=0")
    weights, kinds = [], []
    if unsupervised:
        weights.append(unsupervised)
        kinds.append((rows, far_rows))
    if supervised and labels is not None and far_labels is not None:
        if labels.is_floating_point() or far_labels.is_floating_point():
            raise InputError("the supervised term needs labels that are classes", seen=str(labels.dtype))
        weights.append(supervised)
        kinds.append((labels.long(), far_labels.long()))
    if candidates.depth == 0 or not kinds:
        return anchors.sum() * 0.0
    wide = anchors if anchors.dtype in (torch.float32, torch.float64) else anchors.float()
    found = bank_scores(
        functional.normalize(wide, dim=1),
        torch.stack([own for own, _ in kinds]),
        candidates.values,
        torch.stack([torch.cat(both) for both in kinds]).repeat_interleave(candidates.depth, dim=1),
        rows=candidates.places,
        temperature=temperature,
        in_batch=True,
    )
    some = found.counts > 0
    chances = torch.where(some, found.positives / found.counts.clamp(min=1) - found.log_sum, 0.0).sum(dim=1)
    pairs = found.counts - found.certain.long() if normalisation == "published" else some
    return (chances.new_tensor(weights) * -chances / pairs.sum(dim=1).clamp(min=1)).sum()
