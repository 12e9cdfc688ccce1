# SPDX-License-Identifier: Apache-2.0
"""The Triton exchanges against tableaus written out in float64."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from buffers import Guarded, refused
from problems import features, gram_of
from tolerances import relative
from torch import Tensor

from pyprune import NM, LayerProblem, Unstructured, backends, solve
from pyprune.ops import masked_lstsq
from pyprune.ops.swap import _swap_triton, swap_reference
from pyprune.patterns import Pattern
from pyprune.triton_kernels import swap, tableau
from pyprune.triton_kernels.swap import Tile, improve
from pyprune.triton_kernels.tableau import bordered, positions_of, sweep

F32, F64 = torch.float32, torch.float64


def make(rows: int, columns: int, density: float, kind: str = "correlated") -> tuple[Tensor, Tensor, Tensor]:
    """A gram, targets, masks."""
    generator = torch.Generator().manual_seed(rows * 1009 + columns)
    gram = gram_of(features(3 * columns + 5, columns, generator, kind), 1e-3)
    rhs = torch.randn(rows, columns, dtype=F64, generator=generator) @ gram
    return gram, rhs, torch.rand(rows, columns, generator=generator) < density


def run(
    device: str,
    rows: int,
    columns: int,
    density: float = 0.5,
    *,
    single: bool = True,
    of: int = 0,
    most: int = 10**6,
    inverse: bool = False,
    chosen: Tensor | None = None,
    least: float = 1e-3,
    depth: int = swap.DEPTH,
    workspace: int = swap.WORKSPACE,
    tile: Tile | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Exchange in float32 (`single`) or float64, among the columns `chosen`, by tableaus made anew after `depth`."""
    gram, rhs, mask = make(rows, columns, density)
    if chosen is not None:
        chosen = chosen.expand(rows, -1).contiguous()
        rhs = rhs - masked_lstsq(gram, rhs, mask).scatter(1, chosen, 0.0) @ gram
    limits = least * (torch.linalg.solve(gram, rhs.T).T * rhs).sum(dim=1)
    wanted = swap_reference(gram, rhs, mask, limits, most, of, chosen, None, False)
    given = [
        None if tensor is None else tensor.to(device)
        for tensor in (gram, rhs, mask, limits, chosen, torch.linalg.inv(gram) if inverse else None)
    ]
    with (
        mock.patch.object(swap, "DEPTH", depth),
        mock.patch.object(swap, "WORKSPACE", workspace),
        mock.patch.object(swap, "tile_for", swap.tile_for if tile is None else lambda *_: tile),
    ):
        first = _swap_triton(*given[:4], most, of, *given[4:], single)
        second = _swap_triton(*given[:4], most, of, *given[4:], single) if again else first
    found, exchanged, worth = (tensor.cpu() for tensor in first)
    known = torch.isfinite(wanted[2])
    return {
        "error": relative(worth[known], wanted[2][known]),
        "mask": torch.equal(found, wanted[0]),
        "exchanged": torch.equal(exchanged, wanted[1]),
        "unknown": torch.equal(torch.isfinite(worth), known),
        "repeatable": all(torch.equal(a, b) for a, b in zip(first, second, strict=True)),
        "some": int(exchanged.sum()) > 0 or most == 0 or density in (0.0, 1.0) or rows * columns < 2,
    }


def tableaus(device: str) -> dict[str, Any]:
    """Tableaus of rows with as many as, fewer than, and more columns in N than a panel holds, and with none."""
    gram, rhs, _ = make(4, 40, 0.5)
    unit = gram.diagonal().sqrt()
    gram, rhs = (gram / unit / unit[:, None]).to(device), (rhs / unit).to(device)
    mask = (torch.arange(40) < torch.tensor([[16], [5], [37], [0]])).to(device)
    at = positions_of(mask, torch.arange(40, device=device).expand(4, 40))
    with mock.patch.object(tableau, "PANEL", 16):
        swept = bordered(gram, rhs, at)
        energy, good = sweep(swept, at.inside, 37)
    error = 0.0
    for row in range(4):
        here = at.index[row] >= 0
        kept, rest = mask[row], ~mask[row]
        own = torch.linalg.inv(gram[kept][:, kept])
        across, weight = own @ gram[kept][:, rest], own @ rhs[row, kept]
        schur = gram[rest][:, rest] - gram[rest][:, kept] @ across
        wanted = torch.cat([torch.cat([-own, across], 1), torch.cat([across.T, schur], 1)])
        border = torch.cat([weight, rhs[row, rest] - gram[rest][:, kept] @ weight])
        error = max(
            error,
            relative(swept[row][here][:, here].cpu(), wanted.cpu()),
            relative(swept[row][here][:, -1].cpu(), border.cpu()),
            abs(float(energy[row]) - float(weight @ rhs[row, kept])),
        )
    return {"error": error, "good": bool(good.all())}


