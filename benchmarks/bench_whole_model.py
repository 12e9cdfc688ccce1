# SPDX-License-Identifier: Apache-2.0
"""Whole models: accuracy, layer error, seconds and memory of every method over sparsities, through the command line.

One process for each pruning, so that its peak memory is its own. Finished cases are kept in the file of results as
they come; `--go-on` leaves those out and adds the rest. Without flags: the model and sentences of the demo.

    python benchmarks/bench_whole_model.py --name sst2 --model MODEL --data train.tsv --evaluate dev.tsv
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Report, arguments

from pyprune.demo import model_folder, test_file, train_file

METHODS = ("magnitude", "wanda", "sparsegpt", "obs", "akr")
PATTERNS = ("0.3", "0.5", "0.7", "0.875", "2:4", "32:64")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark alone."""
    parser.add_argument("--name", default="reviews", help="of the task: part of the name of the results")
    parser.add_argument("--model", default=str(model_folder()), help="a fine-tuned checkpoint")
    parser.add_argument("--data", default=str(train_file()), help="calibration text")
    parser.add_argument("--evaluate", default=str(test_file()), help="labelled rows")
    parser.add_argument("--samples", type=int, default=2560, help="calibration rows (default: %(default)s)")
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, help="methods; METHOD:SOLVER or METHOD:SOLVER:SCOPE for another solver"
    )
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, help="sparsities, or N:M")


def pyprune(*command: str) -> dict[str, Any]:
    """Run a command of pyprune in a process of its own and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "pyprune", *command, "--json", "--quiet"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"pyprune {' '.join(command)} failed:\n{done.stderr}")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def some_rows(table: Path, folder: Path, count: int = 32) -> Path:
    """The head of a table and its first rows, in a file of their own."""
    lines = table.read_text(encoding="utf-8").splitlines()[: 1 + count]
    target = folder / table.name
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def judge(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy on the labelled rows."""
    found = pyprune("evaluate", model, "--data", options.evaluate, "--threads", str(options.threads))
    return {key: found[key] for key in ("accuracy", "correct", "total", "interval")}


def prune(method: str, pattern: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One pruning and what it gave."""
    shape = "--pattern" if ":" in pattern else "--sparsity"
    method, *rest = method.split(":")
    flags = [word for pair in zip(("--solver", "--scope"), rest, strict=False) for word in pair]
    if ":" in pattern and "--scope" in flags:  # groups are the same in every row
        flags = flags[:2]
    begin = time.perf_counter()
    report = pyprune(
        *("prune", options.model, "--data", options.data, "--samples", str(options.samples)),
        *("--method", method, *flags, shape, pattern, "--output", str(folder), "--threads", str(options.threads)),
    )
    return {
        "mean_layer_error": report["mean_error"],
        "worst_layer_error": max(layer["error"] for layer in report["layers"]),
        "sparsity": report["sparsity"]["linear_weights"],
        "scope": report["pattern"],
        "calibration_tokens": report["data"]["tokens"],
        "seconds": report["seconds"],
        "seconds_of_the_process": time.perf_counter() - begin,
        "peak_bytes": report["memory"]["peak"],
    }


def main() -> None:
    """Prune and judge every case."""
    options = arguments(__doc__ or "", rounds=1, add=add_flags)
    if options.quick:
        options.methods, options.patterns, options.samples = options.methods[:1], options.patterns[:1], 64
    report = Report(f"whole-model-{options.name}", not options.no_write)
    known = report.resume() if options.go_on else []
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.evaluate = str(some_rows(Path(options.evaluate), Path(scratch)))
        if not any(case["method"] == "dense" for case in known):
            report.record({"method": "dense"}, **judge(options.model, options))
        for pattern in options.patterns:
            for method in options.methods:
                if any((case["method"], case.get("pattern")) == (method, pattern) for case in known):
                    continue
                folder = Path(scratch) / "pruned"
                measured = prune(method, pattern, options, folder)
                report.record(
                    {"method": method, "pattern": pattern},
                    **judge(str(folder), options),
                    **measured,
                    load=round(os.getloadavg()[0], 1),
                )
                report.write()


if __name__ == "__main__":
    main()
