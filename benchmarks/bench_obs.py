# SPDX-License-Identifier: Apache-2.0
"""One layer at 50 %: pyprune's exact greedy OBS beside the plain rank-1 algorithm and SparseGPT in torch.

The torch ones are in `solver/rivals.py`, written from the published algorithms. `rank1_obs` has the form in which
public implementations run it: a batch of rows, each with its own copy of the inverse, one weight removed per row and
step, a batched rank-1 update after each: 32 rows at a time, the product and then its subtraction, as theirs; and in
place, which is faster. Removal stops at the wanted count. Both in float32, all from the same damped Hessian.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Report, activations, arguments, interleaved
from solver.rivals import DAMPING, rank1_obs
from solver.rivals import sparsegpt as sparsegpt_torch
from torch import Tensor

from pyprune import LayerProblem, Unstructured, solve

SPARSITY = 0.5


def ours(weight: Tensor, gram: Tensor, solver: str) -> Tensor:
    """Solve with pyprune in the pattern of the torch rival, factorisation included."""
    pattern = Unstructured(SPARSITY, scope="row" if solver == "obs" else "layer")
    return solve(LayerProblem(weight, gram), pattern, solver=solver, damping=DAMPING).weight


def main() -> None:
    options = arguments("Greedy OBS on one layer", rounds=3)
    report = Report("obs", write_file=not options.no_write)
    rows, columns = (48, 64) if options.quick else (384, 384)
    x = activations(4 * columns, columns).double()
    gram = x.T @ x / len(x)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) / columns**0.5
    by_row, by_layer = (Unstructured(SPARSITY, scope=scope) for scope in ("row", "layer"))
    candidates: dict[str, Callable[[], Tensor]] = {
        "pyprune obs": lambda: ours(weight, gram, "obs"),
        "torch rank-1 OBS, batch 32": lambda: rank1_obs(weight, gram, by_row, batch=32, in_place=False),
        "torch rank-1 OBS, batch 32, in place": lambda: rank1_obs(weight, gram, by_row, batch=32),
        "torch rank-1 OBS, all rows": lambda: rank1_obs(weight, gram, by_row, batch=rows),
        "pyprune sparsegpt": lambda: ours(weight, gram, "sparsegpt"),
        "torch SparseGPT": lambda: sparsegpt_torch(weight, gram, by_layer),
    }
    problem = LayerProblem(weight, gram)
    found = {name: call() for name, call in candidates.items()}
    same = (found["pyprune obs"] != 0) == (found["torch rank-1 OBS, batch 32"] != 0)
    report.add(
        {"rows": rows, "columns": columns, "sparsity": SPARSITY, "damping": DAMPING},
        interleaved(candidates, rounds=options.rounds, warmup=0),
        ours="pyprune obs",
        layer_error={name: problem.error(result) for name, result in found.items()},
        sparsity_reached={name: (result == 0).float().mean().item() for name, result in found.items()},
        same_mask_as_rank1=same.float().mean().item(),
    )
    report.write()


if __name__ == "__main__":
    main()
