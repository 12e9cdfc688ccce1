# SPDX-License-Identifier: Apache-2.0
"""The process in which :func:`pyprune.bench.sizes.resident` measures one model."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
from typing import Any

import torch

from pyprune.bench.batches import random_batches
from pyprune.bench.opening import open_checkpoint
from pyprune.bench.ways import DTYPES, way
from pyprune.commands.common import apply_threads
from pyprune.methods.accounting import resident_bytes

_TOKENS = 128


def main(request: str) -> None:
    """Open a model, run one sequence, print the bytes as JSON.

    The model is run as it is first and dropped again: what the libraries load and keep for themselves is there before
    the count begins.
    """
    asked = json.loads(request)
    apply_threads(asked["threads"])
    run_once(asked["path"], None, asked["dtype"])
    before = _now()
    module = run_once(asked["path"], asked["way"], asked["dtype"])
    after = _now()
    known = None
    if before is not None and after is not None:
        known = {"process": after, "model": max(0, after - before)}
    print(json.dumps(known))
    del module


def run_once(path: str, name: str | None, dtype: str) -> Any:
    """A model run in a way, or as it is; nothing else is left of opening it."""
    model = open_checkpoint(path)
    positions = int(getattr(model.config, "max_position_embeddings", None) or _TOKENS)
    (batch,) = random_batches(model, 1, min(_TOKENS, max(1, positions - 4)), seed=0, count=1)
    with torch.inference_mode():
        module = model if name is None else way(name).make(model, DTYPES[dtype], batch)
        module(**batch)
    return module


def _now() -> int | None:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator keeps for later is no model
    return resident_bytes()


if __name__ == "__main__":
    main(sys.argv[1])
