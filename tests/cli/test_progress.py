# SPDX-License-Identifier: Apache-2.0
"""Bars for a terminal, plain notes for a log, nothing where quiet is asked for; never on stdout."""

from __future__ import annotations

import io
import sys

import pytest

from pyprune import progress

rich_console = pytest.importorskip("rich.console")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def bars() -> tuple[progress.Bars, Terminal]:
    stream = Terminal()
    return progress.Bars(rich_console.Console(file=stream, force_terminal=True, width=120)), stream


def test_bars_show_step_count_and_time_left() -> None:
    shown, stream = bars()
    with shown:
        shown.start(3, "embedding")
        shown.advance("layer one")
        shown.note("damping raised")
        shown.note("damping raised")
        shown.advance("layer two")
        shown.advance("layer three")
        shown._bars.refresh()
        text = stream.getvalue()
        shown.finish()
    assert "layer three" in text
    assert "3/3" in text
    assert "left" in text
    assert text.count("damping raised") == 1
    assert shown.notes == ["damping raised"]


def test_bars_of_two_stages_and_of_none() -> None:
    shown, _ = bars()
    shown.advance("nothing has begun")
    shown.finish()
    shown.start(1, "outer")
    shown.start(2, "inner")
    shown.finish()
    shown.advance("outer")
    shown.close()
    shown.start(1, "again")
    shown.finish()
    assert shown._bars.tasks == []


def test_an_error_gives_the_terminal_back() -> None:
    shown, _ = bars()

    def interrupted() -> None:
        with shown:
            shown.start(5, "working")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not shown._live


def test_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert type(progress.for_terminal(quiet=True)) is progress.Silent
    lines = progress.for_terminal()
    assert type(lines) is progress.Lines
    lines.start(2, "quiet")
    lines.advance("quiet")
    lines.note("told")
    lines.finish()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "told\n")
    assert type(progress.bars_only()) is progress.Silent
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(progress.for_terminal()) is progress.Bars
    kept = progress.bars_only()
    assert isinstance(kept, progress.Bars)
    kept.note("kept, not shown")
    assert kept.notes == ["kept, not shown"]
    assert type(progress.for_terminal(quiet=True)) is progress.Silent
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert type(progress.for_terminal()) is progress.Lines
