# SPDX-License-Identifier: Apache-2.0
"""The record of a benchmark: one JSON object, its cases one a line.

Both kinds
    ``pyprune_bench`` 1 (the layout), ``kind`` "spmm" or "model", ``machine`` (:func:`pyprune.bench.machine.machine`),
    ``settings`` (what was asked), ``seconds`` (of the whole run), ``interrupted`` (whether cases are missing),
    ``missing`` (candidate: why it is not there at all), ``verdict`` (sentences), ``cases``.

A case has ``results``: candidate -> result, and a result a ``status``:
    "timed"    ``median``, ``p10``, ``p90``, ``p99`` (seconds a call), ``rounds``, ``error``
    "wrong"    ``error``, ``limit``, ``reason``; not timed
    "skipped"  ``reason``: does not serve this case
    "failed"   ``reason``: an exception

"spmm"
    ``candidates``: name -> ``kind`` ("pyprune", "registered", "dense", "sparse") and ``version``. A case is ``shape``
    [out, in], ``tokens``, ``sparsity``, ``kept``, ``dtype``, ``pattern`` (words), ``weights`` ("cached" or
    "streamed"). ``error`` is the largest ``|y - y64| / (|x| |W|ᵀ)``; a timed result also has ``nbytes`` of the weight
    (null: not said), ``copies`` it was cycled over, and ``details``.

"model"
    ``models``: "dense" and "pruned" -> ``path``, ``disk`` (bytes of ``folder``, ``weights`` and ``linears``, and
    what type the ``values`` have; null where they cannot be told), ``linear_sparsity``.
    ``candidates``: name -> ``model``, ``way``, ``dtype``, ``ours``, ``memory`` (bytes of ``process`` and ``model``,
    measured in a process of its own; null) and ``evaluation`` (as of ``pyprune evaluate``; null). A case is ``batch``
    and ``length`` ("real", or tokens). ``error`` is the largest
    difference of a logit to the same model eager in float32; a timed result also has ``p50``,
    ``sentences_per_second`` and ``tokens_per_second`` (real tokens).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyprune.bench.machine import machine
from pyprune.files import write_atomically

LAYOUT = 1
Document = dict[str, Any]


def new_document(kind: str, settings: Mapping[str, Any]) -> Document:
    """A record without cases; :func:`close_document` ends it."""
    return {
        "pyprune_bench": LAYOUT,
        "kind": kind,
        "machine": machine(),
        "settings": dict(settings),
        "seconds": time.perf_counter(),
        "interrupted": False,
        "missing": {},
        "cases": [],
    }


def close_document(document: Document, verdict: list[str]) -> Document:
    """Put in the time it took and the verdict, and the cases last."""
    document["seconds"] = round(time.perf_counter() - document["seconds"], 3)
    document["verdict"] = verdict
    document["cases"] = document.pop("cases")
    return document


def one_case_a_line(document: Mapping[str, Any]) -> str:
    """The JSON text of a record whose ``cases`` come last.

    >>> print(one_case_a_line({"name": "x", "cases": [{"a": 1}, {"a": 2}]}), end="")
    {"name": "x",
    "cases": [
    {"a": 1},
    {"a": 2}
    ]}
    """
    head = json.dumps({name: value for name, value in document.items() if name != "cases"}, allow_nan=False)
    body = ",\n".join(json.dumps(case, allow_nan=False) for case in document["cases"])
    return f'{head[:-1]},\n"cases": [\n{body}\n]}}\n'


def write(document: Document, path: Path) -> None:
    """Write the record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, one_case_a_line(document).encode(), "the benchmark's record")
