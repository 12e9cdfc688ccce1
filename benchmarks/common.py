# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: flags, activations, results as JSON; timing and machine facts are `pyprune.bench`'s.

A file of results is one JSON object with one case per line: `benchmarks/results/YYYY-MM-DD-<name>.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import pyprune
from pyprune import backends
from pyprune.bench.machine import machine
from pyprune.bench.report import one_case_a_line
from pyprune.bench.timing import Timing, interleaved

__all__ = ["RESULTS", "Report", "Timing", "activations", "arguments", "interleaved", "machine", "set_threads"]

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Report:
    """Collects cases, prints each as it comes and writes them at the end."""

    name: str
    write_file: bool = True

    def __post_init__(self) -> None:
        self.machine = machine()
        self.cases: list[dict[str, Any]] = []
        facts = f"{self.machine['cpu']}, {self.machine['threads']} threads, torch {torch.__version__}"
        print(f"{self.name}: pyprune {pyprune.__version__} on {facts}")

    def add(self, case: Mapping[str, Any], timings: Mapping[str, Timing], *, ours: str, **measured: Any) -> None:
        """Record one case; every other candidate's time is also given as a multiple of `ours`.

        Parameters
        ----------
        case : mapping
            What was run: shape, dtype and so on.
        measured
            Anything beyond time, such as errors by candidate or operations for a rate.
        """
        base = timings[ours].median
        line = {
            **case,
            "seconds": {name: asdict(timing) for name, timing in timings.items()},
            "ours": ours,
            "ratio": {name: timing.median / base for name, timing in timings.items() if name != ours},
            **measured,
        }
        self.cases.append(line)
        print("  " + " ".join(f"{key}={value}" for key, value in case.items()))
        for name, timing in timings.items():
            print(f"    {name:<34} {timing.median * 1e3:10.2f} ms   {timing.median / base:7.2f} x")
        for key, value in measured.items():
            print(f"    {key}: {_short(value)}")

    def record(self, case: Mapping[str, Any], **measured: Any) -> None:
        """Record one case without candidates to compare."""
        self.cases.append({**case, **measured})
        print("  " + " ".join(f"{key}={value}" for key, value in case.items()))
        for key, value in measured.items():
            print(f"    {key}: {_short(value)}", flush=True)

    def resume(self) -> list[dict[str, Any]]:
        """Take over the cases of today's file, if there is one, and return them."""
        if self.write_file and self._path.exists():
            self.cases = json.loads(self._path.read_text())["cases"]
        return list(self.cases)

    @property
    def _path(self) -> Path:
        return RESULTS / f"{datetime.date.today().isoformat()}-{self.name}.json"

    def write(self) -> None:
        """Write `results/<date>-<name>.json`, in place of an earlier one of the same day."""
        if not self.write_file:
            return
        RESULTS.mkdir(exist_ok=True)
        path = self._path
        path.write_text(one_case_a_line({"name": self.name, "machine": self.machine, "cases": self.cases}))
        print(f"wrote {path.relative_to(RESULTS.parents[1])}")


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def arguments(
    description: str, *, rounds: int, add: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> argparse.Namespace:
    """Parse the flags all benchmarks share and those that `add` adds, and set the number of threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add(parser)
    parser.add_argument("--rounds", type=int, default=rounds, help="measured rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads for all candidates")
    parser.add_argument("--go-on", action="store_true", help="keep the cases of today's file and add to them")
    parser.add_argument("--quick", action="store_true", help="small shapes, one round: does it run at all?")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.no_write = 1, True
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    set_threads(options.threads)
    if backends.unavailable("cpp") is not None:
        print("note: no compiled extension, pyprune runs its slow reference", file=sys.stderr)
    return options


def set_threads(count: int) -> None:
    """Threads of torch and of pyprune, from here on."""
    torch.set_num_threads(count)
    os.environ["PYPRUNE_NUM_THREADS"] = str(count)


def activations(tokens: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    """Correlated features like a Transformer's: decaying spectrum, a mean, a few columns much larger.

    Returns
    -------
    Tensor, shape (tokens, columns), float32
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    spectrum = torch.arange(1, columns + 1, dtype=torch.float32).pow(-0.5)
    x: torch.Tensor = (torch.randn(tokens, columns, generator=generator) * spectrum) @ mixing
    x += 0.1 * torch.randn(tokens, columns, generator=generator) * spectrum.mean()
    x += 0.2 * spectrum.mean() * torch.randn(columns, generator=generator)
    loud = torch.randperm(columns, generator=generator)[: max(1, columns // 128)]
    x[:, loud] *= 10.0
    return x
