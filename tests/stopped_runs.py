# SPDX-License-Identifier: Apache-2.0
"""Runs that are stopped in the middle: in this process by their progress, as processes by a signal."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


class Killed(KeyboardInterrupt):
    """What :class:`Stopping` raises."""


class Stopping:
    """Notes what it is told, and stops the run after some steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.total = 0
        self.steps: list[str] = []
        self.finished = False

    def start(self, total: int, description: str) -> None:
        self.total = total

    def advance(self, description: str) -> None:
        self.steps.append(description)
        if self.stop_after is not None and len(self.steps) == self.stop_after:
            raise Killed

    def note(self, text: str) -> None:
        pass

    def finish(self) -> None:
        self.finished = True


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 300.0) -> None:
    """Wait until a running process has made a file; the limit is for hangs."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.002)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status and what was printed."""
    out, err = process.communicate(timeout=600)
    assert "Traceback" not in err
    return process.returncode, out, err
