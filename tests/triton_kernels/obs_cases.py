# SPDX-License-Identifier: Apache-2.0
"""The Triton removals against explicit inverses in float64."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from buffers import Guarded, refused
from problems import features, gram_of
from tolerances import relative
from torch import Tensor

from pyprune.ops.obs import _obs_triton, obs_reference
from pyprune.triton_kernels import obs
from pyprune.triton_kernels.obs import Removals, remove, substitute

F32, F64 = torch.float32, torch.float64


def make(rows: int, columns: int, kind: str, damp: float) -> tuple[Tensor, Tensor, Tensor]:
    """A gram, its inverse, weights."""
    generator = torch.Generator().manual_seed(rows * 1009 + columns)
    gram = gram_of(features(2 * columns + 3, columns, generator, kind), damp)
    inverse = torch.linalg.inv(gram)
    return gram, (inverse + inverse.T) / 2, torch.randn(rows, columns, dtype=F64, generator=generator)


def run(
    device: str,
    rows: int,
    columns: int,
    count: int | list[int],
    *,
    single: bool = True,
    keep: int = 0,
    of: int = 0,
    kind: str = "correlated",
    damp: float = 1e-3,
    again: bool = False,
    factors: int = obs.FACTORS,
) -> dict[str, Any]:
    """Prune in float32 (`single`) or float64; `again`: whether float32 is expected to leave a row to float64."""
    _, inverse, weight = make(rows, columns, kind, damp)
    counts = torch.as_tensor(count).expand(rows).contiguous()
    steps = int(counts.max()) if rows else 0
    wanted, order, loss = obs_reference(inverse, weight, counts, steps, keep, of, False)
    given = (inverse.to(device), weight.to(device), counts.to(device), steps, keep, of, single)
    dtypes = []
    prune = obs.prune

    def watched(*args: Any, **kwargs: Any) -> Any:
        dtypes.append(kwargs["dtype"])
        return prune(*args, **kwargs)

    with mock.patch.object(obs, "prune", watched), mock.patch.object(obs, "FACTORS", factors):
        got, removed, cost = (tensor.cpu() for tensor in _obs_triton(*given))
    repeated = _obs_triton(*given)
    return {
        "error": relative(got, wanted),
        "loss": relative(cost, loss),
        "order": torch.equal(removed, order),
        "zeros": bool((got.gather(1, removed.clamp(min=0))[removed >= 0] == 0).all()) if columns else True,
        "repeatable": all(torch.equal(a, b.cpu()) for a, b in zip((got, removed, cost), repeated, strict=True)),
        "dtypes": (F64 in dtypes) == (again or not single) or not steps,
    }


def buffers(device: str, dtype: torch.dtype, columns: int, count: int) -> dict[str, Any]:
    """Nothing is touched around V and the inputs, and V holds the factor of what went."""
    _, inverse, weight = make(2, columns, "correlated", 1e-3)
    square, row = Guarded(columns, columns, dtype, device), Guarded(2, columns, dtype, device)
    square.view.copy_(inverse / inverse.diagonal().max())
    row.view.copy_(weight)
    lines = Guarded(2 * count, columns, dtype, device)
    counts = torch.full((2,), count, dtype=torch.int32, device=device)
    gone = remove(square.view, row.view, counts, lines.view.view(2, count, columns))
    error = 0.0
    for r in range(2):
        at = gone.order[r].long()
        own = square.view[at][:, at].double().cpu()
        lower = gone.factor[r][:, at].T.tril().double().cpu()
        x = row.view[r, at].clone()[None].repeat(2, 1).contiguous()
        substitute(one_row(gone, r), x, forward=True, backward=True)
        error = max(error, relative(lower @ lower.T, own), relative(own @ x[r].double().cpu(), row.view[r, at].cpu()))
    return {"error": error, "loss": 0.0, "intact": all(buffer.intact() for buffer in (square, row, lines))}


def one_row(gone: Removals, row: int) -> Removals:
    """The same row twice."""
    return Removals(**{name: tensor[[row, row]].contiguous() for name, tensor in vars(gone).items()})


def not_positive(device: str) -> dict[str, Any]:
    """A row runs out of pivots after its first removal, its neighbour does not."""
    inverse = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=F64)).to(device)
    weight = torch.ones(2, 4, dtype=F64, device=device)
    _, order, loss = _obs_triton(inverse, weight, torch.tensor([3, 2], device=device), 3, 0, 0, True)
    return {
        "error": 0.0,
        "loss": 0.0,
        "order": order.tolist() == [[0, 3, -1], [0, 3, -1]],
        "told": loss.isnan().tolist() == [[False, False, True], [False, False, False]],
    }


def ties(device: str) -> dict[str, Any]:
    """The lower column first, across the walk's blocks."""
    inverse, weight = torch.eye(300, dtype=F64, device=device), torch.ones(1, 300, dtype=F64, device=device)
    weight[0, :126] = 2.0
    with mock.patch.object(obs, "line_for", return_value=obs.Line(block=128, depth=8, warps=1)):
        _, order, _ = _obs_triton(inverse, weight, torch.tensor([6], device=device), 6, 0, 0, True)
    return {"error": 0.0, "loss": 0.0, "order": order.tolist() == [list(range(126, 132))]}


