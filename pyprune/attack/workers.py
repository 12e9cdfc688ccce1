# SPDX-License-Identifier: Apache-2.0
"""Groups of examples attacked one after another here, or by several processes."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pyprune.attack.recipes import Attacked
from pyprune.errors import PypruneError

Outcomes = Generator[tuple[int, Attacked], None, None]

_LOOK_AGAIN = 5.0  # seconds without an outcome after which a process may have died


@dataclass(frozen=True)
class Group:
    """Examples that are attacked side by side."""

    indices: tuple[int, ...]
    texts: tuple[Any, ...]
    gold: tuple[int, ...]
    seeds: tuple[int, ...]


def attack_groups(attacker: Any, groups: Sequence[Group]) -> Outcomes:
    """Yield ``(index, outcome)`` of every example of `groups`, in this process."""
    for group in groups:
        for place, outcome in attacker.attack(group.texts, group.gold, group.seeds):
            yield group.indices[place], outcome


def attack_in_processes(make: Callable[[], Any], groups: Sequence[Group], workers: int, threads: int) -> Outcomes:
    """The same by `workers` processes of `threads` threads each; outcomes do not depend on their number.

    Raises
    ------
    PypruneError
        What was raised in a process, or that one has died.
    """
    context = torch.multiprocessing.get_context("spawn")
    tasks, outcomes = context.Queue(), context.Queue()
    for group in groups:
        tasks.put(group)
    count = min(workers, len(groups))
    for _ in range(count):
        tasks.put(None)
    processes = [
        context.Process(target=_work, args=(make, threads, tasks, outcomes), daemon=True) for _ in range(count)
    ]
    try:
        for process in processes:
            process.start()
        left = sum(len(group.indices) for group in groups)
        while left:
            try:
                found = outcomes.get(timeout=_LOOK_AGAIN)
            except queue.Empty:
                dead = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
                if dead:
                    raise PypruneError(
                        "a worker has died",
                        seen=f"exit status {dead[0]}",
                        hint="fewer --workers need less memory; --resume goes on from here",
                    ) from None
                continue
            if isinstance(found, BaseException):
                raise found
            left -= 1
            yield found
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _work(make: Callable[[], Any], threads: int, tasks: Any, outcomes: Any) -> None:
    torch.set_num_threads(threads)
    try:
        attacker = make()
        while (group := tasks.get()) is not None:
            for place, outcome in attacker.attack(group.texts, group.gold, group.seeds):
                outcomes.put((group.indices[place], outcome))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        # what a library raises may not survive being sent
        with contextlib.suppress(Exception):
            outcomes.put(_sendable(error))


def _sendable(error: Exception) -> Exception:
    if isinstance(error, PypruneError):
        return type(error)(str(error))
    return PypruneError(f"an attack stopped: {type(error).__name__}: {error}")
