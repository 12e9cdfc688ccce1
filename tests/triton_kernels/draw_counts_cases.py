# SPDX-License-Identifier: Apache-2.0
"""The Triton votes and keys against draws that are made one by one, to the bit."""

from __future__ import annotations

from typing import Any

import torch
from buffers import Guarded, refused
from torch import Tensor

from pyprune.ops import exponential_race, races
from pyprune.ops.draw_counts import draw_counts_reference
from pyprune.triton_kernels.draw_counts import log_times, vote

SEED = 2**63 + 12345  # both words have their highest bit, one way or the other


def weights(n: int, zeros: int = 0) -> Tensor:
    weight = torch.randn(n, generator=torch.Generator().manual_seed(n))
    weight[:zeros] = 0.0
    return weight


def run(device: str, weight: Tensor, keep: int, draws: int, exponent: float, spread: float = 4.5) -> dict[str, Any]:
    rates = exponential_race.log_rates(weight.to(device), exponent)
    counts, again = races.draw_by_triton(rates, keep, draws, SEED, spread)
    wanted = draw_counts_reference(weight, keep, draws, exponent, SEED)
    return {"equal": torch.equal(counts.cpu(), wanted), "again": again}


def votes(device: str, n: int, room: int, draws: int) -> dict[str, bool]:
    """Counts, lists and what lies around them, with halves that leave a quarter open."""
    rows = -(-draws // 8) * 8
    counts, before, after = (Guarded(1, n, dtype, device) for dtype in (torch.int32, torch.int16, torch.int16))
    totals, lists = Guarded(2, rows, torch.int32, device), Guarded(rows, room, torch.int64, device)
    counts.view.fill_(3)
    before.view.fill_(-8192)
    after.view.fill_(8191)
    totals.view.zero_()
    arrived, listed = totals.view
    halves_of = before.view[0], after.view[0]
    vote(counts.view[0], arrived, listed, lists.view, *halves_of, first=8, draws=draws, seed=SEED, block=32)
    entries = torch.arange(n)
    halves = [exponential_race.uniform_bits(entries, 8 + draw, SEED) >> 48 & 0xFFFF for draw in range(draws)]
    sure = torch.stack([half < 32768 - 8192 for half in halves])
    near = torch.stack([(half >= 32768 - 8192) & (half <= 32768 + 8191) for half in halves])
    entered = [
        sorted(lists.view[draw, : min(room, int(near[draw].sum()))].cpu().tolist()) == _packed(near[draw], halves[draw])
        for draw in range(draws)
        if int(near[draw].sum()) <= room
    ]
    return {
        "counts": torch.equal(counts.view[0].cpu(), 3 + sure.sum(dim=0, dtype=torch.int32)),
        "arrived": torch.equal(arrived[:draws].cpu(), sure.sum(dim=1, dtype=torch.int32)),
        "listed": torch.equal(listed[:draws].cpu(), near.sum(dim=1, dtype=torch.int32)),
        "no draw too many": not bool(totals.view[:, draws:].any()),
        "lists": all(entered) and len(entered) > 0,
        "intact": counts.intact() and totals.intact() and lists.intact(),
    }


def _packed(near: Tensor, halves: Tensor) -> list[int]:
    """What a list holds: the entry, and its half as the word had it."""
    return sorted((int(entry) << 16) | (int(halves[entry]) ^ 0x8000) for entry in near.nonzero()[:, 0])


def keys(device: str) -> dict[str, bool]:
    """Log times at both ends of the 16 bits."""
    halves = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1234])
    lists = torch.zeros(1, 9, dtype=torch.int64)
    lists[0, :7] = torch.arange(7) << 16 | halves
    rates = torch.linspace(-3.0, 3.0, 7, dtype=torch.float64)
    out, entries = Guarded(1, 9, torch.float64, device), Guarded(1, 9, torch.int64, device)
    listed = torch.tensor([7], dtype=torch.int32, device=device)
    log_times(out.view, entries.view, lists.to(device), listed, rates.to(device), first=11, seed=SEED)
    fine = exponential_race.uniform_bits(torch.arange(7), 11, SEED) & (1 << 48) - 1
    wanted = exponential_race.log_exponential((halves ^ 0x8000) << 48 | fine) - rates
    return {
        "equal": torch.equal(out.view[0, :7].cpu(), wanted),
        "nothing else": bool(out.view[0, 7:].isinf().all()) and entries.view[0].tolist() == [*range(7), 7, 7],
        "intact": out.intact() and entries.intact(),
    }


def findings(device: str) -> dict[str, Any]:
    n, rows, room = 5, 8, 3
    numbers = {
        "counts": torch.zeros(n, dtype=torch.int32, device=device),
        "arrived": torch.zeros(rows, dtype=torch.int32, device=device),
        "listed": torch.zeros(rows, dtype=torch.int32, device=device),
        "lists": torch.zeros(rows, room, dtype=torch.int64, device=device),
        "before": torch.zeros(n, dtype=torch.int16, device=device),
        "after": torch.zeros(n, dtype=torch.int16, device=device),
    }

    def with_one(name: str, other: Tensor) -> Any:
        return lambda: vote(**{**numbers, name: other}, first=0, draws=8, seed=0)

    return {
        "draws": {
            "one of two": run(device, weights(2), 1, 3, 1.0),
            "a few": run(device, weights(10), 3, 9, 5.0),
            "zeros that must be drawn": run(device, weights(40, zeros=30), 15, 2, 5.0),
            "more than a program": run(device, weights(1100), 500, 2, 5.0),
            "made again": run(device, weights(300), 100, 3, 5.0, spread=0.0),
        },
        "votes": {
            "one": votes(device, 1, 1, 1),
            "primes": votes(device, 131, 131, 11),
            "no room": votes(device, 70, 17, 3),
        },
        "keys": keys(device),
        "refusals": refused(
            {
                "float counts": with_one("counts", numbers["counts"].float()),
                "counts of a wrong shape": with_one("counts", numbers["counts"][:3]),
                "halves elsewhere": with_one("before", numbers["before"].to("meta")),
                "too few draws": with_one("listed", numbers["listed"][:4]),
                "lists apart": with_one("lists", torch.zeros(rows, 6, dtype=torch.int64, device=device)[:, ::2]),
                "a first draw between": lambda: vote(**numbers, first=4, draws=8, seed=0),
            }
        ),
    }
