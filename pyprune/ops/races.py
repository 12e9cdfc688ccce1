# SPDX-License-Identifier: Apache-2.0
"""Draws by the Triton kernels of `draw_counts`: two times around the last arrival, what they decide, what they do not.

`csrc/cpu/draw_counts.cpp` does the same on a CPU. What is drawn does not depend on the two times, only how long it
takes: a draw whose last arrival is not between them is made again from all entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyprune.ops import exponential_race

BINS = 1024
BATCH = 64  # draws whose lists are held at a time
MARGIN = 1e-9  # far more than rounding moves the logarithm of a time by
_Numbers = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Times:
    """Logarithms of two times, and how many entries of a draw have to be compared at most, with room to spare."""

    early: float
    late: float
    room: int


def race_times(rates: Tensor, keep: int, spread: float) -> Times:
    """Times `spread` standard deviations of the number of arrivals before and after the mean time of the last one.

    Parameters
    ----------
    rates : Tensor, shape (n,), float64
        Logarithms, finite.
    keep : int
        Arrivals of a draw, 1 to n − 1.
    """
    n = rates.numel()
    lowest, highest = (float(value) for value in torch.aminmax(rates))
    highest = highest if highest > lowest else lowest + 1.0
    bins = ((rates - lowest) * (BINS / (highest - lowest))).long().clamp_(0, BINS - 1)
    counts = torch.zeros(BINS, dtype=torch.int64, device=rates.device)
    counts.index_add_(0, bins, torch.ones_like(bins))
    count = counts.cpu().numpy().astype(np.float64)
    rate = lowest + (np.arange(BINS) + 0.5) * ((highest - lowest) / BINS)
    rate, count = rate[count > 0], count[count > 0]
    mean = _when(rate, count, keep)
    # 16 more: where few are undecided, their number is not normally distributed.
    apart = spread * _deviation(rate, count, mean) + (16.0 if spread > 0.0 else 0.0)
    early, late = _when(rate, count, keep - apart), _when(rate, count, keep + apart)
    between = (n if late == math.inf else _by(rate, count, late)) - (
        0.0 if early == -math.inf else _by(rate, count, early)
    )
    most = between + 4.0 * n / 65536.0  # 16 bits leave some undecided
    return Times(early, late, min(n, int(1.05 * most + 8.0 * math.sqrt(most) + 64.0)))


def _by(rate: _Numbers, count: _Numbers, log_time: float) -> float:
    """Mean number of arrivals up to a time."""
    with np.errstate(over="ignore"):
        return float(-(count * np.expm1(-np.exp(log_time + rate))).sum())


def _deviation(rate: _Numbers, count: _Numbers, log_time: float) -> float:
    """Standard deviation of the number of arrivals up to a time."""
    with np.errstate(over="ignore"):
        later = np.exp(-np.exp(log_time + rate))
    return math.sqrt(float((count * later * (1.0 - later)).sum()))


def _when(rate: _Numbers, count: _Numbers, arrivals: float) -> float:
    """When so many have arrived: −∞ for none or less, ∞ for all or more."""
    if arrivals <= 0.0:
        return -math.inf
    if arrivals >= count.sum():
        return math.inf
    early, late = -float(rate.max()) - 50.0, -float(rate.min()) + 5.0
    while late - early > 1e-4:
        middle = 0.5 * (early + late)
        if _by(rate, count, middle) < arrivals:
            early = middle
        else:
            late = middle
    return 0.5 * (early + late)


def halves_by(rates: Tensor, log_time: float, more: int) -> Tensor:
    """The half of 16 bits below which an entry has arrived by a time, and ``more``; less 2¹⁵, int16."""
    arrived = -torch.expm1(-torch.exp(rates + log_time))
    return ((arrived * 65536.0).floor_() + more).clamp_(0, 65535).sub_(32768).to(torch.int16)


def draw_by_triton(rates: Tensor, keep: int, draws: int, seed: int, spread: float) -> tuple[Tensor, int]:
    """Counts, int32, shape (n,), and how many draws had to be made again.

    Parameters
    ----------
    rates : Tensor, shape (n,), float64
        Logarithms, as `exponential_race.log_rates` gives them.
    keep : int
        1 to n − 1.
    """
    from pyprune.triton_kernels import draw_counts as kernels  # imports triton, only where it is used

    n, device = rates.numel(), rates.device
    times = race_times(rates, keep, spread)
    before, after = halves_by(rates, times.early, -1), halves_by(rates, times.late, 1)
    counts = torch.zeros(n + 1, dtype=torch.int32, device=device)  # the last one is for what is not chosen
    again: list[int] = []
    for first in range(0, draws, BATCH):
        here = min(BATCH, draws - first)
        rows = -(-here // kernels.GROUP) * kernels.GROUP
        arrived, listed = torch.zeros(2, rows, dtype=torch.int32, device=device)
        lists = torch.empty(rows, times.room, dtype=torch.int64, device=device)
        kernels.vote(counts[:n], arrived, listed, lists, before, after, first=first, draws=here, seed=seed)
        lists, listed = lists[:here], listed[:here]
        keys, entries = torch.empty(here, times.room, dtype=torch.float64, device=device), torch.empty_like(lists)
        kernels.log_times(keys, entries, lists, listed, rates, first=first, seed=seed)
        settled = _choose(counts, keys, entries, keep - arrived[:here], listed, times)
        again += [first + draw for draw, good in enumerate(settled.tolist()) if not good]
    for draw in again:
        _draw_again(counts, rates, before, keep, draw, seed)
    return counts[:n].clone(), len(again)


def _choose(counts: Tensor, keys: Tensor, entries: Tensor, wanted: Tensor, listed: Tensor, times: Times) -> Tensor:
    """Count the ``wanted`` first of each list, by time and entry; which lists could be believed, bool ``[draws]``."""
    by_entry = entries.argsort(dim=1)
    by_time = keys.gather(1, by_entry).argsort(dim=1, stable=True)
    order = by_entry.gather(1, by_time)
    place = (wanted.long() - 1).clamp(0, times.room - 1)[:, None]
    last = keys.gather(1, order.gather(1, place))[:, 0]
    settled = (listed <= times.room) & (wanted >= 1) & (wanted <= listed)
    settled &= (last > times.early + MARGIN) & (last < times.late - MARGIN)
    chosen = (torch.arange(times.room, device=keys.device) < wanted[:, None]) & settled[:, None]
    target = torch.where(chosen, entries.gather(1, order), len(counts) - 1).reshape(-1)
    counts.index_add_(0, target, torch.ones_like(target, dtype=counts.dtype))
    return settled


def _draw_again(counts: Tensor, rates: Tensor, before: Tensor, keep: int, draw: int, seed: int) -> None:
    """A draw of all entries, in place of those that were counted as sure."""
    n = rates.numel()
    bits = exponential_race.uniform_bits(torch.arange(n, device=rates.device), draw, seed)
    keys = exponential_race.log_exponential(bits) - rates
    # The upper half of the bits as `before` has it: unsigned, less 2^15.
    counts[:n] -= ((bits >> 48 & 0xFFFF) - 32768 < before).int()
    counts[torch.argsort(keys, stable=True)[:keep]] += 1
