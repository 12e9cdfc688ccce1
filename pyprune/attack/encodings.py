# SPDX-License-Identifier: Apache-2.0
"""Encodings of sentences in a file, which runs of many models share: each meets most of the sentences of the others."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import write_error

_WAIT = 60.0  # seconds for another process that writes
_ASKED = 500  # keys of one question, below SQLite's limit


class Encodings:
    """Float32 rows by text, in an SQLite file; several processes may read and add at the same time.

    A row that was stored is what would be computed, to the last bit, as long as `key` names all that decides it.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    key : str
        Of the encoder and of everything that its last bits depend on; another key is another file.

    Attributes
    ----------
    path : Path

    Raises
    ------
    InputError
        The folder cannot be written, or the file is not what it should be.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder.expanduser() / f"encodings-{key}.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, self.path.parent, "the encodings") from error
        try:
            self._file = sqlite3.connect(self.path, timeout=_WAIT, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")  # readers do not wait for who writes
            self._file.execute("PRAGMA synchronous=NORMAL")
            with self._file:
                self._file.execute("CREATE TABLE IF NOT EXISTS rows (text BLOB PRIMARY KEY, row BLOB NOT NULL)")
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def get(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Rows of those of `texts` that are there."""
        keys = {_digest(text): text for text in texts}
        wanted, found = list(keys), {}
        try:
            for begin in range(0, len(wanted), _ASKED):
                some = wanted[begin : begin + _ASKED]
                marks = ",".join("?" * len(some))
                rows = self._file.execute(f"SELECT text, row FROM rows WHERE text IN ({marks})", some)
                for digest, row in rows:
                    found[keys[digest]] = torch.from_numpy(np.frombuffer(row, dtype="<f4").astype(np.float32))
        except (sqlite3.Error, ValueError, KeyError) as error:
            raise self._refused(error) from error
        return found

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Keep `rows`, all or none of them; one that is already there stays as it is."""
        values = [(_digest(text), row.numpy().astype("<f4").tobytes()) for text, row in rows.items()]
        try:
            with self._file:
                self._file.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", values)
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def __len__(self) -> int:
        return int(self._file.execute("SELECT COUNT(*) FROM rows").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _refused(self, error: Exception) -> InputError:
        return InputError(
            f"{self.path} cannot be used as a file of encodings",
            seen=str(error),
            hint="remove it, it is made anew; or name another folder",
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
