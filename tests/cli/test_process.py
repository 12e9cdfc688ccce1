# SPDX-License-Identifier: Apache-2.0
"""What only a real process shows: Ctrl-C and resume, kill and resume, a full or closed stdout, a quiet start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stopped_runs import finish, wait_for
from tiny_checkpoint import build_checkpoint, build_data

Start = Callable[..., "subprocess.Popen[str]"]
BLOCKS = 12


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of many blocks, so that there is a middle to be interrupted in."""
    folder = tmp_path_factory.mktemp("long")
    train, _ = build_data(folder, train=160)
    return build_checkpoint(folder / "model", layers=BLOCKS, hidden=64, inner=192), train


def test_interrupt_and_kill_then_resume_gives_the_same_bytes(
    start: Start, long_run: tuple[Path, Path], tmp_path: Path
) -> None:
    model, train = long_run
    common = ("prune", model, "--data", train, "--sparsity", 0.6, "--threads", 1, "--quiet", "--json", "--output")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reference = start(*common, whole)
    journal = tmp_path / "parts.journal"

    stopped = start(*common, parts)
    wait_for(journal / "block-001.safetensors", stopped)
    stopped.send_signal(signal.SIGINT)
    status, out, err = finish(stopped)
    assert status == 1
    assert "interrupted" in err
    assert f"saved in {journal}; run the same command with --resume" in err
    assert "error" in json.loads(out)
    assert not parts.exists()

    refused = finish(start(*common, parts))
    assert refused[0] == 1
    assert "--resume" in refused[2]

    done = len(list(journal.glob("block-*.safetensors")))
    killed = start(*common, parts, "--resume")
    wait_for(journal / f"block-{done:03d}.safetensors", killed)
    killed.kill()
    killed.communicate()
    assert journal.exists()

    status, out, err = finish(start(*common, parts, "--resume"))
    assert status == 0, err
    assert json.loads(out)["resumed_blocks"] > done
    assert not journal.exists()
    assert finish(reference)[0] == 0
    for name in ("model.safetensors", "pyprune_masks.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    reports = [json.loads((folder / "pyprune.json").read_text(encoding="utf-8")) for folder in (whole, parts)]
    errors = [[layer["error"] for layer in report["layers"]] for report in reports]
    assert errors[0] == errors[1]


def test_interrupt_before_the_first_block(start: Start, long_run: tuple[Path, Path], tmp_path: Path) -> None:
    model, train = long_run
    process = start("prune", model, "--data", train, "--output", tmp_path / "out", "--damping", "0.5")
    wait_for(tmp_path / "out.journal" / "journal.json", process)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 1
    # on a fast machine a block may be done by now
    if "no block was finished yet" in err:
        assert list(tmp_path.iterdir()) == []
    else:
        assert "--resume" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [("info", "--json"), ("info",)])
def test_stdout_on_a_full_disk(start: Start, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        status, _, err = finish(start(*arguments, stdout=full))
    assert status == 1
    assert "the disk is full" in err
    assert "Exception ignored" not in err


def test_stdout_that_closes(start: Start) -> None:
    process = start("info")
    assert process.stdout is not None
    process.stdout.close()
    err = process.stderr.read() if process.stderr else ""
    assert process.wait(timeout=300) == 1
    assert err == ""


def test_start_is_quiet_and_light() -> None:
    code = (
        "import sys; from pyprune.cli import build_parser; build_parser().format_help();"
        "print([name for name in ('transformers', 'datasets', 'rich', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_a_broken_argument_in_a_process(start: Start) -> None:
    status, out, err = finish(start("prune", "m", "--data", "d", "--sparsity", "1.2"))
    assert (status, out) == (2, "")
    assert "1.2 is not a sparsity" in err


def test_every_help_in_a_process(start: Start) -> None:
    processes: list[Any] = [start(command, "--help") for command in ("prune", "demo")]
    for process in processes:
        status, out, err = finish(process)
        assert (status, err) == (0, "")
        assert "examples:" in out
