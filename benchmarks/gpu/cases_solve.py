# SPDX-License-Identifier: Apache-2.0
"""The solvers' own ops: `sparsegpt`, `masked_lstsq`, `masked_cg` and `obs`, beside torch's way with the same problem.

The torch ones are in `solver/rivals.py`. Those that would take minutes do the first rows only, as their names say.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import activations
from gpu.measure import Case, relative, ways
from solver.rivals import batched_cholesky, damped, rank1_obs
from solver.rivals import sparsegpt as sparsegpt_torch
from torch import Tensor

from pyprune import Unstructured, ops

SWEEPS = ((4096, 4096), (4096, 11008))
FITS = ((4096, 4096, 0.5), (3072, 768, 0.5), (3072, 768, 0.875))
GREEDY = ((768, 768), (3072, 768), (768, 3072))
QUICK = (24, 32)
DAMP = 1e-2
FEW = 64  # rows of what is slow


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Of the four ops."""
    for rows, columns in (QUICK,) if quick else SWEEPS:
        yield _sparsegpt(*_problem(rows, columns, device), device)
    for rows, columns, sparsity in ((*QUICK, 0.5),) if quick else FITS:
        yield from _fits(*_problem(rows, columns, device), sparsity, device)
    for rows, columns in (QUICK,) if quick else GREEDY:
        yield _obs(*_problem(rows, columns, device), device)


def _problem(rows: int, columns: int, device: str) -> tuple[Tensor, Tensor]:
    """Weight, float32, and gram, float64."""
    x = activations(4 * columns, columns).to(device)
    gram = ops.gram(x, out=torch.zeros(columns, columns, dtype=torch.float64, device=device)) / len(x)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) / columns**0.5
    return weight.to(device), gram


def _ridge(gram: Tensor) -> float:
    return DAMP * float(gram.diagonal().mean())


def _sparsegpt(weight: Tensor, gram: Tensor, device: str) -> Case:
    rows, columns = weight.shape
    ends = [*range(128, columns, 128), columns]
    prune = torch.tensor([0] + [rows * end // 2 for end in ends]).diff().to(device)

    def call() -> Tensor:
        factor = ops.cholesky(gram, ridge=_ridge(gram), reverse=True).factor.float()
        return ops.sparsegpt(weight, factor, prune=prune)[0]

    return Case(
        "sparsegpt",
        {"rows": rows, "columns": columns, "with": "the factor"},
        {
            **ways("sparsegpt", call, device),
            "torch SparseGPT": lambda: sparsegpt_torch(weight, gram, Unstructured(0.5, scope="layer")),
        },
        operations=1.0 * rows * columns**2 + columns**3 / 3,
        bytes=8.0 * weight.numel() + 8.0 * columns**2,
    )


def _fits(weight: Tensor, gram: Tensor, sparsity: float, device: str) -> Iterator[Case]:
    rows, columns = weight.shape
    mask = (torch.rand(rows, columns, generator=torch.Generator().manual_seed(3)) >= sparsity).to(device)
    target = weight.double() @ gram
    exact = ops.masked_lstsq(gram, target, mask, damp=DAMP)
    kept = float((mask.sum(dim=1).double() ** 3).sum())
    what = {"rows": rows, "columns": columns, "sparsity": sparsity}
    few = min(FEW, rows)
    yield Case(
        "masked_lstsq",
        what,
        {
            **ways("masked_lstsq", lambda: ops.masked_lstsq(gram, target, mask, damp=DAMP), device),
            f"torch batched Cholesky, {few} rows": lambda: batched_cholesky(
                gram, target[:few], mask[:few], damping=DAMP
            ),
        },
        operations=kept / 3,
        bytes=16.0 * weight.numel() + 8.0 * columns**2,
        error=lambda found: relative(found, exact[: len(found)]),
    )
    system = damped(gram, DAMP)
    scale = system.diagonal().sqrt()
    system = (system / scale[:, None] / scale).contiguous()
    single = (target / scale.double()).float()
    start = torch.zeros_like(single)
    yield Case(
        "masked_cg",
        {**what, "steps": 10},
        {
            **ways("masked_cg", lambda: ops.masked_cg(system, single, mask, start, steps=10)[0], device),
            "torch": lambda: _torch_cg(system, single, mask, 10),
        },
        operations=22.0 * rows * columns**2,
        bytes=4.0 * columns**2 + 60.0 * weight.numel(),
    )


def _torch_cg(system: Tensor, target: Tensor, mask: Tensor, steps: int) -> Tensor:
    """The plain method, one torch operation after another."""
    x, residual = torch.zeros_like(target), torch.where(mask, target, 0.0)
    direction, square = residual, (residual * residual).sum(dim=1, keepdim=True)
    for _ in range(steps):
        product = torch.where(mask, direction @ system, 0.0)
        length = square / (direction * product).sum(dim=1, keepdim=True)
        x, residual = x + length * direction, residual - length * product
        following = (residual * residual).sum(dim=1, keepdim=True)
        direction, square = residual + following / square * direction, following
    return x


def _obs(weight: Tensor, gram: Tensor, device: str) -> Case:
    rows, columns = weight.shape
    inverse = torch.linalg.inv(gram + _ridge(gram) * torch.eye(columns, dtype=gram.dtype, device=device))
    few, steps = min(FEW, rows), columns // 2
    return Case(
        "obs",
        {"rows": rows, "columns": columns, "sparsity": 0.5},
        {
            **ways("obs", lambda: ops.obs(inverse, weight, steps, dtype=torch.float32)[0], device),
            f"torch rank-1 OBS, {few} rows": lambda: rank1_obs(weight[:few], gram, Unstructured(0.5)),
        },
        operations=1.0 * rows * columns * steps**2,
        bytes=16.0 * weight.numel() + 8.0 * columns**2,
    )
