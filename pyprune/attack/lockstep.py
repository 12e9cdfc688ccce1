# SPDX-License-Identifier: Apache-2.0
"""Many attacks side by side, their questions answered together.

An attack asks its model a handful of questions at a time and waits. Here each attack runs in a thread of its own until
it asks; when all have asked, one call answers all. Only one thread runs at a time, always in the same order, so that
the outcome is a function of the list of attacks and of nothing else. Each attack has random generators of its own.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Answer = Callable[[str, list[Any]], Sequence[Any]]


class Lockstep:
    """Runs attacks and gathers what they ask.

    Parameters
    ----------
    answer : callable
        ``answer(channel, questions)`` gives one answer for each question, in their order. It is called in the thread
        that iterates over :meth:`run`, so that one thread alone uses the model.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._here = threading.local()

    def ask(self, channel: str, questions: list[Any]) -> Sequence[Any]:
        """Called by an attack: wait for the answers to `questions`; outside of :meth:`run` they come at once."""
        task: _Task | None = getattr(self._here, "task", None)
        if task is None:
            return self._answer(channel, questions)
        task.question = (channel, questions)
        task.hand_over()
        return task.replies

    def run(self, attacks: Sequence[Callable[[], Any]], seeds: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yield ``(index, result)`` of each attack as soon as it has ended.

        An exception of an attack is raised here, the others are then given up.
        """
        tasks = [_Task(index, seed) for index, seed in enumerate(seeds)]
        for task, attack in zip(tasks, attacks, strict=True):
            task.thread = threading.Thread(target=self._work, args=(task, attack), daemon=True)
            task.thread.start()
        live = tasks
        try:
            while live:
                with _kept_random_state():
                    for task in live:
                        task.proceed()
                for task in live:
                    if task.error is not None:
                        raise task.error
                    if task.done:
                        yield task.index, task.result
                live = [task for task in live if not task.done]
                self._answer_all(live)
        finally:
            for task in live:
                task.cancelled = True
                if not task.done:
                    task.proceed()

    def _work(self, task: _Task, attack: Callable[[], Any]) -> None:
        self._here.task = task
        task.go.acquire()
        try:
            if not task.cancelled:
                task.result = attack()
        except _Cancelled:
            pass
        except BaseException as error:
            task.error = error
        task.done = True
        task.back.release()

    def _answer_all(self, tasks: list[_Task]) -> None:
        for channel in sorted({task.question[0] for task in tasks}):
            asking = [task for task in tasks if task.question[0] == channel]
            replies = self._answer(channel, [entry for task in asking for entry in task.question[1]])
            begin = 0
            for task in asking:
                end = begin + len(task.question[1])
                task.replies = replies[begin:end]
                begin = end


@dataclass
class _Task:
    """One attack: its thread, what it asked last, its random generators."""

    index: int
    seed: int
    thread: threading.Thread | None = None
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    question: tuple[str, list[Any]] = ("", [])
    replies: Sequence[Any] = ()
    result: Any = None
    error: BaseException | None = None
    done: bool = False
    cancelled: bool = False
    state: tuple[Any, Any] | None = None

    def proceed(self) -> None:
        """Let the attack run until it asks or ends."""
        if self.state is None:
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)
        else:
            random.setstate(self.state[0])
            np.random.set_state(self.state[1])
        self.go.release()
        self.back.acquire()
        self.state = (random.getstate(), np.random.get_state())

    def hand_over(self) -> None:
        """Called in the thread of the attack: let the others run, come back with the replies."""
        self.back.release()
        self.go.acquire()
        if self.cancelled:
            raise _Cancelled


class _Cancelled(BaseException):
    """Ends an attack that nobody waits for."""


class _kept_random_state:  # noqa: N801 - used as a function
    """Put Python's and NumPy's global generators back, which attacks draw from."""

    def __enter__(self) -> None:
        self._state = (random.getstate(), np.random.get_state())

    def __exit__(self, *_: object) -> None:
        random.setstate(self._state[0])
        np.random.set_state(self._state[1])
