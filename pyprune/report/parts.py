# SPDX-License-Identifier: Apache-2.0
"""Reading records that may be incomplete, damaged or made up: only checked values come out, complaints are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LONGEST = 300
_LARGEST_FILE = 2**28


def printable(value: object, limit: int = _LONGEST) -> str:
    """Text on one line without control, format and surrogate characters, cut to a length."""
    text = str(value)[: 4 * limit]
    text = "".join(letter if letter.isprintable() else " " if letter.isspace() else "\ufffd" for letter in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Part:
    """An object of a record; what is asked of it and is not of the right type is None, and a problem.

    Parameters
    ----------
    value : object
        What JSON gave.
    where : str
        For the problems.
    problems : list of str
        Receives them.
    """

    def __init__(self, value: object, where: str, problems: list[str]) -> None:
        self._where, self._problems = where, problems
        self.values: dict[str, Any] = {}
        if isinstance(value, dict):
            self.values = {str(key): entry for key, entry in value.items()}
        elif value is not None:
            self.complain("is not an object")

    def __bool__(self) -> bool:
        return bool(self.values)

    def number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """A finite number within bounds."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.complain("is not a number", key)
            return None
        found = float(value) if abs(value) < 2**1000 else math.inf
        if not low <= found <= high or not math.isfinite(found):
            self.complain(f"is {found:g}, out of range", key)
            return None
        return found

    def count(self, key: str) -> int | None:
        """A whole number of at least 0."""
        value = self.number(key, 0, 2**53)
        if value is not None and not value.is_integer():
            self.complain("is not a whole number", key)
            return None
        return None if value is None else int(value)

    def text(self, key: str) -> str | None:
        """Printable text; numbers count as text."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, (str, int, float)):
            self.complain("is not text", key)
            return None
        return printable(value) or None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(text for entry in self._list(key) if (text := printable(entry)))

    def part(self, key: str) -> Part:
        """An object within; an empty one if there is none."""
        return Part(self.values.get(key), f"{self._where}: {printable(key, 60)}", self._problems)

    def parts(self, key: str) -> Iterator[Part]:
        """A list of objects within."""
        for index, value in enumerate(self._list(key)):
            yield Part(value, f"{self._where}: {printable(key, 60)} {index}", self._problems)

    def interval(self, key: str, value: float) -> tuple[float, float] | None:
        """Two fractions around a value."""
        found = self._list(key)
        if not found:
            return None
        ends = Part({str(index): end for index, end in enumerate(found)}, self._where, [])
        low, high = ends.number("0", 0, 1), ends.number("1", 0, 1)
        if len(found) != 2 or low is None or high is None or not low <= value + 1e-9 or not value - 1e-9 <= high:
            self.complain("is no interval around the value", key)
            return None
        return low, high

    def flat(self, skip: tuple[str, ...] = ()) -> dict[str, str]:
        """Everything within as text, what is nested as JSON."""
        found = {}
        for key, value in self.values.items():
            if key not in skip and value is not None:
                shown = value if isinstance(value, (str, int, float)) else json.dumps(value, ensure_ascii=False)
                found[printable(key, 60)] = printable(shown)
        return found

    def _list(self, key: str) -> list[Any]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.complain("is not a list", key)
            return []
        return value

    def complain(self, what: str, key: str | None = None) -> None:
        """Note a problem with an entry, or with the whole."""
        where = self._where if key is None else f"{self._where}: {printable(key, 60)}"
        self._problems.append(f"{where} {what}")


def read_json(path: Path, problems: list[str]) -> Part | None:
    """The object in a file; None without the file, an empty one if it cannot be read."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("too large")
        return Part(json.loads(path.read_text(encoding="utf-8")), path.name, problems)
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {printable(error, 120) or type(error).__name__}")
        return Part({}, path.name, problems)
