# SPDX-License-Identifier: Apache-2.0
"""Progress bars with the time left, on stderr; no bars where nobody watches.

Long calls take any object with ``start(total_steps, description)``, ``advance(description)``, ``note(text)`` and
``finish()``; None means silent.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Silent:
    """Shows nothing, remembers the notes.

    Attributes
    ----------
    notes : list of str
        What was noted, each text once, in order.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, total_steps: int, description: str) -> None:
        """Begin a stage of `total_steps` steps."""

    def advance(self, description: str) -> None:
        """One step done; `description` says what comes next or was done."""

    def note(self, text: str) -> None:
        """Something the person should know later."""
        if text not in self.notes:
            self.notes.append(text)

    def finish(self) -> None:
        """End the stage."""

    def close(self) -> None:
        """Give the terminal back."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Lines(Silent):
    """No bars; notes as plain lines on stderr, for logs and pipes."""

    def note(self, text: str) -> None:
        if text not in self.notes:
            print(text, file=sys.stderr)
        super().note(text)


class Bars(Silent):
    """Bars on a terminal: what is done, how far, time passed and time left."""

    def __init__(self, console: Any = None) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeftColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeftColumn(),
            console=console if console is not None else Console(stderr=True),
            # steps differ (the widest layer takes longest): the mean of the whole run predicts better than the last few
            speed_estimate_period=86400.0,
            transient=True,
        )
        self._stages: list[Any] = []
        self._live = False
        self._console = self._bars.console

    def start(self, total_steps: int, description: str) -> None:
        if not self._live:
            self._bars.start()
            self._live = True
        self._stages.append(self._bars.add_task(description, total=total_steps))

    def advance(self, description: str) -> None:
        if self._stages:
            self._bars.update(self._stages[-1], advance=1, description=description)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        super().note(text)

    def finish(self) -> None:
        if self._stages:
            self._bars.remove_task(self._stages.pop())
        if not self._stages:
            self.close()

    def close(self) -> None:
        if self._live:
            self._bars.stop()
            self._live = False
        for stage in self._stages:
            self._bars.remove_task(stage)
        self._stages.clear()


def for_terminal(*, quiet: bool = False) -> Silent:
    """Bars where stderr is a terminal, plain notes where it is not, nothing where `quiet` is asked for."""
    if quiet:
        return Silent()
    if not sys.stderr.isatty():
        return Lines()
    try:
        return Bars()
    except ImportError:
        return Lines()


def bars_only(*, quiet: bool = False) -> Silent:
    """Bars where stderr is a terminal, else nothing; notes are kept, not shown."""
    if quiet or not sys.stderr.isatty():
        return Silent()
    try:
        return _BarsWithoutNotes()
    except ImportError:
        return Silent()


class _BarsWithoutNotes(Bars):
    def note(self, text: str) -> None:
        Silent.note(self, text)
