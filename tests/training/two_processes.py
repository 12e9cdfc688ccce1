# SPDX-License-Identifier: Apache-2.0
"""Trains in two processes on halves of batches, and in one on whole batches; prints the largest difference."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn

from pyprune.training import MagnitudePruning, MovementPruning, Ramp

STEPS, ACCUMULATE, ROWS = 6, 2, 8
PRUNERS = {"movement": MovementPruning, "magnitude": MagnitudePruning}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def train(kind: str, rows: slice, *, parallel: bool) -> list[Tensor]:
    """The parameters after some steps of accumulated batches."""
    model = network()
    pruner = PRUNERS[kind](Ramp(0.6, 0.0, 0.3), names=("0.weight", "2.weight"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    outer: Any = nn.parallel.DistributedDataParallel(model) if parallel else model
    pruner.begin(outer, STEPS)
    for step in range(STEPS):
        for part in range(ACCUMULATE):
            generator = torch.Generator().manual_seed(ACCUMULATE * step + part)
            x, y = (torch.randn(ROWS, size, generator=generator).double() for size in (6, 3))
            last = part == ACCUMULATE - 1
            with contextlib.nullcontext() if last or not parallel else outer.no_sync():
                ((outer(x[rows]) - y[rows]).square().mean() / ACCUMULATE).backward()
        pruner.before_step(step, optimizer)
        optimizer.step()
        pruner.after_step(step, optimizer)
        optimizer.zero_grad()
    pruner.check()
    return [parameter.detach().clone() for parameter in model.parameters()]


def work(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    half = slice(ROWS // 2 * rank, ROWS // 2 * (rank + 1))
    found = {kind: train(kind, half, parallel=True) for kind in PRUNERS}
    distributed.barrier()
    distributed.destroy_process_group()
    if rank == 0:
        for kind, parameters in found.items():
            whole = train(kind, slice(None), parallel=False)
            gaps = [float((one - other).abs().max()) for one, other in zip(parameters, whole, strict=True)]
            print(kind, max(gaps), int((whole[0] == 0).sum()), flush=True)


if __name__ == "__main__":
    multiprocessing.spawn(work, args=(sys.argv[1],), nprocs=2)
