# SPDX-License-Identifier: Apache-2.0
"""One layer at 50 %: pyprune's exact greedy OBS beside the plain rank-1 algorithm and SparseGPT in torch.

`rank1_obs` is written here from the published algorithm (Optimal Brain Compression, arXiv 2208.11580,
algorithm 1; AKR, arXiv 2310.13191) in the form its public implementations run it: a batch of rows, each
with its own copy of the inverse, one weight removed per row and step, a batched rank-1 update after
each: 32 rows at a time, the product and then its subtraction, as theirs; and in place, which is faster.
Removal stops at the wanted count. `sparsegpt_torch` is SparseGPT (arXiv 2301.00774): blocks of 128
columns, mask by w^2 / u^2 over a block. Both in float32, all from the same damped Hessian.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Report, activations, arguments, interleaved
from torch import Tensor

import pyprune
from pyprune import LayerProblem, Unstructured, solve

DAMPING = 1e-2  # of the mean diagonal, for all
SPARSITY = 0.5


def damped(gram: Tensor) -> Tensor:
    """Hessian in float32 with the ridge on its diagonal."""
    return (gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)).float()


def rank1_obs(weight: Tensor, gram: Tensor, sparsity: float, *, batch: int, in_place: bool = True) -> Tensor:
    """Greedy OBS row by row, `batch` rows at a time, one explicit inverse per row.

    Parameters
    ----------
    weight : Tensor, shape (rows, columns), float32
    gram : Tensor, shape (columns, columns)
    batch : int
        Rows at a time; memory is batch * columns^2 floats.
    in_place : bool
        Subtract the outer products while they are taken, or take them first and then subtract.
    """
    rows, columns = weight.shape
    steps = columns - pyprune.patterns.kept_count(columns, sparsity)
    inverse = torch.linalg.inv(damped(gram))
    result = weight.clone()
    for first in range(0, rows, batch):
        w = result[first : first + batch]
        inverses = inverse.repeat(len(w), 1, 1)
        alive = torch.ones_like(w, dtype=torch.bool)
        every = torch.arange(len(w))
        for _ in range(steps):
            diagonal = inverses.diagonal(dim1=1, dim2=2)
            scores = torch.where(alive, w * w / diagonal, torch.inf)
            pick = scores.argmin(dim=1)
            row = inverses[every, pick]
            pivot = row[every, pick].unsqueeze(1)
            w -= row * (w[every, pick].unsqueeze(1) / pivot)
            scaled = row / pivot.sqrt()
            if in_place:
                inverses.baddbmm_(scaled.unsqueeze(2), scaled.unsqueeze(1), alpha=-1.0)
            else:
                inverses -= scaled.unsqueeze(2) @ scaled.unsqueeze(1)
            # A removed column must stay out: keep its diagonal harmless and its weight at zero.
            alive[every, pick] = False
            inverses[every, pick, pick] = 1.0
            w.masked_fill_(~alive, 0.0)
    return result


def sparsegpt_torch(weight: Tensor, gram: Tensor, sparsity: float, *, block: int = 128) -> Tensor:
    """SparseGPT in plain torch.

    Parameters
    ----------
    weight : Tensor, shape (rows, columns), float32
    gram : Tensor, shape (columns, columns)
    """
    w = weight.clone()
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped(gram))), upper=True)
    columns = w.shape[1]
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part = w[:, start:end].clone()
        factor = upper[start:end, start:end]
        errors = torch.zeros_like(part)
        scores = part**2 / factor.diagonal() ** 2
        threshold = scores.flatten().kthvalue(max(1, int(scores.numel() * sparsity))).values
        drop = scores <= threshold
        for i in range(end - start):
            new = part[:, i].masked_fill(drop[:, i], 0.0)
            error = (part[:, i] - new) / factor[i, i]
            part[:, i] = new
            part[:, i + 1 :] -= error.unsqueeze(1) * factor[i, i + 1 :]
            errors[:, i] = error
        w[:, start:end] = part
        w[:, end:] -= errors @ upper[start:end, end:]
    return w


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
    candidates: dict[str, Callable[[], Tensor]] = {
        "pyprune obs": lambda: ours(weight, gram, "obs"),
        "torch rank-1 OBS, batch 32": lambda: rank1_obs(weight, gram, SPARSITY, batch=32, in_place=False),
        "torch rank-1 OBS, batch 32, in place": lambda: rank1_obs(weight, gram, SPARSITY, batch=32),
        "torch rank-1 OBS, all rows": lambda: rank1_obs(weight, gram, SPARSITY, batch=rows),
        "pyprune sparsegpt": lambda: ours(weight, gram, "sparsegpt"),
        "torch SparseGPT": lambda: sparsegpt_torch(weight, gram, SPARSITY),
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
