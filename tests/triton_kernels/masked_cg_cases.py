# SPDX-License-Identifier: Apache-2.0
"""The Triton conjugate gradients against the same steps in float64."""

from __future__ import annotations

from typing import Any

import torch
from buffers import Guarded, refused
from problems import features, gram_of
from torch import Tensor

from pyprune.ops.masked_cg import _masked_cg_triton, _rest_of, leading_part, masked_cg_reference
from pyprune.triton_kernels import masked_cg
from pyprune.triton_kernels.masked_cg import EVERY, iterate

F32, F64 = torch.float32, torch.float64


def make(rows: int, columns: int, kind: str = "plain") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A system of unit diagonal, targets, masks (one empty, one full where there are three rows), a start."""
    generator = torch.Generator().manual_seed(rows * 1009 + columns)
    gram = gram_of(features(3 * columns + 2, columns, generator, kind), 1e-2)
    scale = gram.diagonal().sqrt()
    system = (gram / scale[:, None] / scale).float()
    mask = torch.rand(rows, columns, generator=generator) > 0.5
    if rows >= 3:
        mask[0], mask[1] = False, True
    target, start = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    return system, target, mask, start


def run(
    device: str,
    rows: int,
    columns: int,
    *,
    steps: int = 4,
    tolerance: float = 0.0,
    inverse: bool = False,
    ranked: bool = False,
    dense: bool = False,
) -> dict[str, Any]:
    system, target, mask, start = make(rows, columns)
    eye = torch.eye(columns)
    precondition = torch.linalg.inv(system + 0.1 * eye).contiguous() if inverse else None
    basis = leading_part(system, min(3, columns)) if ranked else None
    optimum = torch.linalg.solve(system.double(), target.double().T).T.float().contiguous() if dense else None
    extra = (precondition, basis, optimum)
    wide = [None if tensor is None else tensor.double() for tensor in extra]
    wanted, worth = masked_cg_reference(
        system.double(), target.double(), mask, start.double(), steps, tolerance, wide[0], wide[1], wide[2]
    )
    here = [None if tensor is None else tensor.to(device) for tensor in (system, target, mask, start, *extra)]
    got, gained = _masked_cg_triton(*here[:4], steps, tolerance, *here[4:])

    inside = Guarded(rows, columns, F32, device)
    inside.view.copy_(torch.where(mask, start, 0.0))
    goal, flags = Guarded(rows, columns, F32, device), Guarded(rows, columns, torch.bool, device)
    goal.view.copy_(target)
    flags.view.copy_(mask)
    last = Guarded(1, rows, F64, device)
    iterate(
        inside.view, last.view[0], here[0], goal.view, flags.view, steps=steps, tolerance=tolerance,
        precondition=here[4], basis=here[5], rest=None if basis is None else _rest_of(system, basis).to(device),
        dense=here[6],
    )  # fmt: skip
    told = ~mask.all(dim=1) if dense else torch.ones(rows, dtype=torch.bool)  # a full row's error goes to nothing
    size = float(wanted.abs().max().clamp(min=1e-3)) if wanted.numel() else 1.0
    error = float((got.cpu().double() - wanted).abs().max()) / size if wanted.numel() else 0.0
    return {
        "error": error,
        "worth": torch.allclose(gained.cpu()[told], worth[told], rtol=1e-3, atol=1e-6),
        "zeros": bool((got.cpu()[~mask] == 0).all()),
        "repeatable": torch.equal(got, inside.view) and torch.equal(gained, last.view[0]),
        "intact": all(buffer.intact() for buffer in (inside, goal, flags, last)),
    }


def in_parts(device: str) -> dict[str, Any]:
    """A low rank preconditioner whose small matrices do not fit at once."""
    cores, masked_cg.CORES = masked_cg.CORES, 20
    try:
        return run(device, 5, 19, ranked=True, dense=True)
    finally:
        masked_cg.CORES = cores


def stops(device: str) -> dict[str, Any]:
    """Rows that are done end the iteration a few steps later, and stay where they were."""
    system, target, mask, start = (tensor.to(device) for tensor in make(4, 21))
    taken = []
    advance = masked_cg._Iteration._advance
    masked_cg._Iteration._advance = lambda self: taken.append(advance(self))
    try:
        got, worth = _masked_cg_triton(system, target, mask, start, 200, 1e-6, None)
        used = len(taken)
        steps = 0
        while bool((masked_cg_reference(system, target, mask, start, steps, 1e-6, None)[1] > 1e-6).any()) or steps < 2:
            steps += 1
        exact, _ = _masked_cg_triton(system, target, mask, start, steps + 2, 1e-6, None)
    finally:
        masked_cg._Iteration._advance = advance
    return {
        "error": 0.0,
        "early": used <= steps + 3 * EVERY,
        "small": bool((worth <= 1e-6).all()),
        "frozen": torch.equal(got, exact),
    }


def findings(device: str) -> dict[str, Any]:
    system, target, mask, x = (tensor.to(device) for tensor in make(2, 3))
    worth = torch.zeros(2, dtype=F64, device=device)
    rest: dict[str, Any] = {"steps": 1, "tolerance": 0.0}
    basis, ones = torch.ones(1, 3, device=device), torch.ones(3, device=device)
    return {
        "cases": {
            "one": run(device, 1, 1),
            "no rows": run(device, 0, 3),
            "no columns": run(device, 3, 0),
            "no steps": run(device, 2, 5, steps=0),
            "primes": run(device, 7, 131),
            "error known": run(device, 5, 67, dense=True),
            "inverse": run(device, 5, 37, inverse=True),
            "inverse, error known": run(device, 4, 37, inverse=True, dense=True),
            "low rank": run(device, 5, 37, ranked=True),
            "low rank in parts": in_parts(device),
            "until it is enough": run(device, 4, 23, steps=40, tolerance=1e-3),
            "inverse until it is enough": run(device, 4, 23, steps=40, tolerance=1e-3, inverse=True),
            "stops": stops(device),
        },
        "refusals": refused(
            {
                "float64": lambda: iterate(x.double(), worth, system, target, mask, **rest),
                "worth in float32": lambda: iterate(x, worth.float(), system, target, mask, **rest),
                "system of a wrong shape": lambda: iterate(x, worth, system[:2], target, mask, **rest),
                "mask of bytes": lambda: iterate(x, worth, system, target, mask.to(torch.uint8), **rest),
                "apart": lambda: iterate(x, worth, system, target.T.contiguous().T, mask, **rest),
                "elsewhere": lambda: iterate(x, worth, system.to("meta"), target, mask, **rest),
                "basis alone": lambda: iterate(x, worth, system, target, mask, basis=basis, **rest),
                "two preconditioners": lambda: iterate(
                    x, worth, system, target, mask, basis=basis, rest=ones, precondition=system, **rest
                ),
            }
        ),
    }