def buffers(device: str, dtype: torch.dtype, of: int) -> dict[str, Any]:
    """Nothing is touched around what goes in and comes out."""
    gram, rhs, mask = make(2, 24, 0.5)
    wanted = swap_reference(gram, rhs, mask, torch.zeros(2, dtype=F64), 99, of, None, None, False)
    unit = gram.diagonal().sqrt()
    guarded = [
        Guarded(*shape, kind, device)
        for shape, kind in (
            ((2, 24), torch.bool),
            ((1, 2), torch.int64),
            ((2, 24), F64),
            ((24, 24), dtype),
            ((2, 24), dtype),
        )
    ]
    found, exchanged, worth, system, border = (buffer.view for buffer in guarded)
    found.copy_(mask)
    system.copy_(gram / unit / unit[:, None])
    border.copy_(rhs / unit)
    improve(found, exchanged[0], worth, system, border, torch.zeros(2, dtype=F64, device=device), most=99, of=of)
    known = torch.isfinite(wanted[2])
    return {
        "error": relative(worth.cpu()[known], wanted[2][known]),
        "intact": all(buffer.intact() for buffer in guarded),
        "mask": torch.equal(found.cpu(), wanted[0]),
    }


def ties(device: str) -> dict[str, Any]:
    """The lower pair first, whatever tile it is in: of (0, 11) and (1, 6) the former, which is in a later one."""
    gram = torch.eye(12, dtype=F64, device=device)
    gram[1, 6] = gram[6, 1] = gram[0, 11] = gram[11, 0] = 0.5
    rhs = torch.ones(1, 12, dtype=F64, device=device)
    rhs[0, 6] = rhs[0, 11] = 3.0
    mask = torch.arange(12, device=device)[None] < 6
    limit = torch.zeros(1, dtype=F64, device=device)
    with (
        mock.patch.object(swap, "tile_for", return_value=Tile(2, 2, 1)),
        mock.patch.object(swap, "LOOK", 2),
        mock.patch.object(swap, "warps_for", return_value=1),
    ):
        found, _, _ = _swap_triton(gram, rhs, mask, limit, 1, 0, None, None, True)
    return {"error": 0.0, "mask": torch.nonzero(found[0] != mask[0])[:, 0].tolist() == [0, 11]}


def stalled(device: str) -> dict[str, Any]:
    """Exchanges that lower no loss, because gains drown in rounding, end with the tableau that shows it."""
    gram, rhs, mask = make(2, 24, 0.5)
    given = [tensor.to(device) for tensor in (gram, rhs, mask, torch.zeros(2, dtype=F64))]

    def same_energy(*args: Any) -> tuple[Tensor, Tensor]:
        energy, good = sweep(*args)
        return torch.ones_like(energy), good

    with mock.patch.object(swap, "DEPTH", 2), mock.patch.object(swap, "sweep", same_energy):
        found, exchanged, _ = _swap_triton(*given, 1000, 0, None, None, True)
    return {
        "error": 0.0,
        "ended": exchanged.tolist() == [2, 2],
        "count": torch.equal(found.cpu().sum(dim=1), mask.sum(dim=1)),
    }


def not_positive(device: str) -> dict[str, Any]:
    """Of two rows the second's system is not; float32 leaves to float64 what it cannot tell."""
    gram = torch.eye(6, dtype=F64, device=device)
    gram[0, 1] = gram[1, 0] = 2.0
    gram[2, 3] = gram[3, 2] = 1 - 1e-9
    mask = torch.zeros(3, 6, dtype=torch.bool, device=device)
    mask[0, 4], mask[1, :2], mask[2, 2:4] = True, True, True
    rhs = torch.ones(3, 6, dtype=F64, device=device)
    given = gram, rhs, mask, torch.full((3,), torch.inf, dtype=F64, device=device), 9, 0, None, None
    found, exchanged, worth = _swap_triton(*given, True)
    exact = _swap_triton(*given, False)
    return {
        "error": 0.0,
        "told": exchanged.tolist() == [0, -1, 0],
        "unchanged": torch.equal(found, mask),
        "exact": torch.equal(worth[1:], exact[2][1:]),
    }


