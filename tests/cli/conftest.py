# SPDX-License-Identifier: Apache-2.0
"""A tiny checkpoint and data on disk, and two ways to run the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import build_checkpoint, build_data
from tiny_models import one_thread

from pyprune.cli import main

__all__ = ["one_thread"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """Exit status and what was printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BERT classifier with tokenizer; not to be written to."""
    return build_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """``train.txt`` without labels, ``dev.tsv`` with."""
    return build_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # main() sets these for its process; tests share one
    monkeypatch.setenv("PYPRUNE_NUM_THREADS", "1")
    with warnings.catch_warnings():
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``main(argv)`` in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start ``python -m pyprune`` as a process of its own."""

    def call(*arguments: object, **settings: Any) -> subprocess.Popen[str]:
        # a PYTHONPATH that there is may name another release of transformers
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "PYPRUNE_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment |= settings.pop("env", {})
        settings.setdefault("stdout", subprocess.PIPE)
        # a runner in the background may hand down an ignored SIGINT
        return subprocess.Popen(
            [sys.executable, "-m", "pyprune", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
            **settings,
        )

    return call
