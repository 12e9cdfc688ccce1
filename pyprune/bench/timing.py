# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing.

Candidates take turns, round after round, so that a noisy machine disturbs all of them alike and their ratio holds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

FEWEST = 5  # rounds, however short the time: below that a median says little
MOST = 1000  # rounds, however long the time
_MOST_CALLS = 10_000  # of one candidate in one turn


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate over all rounds; of each, the share of them that took no longer is in the name."""

    median: float
    p10: float
    p90: float
    p99: float
    rounds: int


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1, device: str = "cpu"
) -> dict[str, Timing]:
    """Time several callables in turns; see :func:`turns`, which gives the single measurements."""
    measured = turns(candidates, rounds=rounds, warmup=warmup, device=device)
    return {name: summary(values) for name, values in measured.items()}


def turns(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float | None = None,
    burst: float = 0.0,
    warmup: int = 1,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Seconds of every call, by candidate, in the order of the rounds.

    Parameters
    ----------
    candidates : mapping of name to callable
        Each does the whole work once. The order within a round turns by one from round to round.
    rounds, warmup : int
        Measured and unmeasured rounds.
    seconds : float, optional
        No further round begins after so long, but for the first :data:`FEWEST` of `rounds`.
    burst : float
        A candidate is called again and again in its turn for about so many seconds, and the mean of these calls is
        what counts: its data is then in the cache as far as it fits, and the clock's own time does not matter.
    device : str
        "cuda" waits for the device before and after each turn.
    """
    names = list(candidates)
    calls = dict.fromkeys(names, 1)
    measured: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for turn in range(-warmup, rounds):
        if turn == 0:
            begin = time.perf_counter()
        if seconds is not None and turn >= FEWEST and time.perf_counter() - begin >= seconds:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took = _turn(candidates[name], calls[name], device)
            if turn >= 0:
                measured[name].append(took)
            elif burst:
                calls[name] = max(1, min(_MOST_CALLS, round(burst / max(took, 1e-9))))
    return measured


def _turn(call: Callable[[], object], calls: int, device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def summary(seconds: Sequence[float]) -> Timing:
    """Median and percentiles of measurements, at least one."""
    return Timing(
        median=statistics.median(seconds),
        p10=percentile(seconds, 0.1),
        p90=percentile(seconds, 0.9),
        p99=percentile(seconds, 0.99),
        rounds=len(seconds),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The measurement nearest to that rank; none between two is made up.

    >>> percentile([3.0, 1.0, 2.0], 0.9)
    3.0
    """
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]
