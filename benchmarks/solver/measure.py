# SPDX-License-Identifier: Apache-2.0
"""Time in turns, and peak memory, of callables that have to be prepared anew for every run."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and its seconds."""
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def in_turns(
    prepare: Mapping[str, Callable[[], Callable[[], T]]], rounds: int, note: Callable[[str, T, float], None]
) -> None:
    """Run every candidate once a round, each prepared anew outside the clock; the order turns by one a round.

    Parameters
    ----------
    prepare : mapping of name to callable
        Each returns a callable that does the timed work once.
    note : callable
        Gets the name, what the work returned, and its seconds.
    """
    names = list(prepare)
    for turn in range(rounds):
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            work = prepare[name]()
            result, seconds = timed(work)
            note(name, result, seconds)
            del work, result


def with_peak(call: Callable[[], T]) -> tuple[T, float, int | None]:
    """What a call returns, its seconds, and the most memory it held at once.

    The last is the kernel's high-water mark of resident memory (`VmHWM`, set back before the call) less what was
    resident before, in bytes: all of it, whoever allocated it, the result included, the inputs not. Memory that was
    freed earlier is first given back to the system, so that its reuse is counted too. The kernel counts in pages and
    not to the last of them: a few hundred KiB are within its error. None where there is no such mark (not Linux, or
    not allowed).
    """
    gc.collect(1)  # what the last run left in cycles; all of torch's objects would take a third of a second
    _give_back()
    before = _status("VmRSS") if _reset_mark() else None
    result, seconds = timed(call)
    after = _status("VmHWM")
    return result, seconds, None if before is None or after is None else max(after - before, 0)


def _give_back() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
