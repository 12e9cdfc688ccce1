# SPDX-License-Identifier: Apache-2.0
"""Turns, bursts and percentiles, by a clock of the test's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from pyprune.bench import machine, timing


class Clock:
    """Time passes when a candidate runs, and not otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def takes(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.ran.append(name)
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_candidates_take_turns(clock: Clock) -> None:
    calls = {name: clock.takes(name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    found = timing.interleaved(calls, rounds=3)
    assert "".join(clock.ran) == "cab" + "abc" + "bca" + "cab"  # a round of warm-up, then each is first once
    assert {name: each.median for name, each in found.items()} == {"a": 1.0, "b": 2.0, "c": 4.0}
    assert {each.rounds for each in found.values()} == {3}


def test_time_ends_the_rounds_but_for_the_fewest(clock: Clock) -> None:
    calls = {"a": clock.takes("a", 1.0), "b": clock.takes("b", 1.0)}
    assert len(timing.turns(calls, rounds=1000, seconds=40.0)["a"]) == 20
    assert len(timing.turns(calls, rounds=1000, seconds=0.1)["b"]) == timing.FEWEST
    assert len(timing.turns(calls, rounds=2, seconds=0.1)["b"]) == 2


def test_bursts_count_the_mean_of_their_calls(clock: Clock) -> None:
    calls = {"short": clock.takes("s", 0.25), "long": clock.takes("l", 8.0)}
    found = timing.turns(calls, rounds=2, burst=1.0)
    assert found == {"short": [0.25, 0.25], "long": [8.0, 8.0]}
    assert clock.ran.count("s") == 1 + 2 * 4
    assert clock.ran.count("l") == 1 + 2


def test_summary() -> None:
    seconds = [float(value) for value in range(100, -1, -1)]
    found = timing.summary(seconds)
    assert (found.p10, found.median, found.p90, found.p99, found.rounds) == (10.0, 50.0, 90.0, 99.0, 101)
    assert timing.summary([2.0]) == timing.Timing(2.0, 2.0, 2.0, 2.0, 1)
    assert timing.summary([4.0, 1.0]).median == 2.5


def test_machine() -> None:
    facts = machine.machine()
    assert facts["cpu"]
    assert facts["threads"] == facts["torch_threads"] == 1
    assert facts["last_level_cache"] >= 2**18
    assert set(facts["backends"]) >= {"spmm", "gram"}
    assert math.isfinite(facts["load_before"])


def test_the_commit_is_that_of_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Installed within another project's repository, its commit would be a wrong one."""
    monkeypatch.setattr(machine, "_SOURCES", machine._SOURCES / "tests")
    assert machine._commit() == "unknown"
