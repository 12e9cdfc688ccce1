# SPDX-License-Identifier: Apache-2.0
"""Runs the cases of a kernel in another process, in which Triton interprets (or not).

Triton reads TRITON_INTERPRET when a kernel is decorated, so one process cannot do both. One worker serves the cases of
all ops, because importing torch and Triton takes longer than most of them. `python worker.py` is its other end: it
reads lines `<op> <device>`, calls `findings(device)` of `<op>_cases.py`, and answers with one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest


class Worker:
    """A process that runs cases; started again after a crash.

    Parameters
    ----------
    interpret : bool
        Whether Triton interprets, on CPU tensors.
    """

    def __init__(self, *, interpret: bool) -> None:
        self._environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the worker)
        self._process: subprocess.Popen[str] | None = None

    def run(self, op: str, device: str) -> dict[str, Any]:
        """What `<op>_cases.py` finds on a device."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=self._environment,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{op} {device}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:  # a pointer out of range can end an interpreting process
            status = self._process.wait()
            self.close()
            self._errors.seek(0)
            pytest.fail(f"the cases of {op} ended their process with status {status}:\n{self._errors.read()}")
        answer: dict[str, Any] = json.loads(line)
        if "only 0-dimensional arrays can be converted" in answer.get("error", ""):
            pytest.skip("this Triton's interpreter does not run with this NumPy (Triton 3.6 needs NumPy < 2.4)")
        if "error" in answer:
            pytest.fail(answer["error"])
        return answer

    def close(self) -> None:
        """End the process; another one starts when it is needed."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a case prints goes with the errors
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests), str(tests / "ops")]  # for the problems that the ops' own tests use
    for line in sys.stdin:
        op, device = line.split()
        try:
            found = importlib.import_module(f"{op}_cases").findings(device)
        except Exception:
            found = {"error": traceback.format_exc()}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
