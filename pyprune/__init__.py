# SPDX-License-Identifier: Apache-2.0
"""pyprune: prune Transformer language models, fast and accurately.

>>> import torch, pyprune
>>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
>>> w = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
>>> problem = pyprune.LayerProblem(w, pyprune.ops.gram(x) / len(x))
>>> solution = pyprune.solve(problem, pyprune.Unstructured(0.5), solver="obs")
>>> int((solution.weight == 0).sum())
32
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

# GNU OpenMP reads this when torch loads it: threads that wait for others give their core away after microseconds
# instead of milliseconds. It costs nothing on a machine of one's own, and saves most of the time on one whose cores are
# shared (six times, where a second process of as many threads ran beside).
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch  # noqa: F401  (before the compiled extension, so that both share torch's OpenMP runtime)

from pyprune import ops, solvers
from pyprune.errors import BackendError, InputError, NumericsError, PypruneError
from pyprune.patterns import NM, Block, Unstructured
from pyprune.solvers import LayerProblem, LayerSolution, solve, solve_curve
from pyprune.units import Units
from pyprune.version import __version__

if TYPE_CHECKING:
    from pyprune.methods import prune, prune_streaming, soup, train_prune, trim_vocabulary
    from pyprune.result import PruneResult, load
    from pyprune.sparse import SparseLinear, optimize, sparsify
    from pyprune.structured import compact

# Whole-model names need transformers; they are imported when first used, so that the solver alone stays light.
_LAZY = {
    "prune": "pyprune.methods",
    "prune_streaming": "pyprune.methods",
    "soup": "pyprune.methods",
    "compact": "pyprune.structured",
    "load": "pyprune.result",
    "optimize": "pyprune.sparse",
    "PruneResult": "pyprune.result",
    "SparseLinear": "pyprune.sparse",
    "sparsify": "pyprune.sparse",
    "train_prune": "pyprune.methods",
    "trim_vocabulary": "pyprune.methods",
}

__all__ = [
    "NM",
    "BackendError",
    "Block",
    "InputError",
    "LayerProblem",
    "LayerSolution",
    "NumericsError",
    "PruneResult",
    "PypruneError",
    "SparseLinear",
    "Units",
    "Unstructured",
    "__version__",
    "compact",
    "load",
    "ops",
    "optimize",
    "prune",
    "prune_streaming",
    "solve",
    "solve_curve",
    "solvers",
    "soup",
    "sparsify",
    "train_prune",
    "trim_vocabulary",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pyprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
