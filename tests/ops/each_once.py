# SPDX-License-Identifier: Apache-2.0
"""Calls every op once on a GPU, by the backend named: a program of its own, for tools that watch a process.

`python each_once.py BACKEND COLUMNS` prints the ops it ran. Started by test_on_gpu.py.
"""

from __future__ import annotations

import os
import sys

import torch
from samples import OPS, copied, samples  # beside this file

from pyprune import backends


def main(backend: str, columns: int) -> None:
    """Run what the backend has; anything else is left out."""
    os.environ[backends.FORCE] = backend
    generator = torch.Generator().manual_seed(1)
    ran = []
    for op in (op for op in OPS if backend in backends.implementations(op)):
        arguments = samples(generator, columns, rows=6)[op]
        getattr(torch.ops.pyprune, op).default(*copied(arguments, "cuda"))
        ran.append(op)
    torch.cuda.synchronize()
    print(" ".join(ran))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