def large_units(device: str) -> dict[str, Any]:
    """Sizes that float32 cannot hold."""
    _, inverse, weight = (tensor.to(device) for tensor in make(2, 24, "correlated", 1e-3))
    count = torch.tensor([12, 12], device=device)
    plain, *trace = _obs_triton(inverse, weight, count, 12, 0, 0, True)
    scaled, order, loss = _obs_triton(inverse * 2.0**200, weight * 2.0**-150, count, 12, 0, 0, True)
    return {
        "error": 0.0,
        "loss": 0.0,
        "weights": torch.equal(scaled * 2.0**150, plain),
        "order": torch.equal(order, trace[0]),
        "losses": torch.equal(loss * 2.0**250 * 2.0**250, trace[1]),
    }


def findings(device: str) -> dict[str, Any]:
    inverse, weight = torch.eye(3, device=device), torch.ones(2, 3, device=device)
    count = torch.ones(2, dtype=torch.int32, device=device)
    lines = torch.zeros(2, 1, 3, device=device)
    return {
        "cases": {
            "one": run(device, 1, 1, 1),
            "no rows": run(device, 0, 3, 1),
            "no columns": run(device, 2, 0, 0),
            "none goes": run(device, 2, 5, 0),
            "plain": run(device, 3, 37, 19, kind="plain"),
            "float64": run(device, 2, 37, 25, single=False),
            "counts by row": run(device, 4, 20, [0, 1, 20, 9]),
            "in parts": run(device, 3, 17, 9, factors=2 * 9 * 17 * 4),
            "two blocks": run(device, 1, 290, 12),
            "2:4": run(device, 2, 40, 20, keep=2, of=4),
            "1:3, float64": run(device, 2, 33, 22, single=False, keep=1, of=3),
            "0:4": run(device, 1, 16, 16, keep=0, of=4),
            "deficient": run(device, 2, 30, 20, kind="deficient", damp=1e-9, again=True),
            "buffers": buffers(device, F32, 37, 11),
            "buffers, float64": buffers(device, F64, 19, 11),
            "not positive": not_positive(device),
            "ties": ties(device),
            "large units": large_units(device),
        },
        "refusals": refused(
            {
                "float16": lambda: remove(inverse.half(), weight.half(), count, lines.half()),
                "two dtypes": lambda: remove(inverse.double(), weight, count, lines),
                "counts of int64": lambda: remove(inverse, weight, count.long(), lines),
                "inverse of a wrong shape": lambda: remove(inverse[:2], weight, count, lines),
                "factor of a wrong shape": lambda: remove(inverse, weight, count, lines[:1]),
                "apart": lambda: remove(inverse, torch.ones(3, 2, device=device).T, count, lines),
                "elsewhere": lambda: remove(inverse.to("meta"), weight, count, lines),
                "groups that do not fit": lambda: remove(inverse, weight, count, lines, keep=1, of=2),
            }
        ),
    }
