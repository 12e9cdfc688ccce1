# SPDX-License-Identifier: Apache-2.0
"""Attacks side by side: what shares a call, in which order, with which random numbers."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest

from pyprune.attack.lockstep import Lockstep


class Server:
    """Answers a number by its square, and remembers the calls and who made them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.threads: set[int] = set()
        self.lockstep = Lockstep(self)

    def __call__(self, channel: str, questions: list[Any]) -> list[int]:
        self.calls.append((channel, questions))
        self.threads.add(threading.get_ident())
        return [question**2 for question in questions]

    def attack(self, rounds: int, first: int) -> Any:
        def go() -> list[int]:
            heard: list[int] = []
            for step in range(rounds):
                heard += self.lockstep.ask("even" if first % 2 == 0 else "odd", [first, first + 10 * step])
            return heard

        return go


def test_questions_of_a_round_are_answered_together() -> None:
    server = Server()
    attacks = [server.attack(2, 2), server.attack(1, 4), server.attack(2, 1), server.attack(0, 6)]
    results = list(server.lockstep.run(attacks, [0, 1, 2, 3]))
    # as they end: without a question at once, then after one round, then after two
    assert [index for index, _ in results] == [3, 1, 0, 2]
    assert dict(results) == {0: [4, 4, 4, 144], 1: [16, 16], 2: [1, 1, 1, 121], 3: []}
    assert server.calls == [("even", [2, 2, 4, 4]), ("odd", [1, 1]), ("even", [2, 12]), ("odd", [1, 11])]
    assert server.threads == {threading.get_ident()}


def test_random_numbers_are_each_attacks_own() -> None:
    server = Server()

    def attack() -> list[float]:
        drawn = []
        for _ in range(3):
            drawn += [random.random(), float(np.random.random())]
            server.lockstep.ask("odd", [1])
        return drawn

    random.seed(5)
    np.random.seed(5)
    before = random.getstate()
    together = dict(server.lockstep.run([attack] * 3, [7, 8, 7]))
    assert random.getstate() == before
    assert np.random.random() == np.random.RandomState(5).random()
    alone = dict(server.lockstep.run([attack], [8]))[0]
    assert together[0] == together[2] != together[1]
    assert together[1] == alone
    expected = random.Random(8)
    assert alone[::2] == [expected.random() for _ in range(3)]


def test_an_error_is_raised_and_the_others_end() -> None:
    server = Server()

    def wrong() -> None:
        server.lockstep.ask("odd", [1])
        raise ValueError("of the attack")

    before = threading.active_count()
    with pytest.raises(ValueError, match="of the attack"):
        list(server.lockstep.run([server.attack(50, 1), wrong, server.attack(50, 3)], [0, 0, 0]))
    for thread in threading.enumerate():
        if thread.daemon and "_work" in thread.name:
            thread.join(timeout=10)
    assert threading.active_count() == before


def test_leaving_early_ends_the_attacks() -> None:
    server = Server()
    before = threading.active_count()
    running = server.lockstep.run([server.attack(0, 1), server.attack(50, 3)], [0, 0])
    assert next(running) == (0, [])
    running.close()
    for thread in threading.enumerate():
        if thread.daemon and "_work" in thread.name:
            thread.join(timeout=10)
    assert threading.active_count() == before


def test_outside_of_a_run_answers_come_at_once() -> None:
    server = Server()
    assert server.lockstep.ask("odd", [3]) == [9]
