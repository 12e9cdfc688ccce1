# SPDX-License-Identifier: Apache-2.0
"""Prunes units in two processes on halves of batches, and in one on whole batches; prints how far they are apart."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn

from pyprune.errors import InputError
from pyprune.training import Cubic, FirstOrderPruning, Levels, PruningLoss, UnitPruning

sys.path.insert(0, str(Path(__file__).parents[1]))  # of a process that is no test

from tiny_models import build_model

STEPS, ACCUMULATE, ROWS = 6, 2, 8
WITHOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
KINDS = ("separate", "whole", "heads", "first-order")
Found = tuple[list[Tensor], list[Tensor], int]


def batch_of(number: int, rows: slice) -> dict[str, Tensor]:
    """Without padding, so that both halves have as many tokens."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(5, 100, (ROWS, 7), generator=generator)
    return {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids)[rows], "labels": ids[rows, 0] % 2}


def pruner_of(kind: str, loss: PruningLoss, **options: Any) -> UnitPruning:
    if kind == "first-order":

        def batches(epoch: int) -> Iterator[dict[str, Tensor]]:
            yield from (batch_of(number, slice(None)) for number in (0, 1))

        return FirstOrderPruning(Levels((0.3, 0.6), (0, 3)), loss=loss, batches=batches, **options)
    unit: Any = "heads" if kind == "heads" else "channels"
    separate = loss if kind in ("separate", "heads") else None
    return UnitPruning(Cubic(0.7, 1, 5), loss=separate, unit=unit, decay=0.5, **options)


def train(kind: str, rows: slice, *, parallel: bool) -> Found:
    """Masks after every step, the last parameters, and how many batches were measured."""
    model, teacher = (build_model("bert", seed=seed, **WITHOUT).double() for seed in (0, 4))
    loss = PruningLoss(teacher, hard=0.5, soft=0.5, hidden=1.0, maps=True)
    loss.attach(model)
    loss.accumulate = ACCUMULATE
    pruner = pruner_of(kind, loss)
    outer: Any = nn.parallel.DistributedDataParallel(model) if parallel else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    pruner.begin(outer, STEPS)
    outer.train()
    masks = []
    for step in range(STEPS):
        for part in range(ACCUMULATE):
            last = part == ACCUMULATE - 1
            with contextlib.nullcontext() if last or not parallel else outer.no_sync():
                loss.of(outer, batch_of(ACCUMULATE * step + part, rows)).backward()
        pruner.before_step(step, optimizer)
        optimizer.step()
        pruner.after_step(step, optimizer)
        optimizer.zero_grad()
        masks.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
    pruner.check()
    pruner.end()
    loss.detach()
    return masks, [parameter.detach().clone() for parameter in model.parameters()], pruner.statistics.batches


def refused() -> int:
    """How often a wrapped model is not made smaller, and not given parameters that its wrapper does not know."""
    model = build_model("bert", **WITHOUT)
    loss, count = PruningLoss(build_model("bert", seed=4), hidden=1.0, maps=True), 0
    outer = nn.parallel.DistributedDataParallel(model)
    for act in (
        lambda: pruner_of("whole", loss, shrink=True).begin(outer, STEPS),
        lambda: pruner_of("first-order", loss, shrink=True).begin(outer, STEPS),
        lambda: loss.attach(outer),
    ):
        try:
            act()
        except InputError:
            count += 1
    return count


def work(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    half = slice(ROWS // 2 * rank, ROWS // 2 * (rank + 1))
    found, same = {}, {}
    for kind in KINDS:
        found[kind] = train(kind, half, parallel=True)
        others = [torch.empty_like(torch.stack(found[kind][0])) for _ in range(2)]
        distributed.all_gather(others, torch.stack(found[kind][0]))
        same[kind] = torch.equal(*others)
    many = refused()
    distributed.barrier()
    distributed.destroy_process_group()
    if rank == 0:
        for kind, (masks, parameters, batches) in found.items():
            whole = train(kind, slice(None), parallel=False)
            alike = all(torch.equal(one, other) for one, other in zip(masks, whole[0], strict=True))
            gap = max(float((a - b).abs().max()) for a, b in zip(parameters, whole[1], strict=True))
            kept = int(whole[0][-1].sum()) / len(whole[0][-1])
            print(kind, same[kind], alike, gap, kept, batches == whole[2], flush=True)
        distributed.init_process_group("gloo", init_method=f"file://{rendezvous}-alone", rank=0, world_size=1)
        print("refused", many, refused(), flush=True)
        distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(work, args=(sys.argv[1],), nprocs=2)