def large_units(device: str) -> dict[str, Any]:
    """Sizes that float32 cannot hold."""
    gram, rhs, mask = (tensor.to(device) for tensor in make(2, 12, 0.5))
    least = torch.zeros(2, dtype=F64, device=device)
    plain = _swap_triton(gram, rhs, mask, least, 99, 0, None, None, True)
    other = _swap_triton(gram * 2.0**200, rhs * 2.0**-100, mask, least, 99, 0, None, None, True)
    return {
        "error": 0.0,
        "mask": torch.equal(plain[0], other[0]),
        "worth": torch.equal(plain[2] * 2.0**-200 * 2.0**-200, other[2]),
    }


def solved(device: str, pattern: Pattern) -> dict[str, Any]:
    """The solver takes it as it is, and no row's loss rises."""
    gram, rhs, _ = make(4, 16, 0.5)
    weight = torch.linalg.solve(gram, rhs.T).T
    problem = LayerProblem(weight.to(device), gram.to(device))
    choose, calls = backends.choose, []

    def triton_for_swap(op: str, kind: str) -> backends.Choice:
        calls.append(op)
        return backends.Choice("triton", _swap_triton, ()) if op == "swap" else choose(op, kind)

    with mock.patch.object(backends, "choose", triton_for_swap):
        found = solve(problem, pattern, "swap")
    with mock.patch.object(backends, "choose", lambda op, _: backends._choose(op, "cpu", "reference")):
        wanted = solve(LayerProblem(weight, gram), pattern, "swap")
    return {
        "error": abs(found.error - wanted.error) / wanted.error,
        "called": "swap" in calls,
        "mask": torch.equal(found.mask.cpu(), wanted.mask),
    }


def findings(device: str) -> dict[str, Any]:
    some = torch.tensor([[0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]])
    eye, row, mask = torch.eye(4, device=device), torch.ones(2, 4, device=device), torch.ones(2, 4, device=device) > 0
    number, worth = torch.zeros(2, dtype=torch.int64, device=device), torch.zeros(2, 4, dtype=F64, device=device)
    least = torch.zeros(2, dtype=F64, device=device)
    return {
        "cases": {
            "one": run(device, 1, 1),
            "no rows": run(device, 0, 3),
            "no columns": run(device, 2, 0),
            "all kept": run(device, 2, 9, 1.0),
            "none kept": run(device, 2, 9, 0.0, single=False),
            "none may go": run(device, 2, 9, most=0),
            "few kept": run(device, 3, 37, 0.2),
            "most kept": run(device, 2, 37, 0.8),
            "most kept, float64": run(device, 2, 37, 0.8, single=False, inverse=True),
            "both sides": run(device, 4, 13, inverse=True),
            "at most two": run(device, 2, 24, most=2, single=False),
            "anew": run(device, 2, 29, depth=3, again=True),
            "anew, float64": run(device, 2, 29, single=False, depth=2, most=7),
            "in parts": run(device, 3, 13, workspace=100_000),
            "small tiles": run(device, 1, 40, 0.4, single=False, tile=Tile(8, 16, 1)),
            "2:4": run(device, 2, 32, of=4, again=True),
            "2:4, most kept": run(device, 2, 20, 0.8, of=4, inverse=True),
            "groups of 5, float64": run(device, 2, 35, single=False, of=5, depth=3),
            "groups of 16, small tiles": run(device, 1, 32, of=16, tile=Tile(8, 4, 1)),
            "one group": run(device, 1, 12, of=12),
            "some columns": run(device, 2, 24, chosen=some),
            "some groups, float64": run(device, 2, 24, chosen=some, of=4, single=False),
            "tableaus, float64": tableaus(device),
            "buffers": buffers(device, F32, 0),
            "buffers, float64": buffers(device, F64, 4),
            "ties": ties(device),
            "stalled": stalled(device),
            "not positive": not_positive(device),
            "large units": large_units(device),
            "solver": solved(device, Unstructured(0.5, "layer")),
            "solver, 2:4": solved(device, NM(2, 4)),
        },
        "refusals": refused(
            {
                "float16": lambda: improve(mask, number, worth, eye.half(), row.half(), least, most=1),
                "two dtypes": lambda: improve(mask, number, worth, eye.double(), row, least, most=1),
                "mask of bytes": lambda: improve(mask.byte(), number, worth, eye, row, least, most=1),
                "wrong shape": lambda: improve(mask, number, worth, eye[:2], row, least, most=1),
                "elsewhere": lambda: improve(mask, number, worth, eye.to("meta"), row, least, most=1),
                "groups that do not fit": lambda: improve(mask, number, worth, eye, row, least, most=1, of=3),
                "columns of int32": lambda: improve(mask, number, worth, eye, row, least, mask.int(), most=1),
            }
        ),
    }
