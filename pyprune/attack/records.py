# SPDX-License-Identifier: Apache-2.0
"""One line of JSON for each attacked example, written as they come, and read again to go on.

Keys of a record: ``index`` (place in the data that was attacked), ``line`` (of the source), ``text`` and ``perturbed``
(a string, or a list of two), ``gold`` and ``prediction`` (classes; the prediction is for the perturbed text),
``outcome`` ("succeeded", "failed" or "skipped"), ``queries``, ``score`` and ``perturbed_score`` (one minus the
probability of the gold class), ``words`` and ``changed``, ``attack`` (hash of recipe, resources, data and seed: two
models with the same were attacked alike) and ``settings`` (hash of that, of the model and of what else decides the last
bits).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pyprune.errors import InputError
from pyprune.files import write_atomically, write_error

Record = dict[str, Any]
_OUTCOMES = ("succeeded", "failed", "skipped")


def digest(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read(path: Path) -> list[Record]:
    """Records of a file, by index; a last line that was cut off is left out.

    Raises
    ------
    InputError
        There is no such file, or another line is not a record.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read", seen=error.strerror) from None
    found: dict[int, Record] = {}
    for number, line in enumerate(lines, start=1):
        # what is complete ends in a line break, so that the last piece is empty or was cut off
        if not line or number == len(lines):
            continue
        try:
            record = json.loads(line)
            if record["outcome"] not in _OUTCOMES:
                raise KeyError("outcome")
            found[int(record["index"])] = record
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number} is not a record of an attack", seen=repr(error)) from None
    return [found[index] for index in sorted(found)]


class Journal:
    """Records of a run, each on disk before the next is made.

    Parameters
    ----------
    path : Path, optional
        None: they are kept in memory alone.
    settings : str
        Hash that every record of this run has.
    resume : bool
        Go on with a file that is there; without it one that is there is an error.

    Attributes
    ----------
    records : dict of int to dict

    Raises
    ------
    InputError
        The file is there and `resume` is not asked for, or it is of other settings, or it cannot be written.
    """

    def __init__(self, path: Path | None, settings: str, *, resume: bool) -> None:
        self.path = path
        self.records: dict[int, Record] = {}
        self._file: IO[bytes] | None = None
        if path is None:
            return
        if path.exists():
            if not resume:
                raise InputError(
                    f"{path} already holds records of an attack", hint="--resume to go on with it, or another folder"
                )
            self._take(read(path), settings)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_all()
            self._file = path.open("ab")
        except OSError as error:
            raise write_error(error, path.parent, "the records") from error

    def _take(self, records: Sequence[Record], settings: str) -> None:
        for record in records:
            if record.get("settings") != settings:
                raise InputError(
                    f"{self.path} is of another run, it cannot be gone on with",
                    asked=f"settings {settings}",
                    seen=f"settings {record.get('settings')}",
                    hint="the same model, data, recipe, resources, seed and threads; or another folder",
                )
            self.records[record["index"]] = record

    def add(self, record: Record) -> None:
        """Keep a record and bring it to disk; one that is already known stays as it is."""
        if record["index"] in self.records:
            return
        self.records[record["index"]] = record
        if self._file is not None and self.path is not None:
            try:
                self._file.write(_line(record))
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise write_error(error, self.path.parent, "the records") from error

    def finish(self) -> list[Record]:
        """All records by index; the file has them in this order, too."""
        self.close()
        self._write_all()
        return [self.records[index] for index in sorted(self.records)]

    def close(self) -> None:
        """Close the file; it holds what was added, in the order of adding."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_all(self) -> None:
        if self.path is not None:
            lines = b"".join(_line(self.records[index]) for index in sorted(self.records))
            write_atomically(self.path, lines, "the records")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
