# SPDX-License-Identifier: Apache-2.0
"""Inverses on the supports, and whole row-wise least squares by each of its ways, against float64."""

from __future__ import annotations

from types import ModuleType
from typing import Any
from unittest import mock

import torch
from buffers import Guarded, refused
from problems import features, gram_of
from tolerances import relative
from torch import Tensor

from pyprune.ops import masked_systems
from pyprune.ops.masked_lstsq import _masked_lstsq_triton, masked_lstsq_reference
from pyprune.triton_kernels import masked_lstsq
from pyprune.triton_kernels.masked_lstsq import invert_supports, supports

F32, F64 = torch.float32, torch.float64


def random_mask(rows: int, columns: int, density: float, generator: torch.Generator) -> Tensor:
    """One row empty where there are two, one full where there are three."""
    mask = torch.rand(rows, columns, generator=generator) < density
    mask[:1] = mask[:1] & (rows < 2)
    mask[1:2] = mask[1:2] | (rows > 2)
    return mask


def invert(device: str, rows: int, columns: int, size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows + columns)
    gram = gram_of(features(3 * columns + 2, columns, generator), 1e-2)
    scale = gram.diagonal().sqrt()
    system = gram / scale[:, None] / scale
    mask = random_mask(rows, columns, 0.5, generator)
    inside = Guarded(columns, columns, F32, device)
    inside.view.copy_(system)
    out = Guarded(rows, size * size, F32, device)
    got = out.view.view(rows, size, size)
    index, count = supports(mask.to(device), size)
    invert_supports(got, inside.view, index, count)
    error = 0.0
    for row, keep in enumerate(mask):
        n = int(keep.sum())
        wanted = torch.zeros(size, size, dtype=F64)
        wanted[:n, :n] = torch.linalg.inv(inside.view.cpu().double()[keep][:, keep])
        error = max(error, relative(got[row].cpu(), wanted))
    return {"error": error, "intact": inside.intact() and out.intact()}


def not_positive(device: str) -> dict[str, Any]:
    """A row whose system is singular tells so; its neighbour does not mind."""
    system = torch.eye(5, device=device)
    system[0, 1] = system[1, 0] = 1.0
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 1, 0]], dtype=torch.bool, device=device)
    index, count = supports(mask, 16)
    inverse = torch.zeros(2, 16, 16, device=device)
    invert_supports(inverse, system, index, count)
    eye = torch.eye(3, device=device)
    return {"error": 0.0, "told": bool(inverse[0].isnan().any()), "apart": torch.equal(inverse[1, :3, :3], eye)}


def solve(
    device: str,
    rows: int,
    columns: int,
    density: float,
    *,
    kind: str = "plain",
    damp: float = 1e-4,
    tolerance: float = 1e-14,
    limits: dict[str, float] | None = None,
    ways: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Solve with the module's limits changed, and see which ways are taken."""
    generator = torch.Generator().manual_seed(rows * 1009 + columns)
    system = gram_of(features(3 * columns + 2, columns, generator, kind), damp)
    target = torch.randn(rows, columns, dtype=F64, generator=generator) @ system
    mask = random_mask(rows, columns, density, generator)
    wanted, wanted_status = masked_lstsq_reference(system, target, mask)
    given = (system.to(device), target.to(device), mask.to(device), tolerance)
    taken = []

    def watched(module: ModuleType, name: str) -> Any:
        function = getattr(module, name)
        return mock.patch.object(module, name, lambda *args: (taken.append(name), function(*args))[1])

    with (
        mock.patch.multiple(masked_lstsq, **(limits or {"ROUNDS": masked_lstsq.ROUNDS})),
        watched(masked_lstsq, "_by_inverse"),
        watched(masked_lstsq, "_by_factor"),
        watched(masked_systems, "solve_in_double"),
    ):
        got, status = _masked_lstsq_triton(*given)
        seen = tuple(taken)
        again, _ = _masked_lstsq_triton(*given)
    good = wanted_status == 0
    return {
        "error": relative(got.cpu()[good], wanted[good]),
        "status": torch.equal(status.cpu() != 0, wanted_status != 0),
        "zeros": bool((got.cpu()[~mask] == 0).all()),
        "repeatable": torch.equal(got, again),
        "ways": seen == ways,
    }


def findings(device: str) -> dict[str, Any]:
    small, factor, double = "_by_inverse", "_by_factor", "solve_in_double"
    system = torch.eye(20, device=device)
    index, count = supports(torch.ones(2, 20, dtype=torch.bool, device=device)[:, :16], 16)
    out = torch.zeros(2, 16, 16, device=device)
    iterate = {"BATCHED": 1e9, "MOST": 4}
    return {
        "cases": {
            "invert one": invert(device, 1, 1, 16),
            "invert 16": invert(device, 4, 13, 16),
            "invert 32": invert(device, 3, 31, 32),
            "invert 64": invert(device, 2, 61, 64),
            "not positive": not_positive(device),
            "one": solve(device, 1, 1, 1.0, ways=(small,)),
            "no rows": solve(device, 0, 3, 0.5),
            "no columns": solve(device, 3, 0, 0.5),
            "one row": solve(device, 1, 7, 0.5, ways=(small,)),
            "small": solve(device, 5, 30, 0.4, ways=(small,)),
            "small, scaled": solve(device, 3, 29, 0.9, kind="scaled", damp=0.0, ways=(small,)),
            "small in parts": solve(device, 5, 30, 0.4, limits={"CHUNK": 17000}, ways=(small, small)),
            "factors": solve(device, 5, 150, 0.95, tolerance=1e-10, limits={"BATCHED": 0.0}, ways=(factor,)),
            "factors in parts": solve(device, 6, 40, 0.9, limits={"MOST": 4, "CHUNK": 1}, ways=(factor,) * 5),
            "iteration": solve(device, 5, 60, 0.5, limits=iterate),
            "singular": solve(device, 3, 30, 0.9, kind="deficient", damp=0.0, ways=(small, double)),
            "badly conditioned": solve(device, 3, 30, 0.9, kind="deficient", damp=3e-7, ways=(small, double)),
            "singular, large": solve(
                device, 3, 40, 0.9, kind="deficient", damp=0.0, limits={"MOST": 4}, ways=(factor, double)
            ),
            "iteration fails": solve(device, 3, 40, 0.9, tolerance=0.0, limits=iterate, ways=(double,)),
        },
        "refusals": refused(
            {
                "float64": lambda: invert_supports(out, system.double(), index, count),
                "inverse of a wrong shape": lambda: invert_supports(out[:, :8], system, index, count),
                "index of int64": lambda: invert_supports(out, system, index.long(), count),
                "a count missing": lambda: invert_supports(out, system, index, count[:1]),
                "apart": lambda: invert_supports(out.transpose(1, 2), system, index, count),
                "elsewhere": lambda: invert_supports(out, system.to("meta"), index, count),
                "size of no tile": lambda: invert_supports(
                    torch.zeros(2, 15, 15, device=device), system, index[:, :15].contiguous(), count
                ),
            }
        ),
    }
