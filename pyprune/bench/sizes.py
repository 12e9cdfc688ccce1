# SPDX-License-Identifier: Apache-2.0
"""Bytes of a model on disk and in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyprune.models import adapter_for

_NO_VALUES = ("BOOL", "U8", "I16", "I32", "I64")  # masks and indices


def encoder_linears(model: Any) -> list[str]:
    """Full names of the prunable linears of all blocks."""
    adapter = adapter_for(model)
    return [
        f"{adapter.block_name(model, index)}.{name}"
        for index, block in enumerate(adapter.blocks(model))
        for name in adapter.linears(block)
    ]


def zeros(model: Any, linears: Sequence[str]) -> float:
    """Fraction of zeros in the weights of these linears."""
    weights = [model.get_submodule(name).weight for name in linears]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(int(weight.numel()) for weight in weights)


def on_disk(path: str, linears: Sequence[str]) -> dict[str, Any]:
    """Bytes of a folder.

    Parameters
    ----------
    path : str
        A name on the hub has no folder of its own: nothing is told of it.
    linears : sequence of str
        Names of the modules whose weights are counted, however they are stored: everything below the name except the
        bias.

    Returns
    -------
    dict
        ``folder`` (all files), ``weights`` (safetensors), ``linears``; ``values``: what type most values of the
        linears have ("F32", "F16", ...).
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return {"folder": None, "weights": None, "linears": None, "values": None}
    files = [file for file in folder.rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix == ".safetensors" and not file.name.startswith("pyprune_")]
    below = tuple(f"{name}." for name in linears)
    counted: Counter[str] = Counter()
    for file in weights:
        for name, (kind, size) in _tensors(file).items():
            if name.startswith(below) and not name.endswith(".bias"):
                counted[kind] += size
    values = [kind for kind, _ in counted.most_common() if kind not in _NO_VALUES]
    return {
        "folder": sum(file.stat().st_size for file in files),
        "weights": sum(file.stat().st_size for file in weights),
        "linears": counted.total() or None,
        "values": values[0] if values else None,
    }


def _tensors(file: Path) -> dict[str, tuple[str, int]]:
    """Type and bytes of each tensor, read from the header of a safetensors file."""
    with file.open("rb") as handle:
        header: dict[str, Any] = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = (str(entry["dtype"]), int(end) - int(begin))
    return found


def resident(path: str, way: str, dtype: str, *, threads: int) -> dict[str, int] | None:
    """Bytes in memory of a model run in a way, measured in a process of its own.

    Returns
    -------
    dict, optional
        ``process``: resident memory after a first batch; ``model``: by how much that is more than before the model
        was opened. None where the system does not tell, or the process failed.
    """
    request = json.dumps({"path": path, "way": way, "dtype": dtype, "threads": threads})
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pyprune.bench.resident", request],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if done.returncode != 0 or not done.stdout.strip():
        return None
    answer: dict[str, int] | None = json.loads(done.stdout.splitlines()[-1])
    return answer
