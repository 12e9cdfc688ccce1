# SPDX-License-Identifier: Apache-2.0
"""Measuring: pyprune's products beside others, and pruned models beside dense ones.

``bench spmm`` on the command line is :func:`parse_cases` and :func:`run_spmm`, ``bench model`` is :func:`run_model`.
A kernel of your own takes part after :func:`register`.
"""

from __future__ import annotations

from pyprune.bench.model import run as run_model
from pyprune.bench.registry import Prepared, candidates, register, unregister
from pyprune.bench.spmm import parse_cases
from pyprune.bench.spmm import run as run_spmm

__all__ = ["Prepared", "candidates", "parse_cases", "register", "run_model", "run_spmm", "unregister"]
