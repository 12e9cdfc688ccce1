# SPDX-License-Identifier: Apache-2.0
"""Which units a stored model has kept of the dense one, in a file of its own."""

from __future__ import annotations

import json
from pathlib import Path

from pyprune.errors import InputError
from pyprune.units import Units

UNITS = "pyprune_units.json"
_LARGEST = 2**26  # bytes; BERT-large takes half a megabyte


def write_units(folder: Path, units: Units) -> None:
    """Write units into a folder."""
    text = json.dumps(units.to_json(), separators=(",", ":"))
    (folder / UNITS).write_text(text + "\n", encoding="utf-8")


def read_units(folder: Path) -> Units | None:
    """Units of a folder; None where it does not say.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path = folder / UNITS
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is far too large", seen=f"{path.stat().st_size} bytes")
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read", seen=f"{type(error).__name__}: {error}"[:200]) from error
    return Units.from_json(record)
