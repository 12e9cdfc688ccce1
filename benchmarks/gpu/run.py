# SPDX-License-Identifier: Apache-2.0
"""Every op on a GPU beside torch's way of doing it, and beside what the card can do, in under ten minutes.

    python benchmarks/gpu/run.py            writes benchmarks/results/<date>-gpu.json
    python benchmarks/gpu/run.py --quick    small shapes, three rounds, nothing written

Cases are in files `cases_<subject>.py` of this folder. Each has a function `cases(device, quick)` that yields
`measure.Case` objects; a case is made when its turn comes, and let go after it. Rates count the work an op needs at
least, so that `of_ceiling` compares different ways of doing it. Without a GPU it says so and exits with status 1.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

# `common` and this folder, as `gpu`, are beside each other.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import Report
from gpu.measure import Case, ceilings, reached, timings_of


def subjects() -> list[str]:
    """Names of the files with cases."""
    return sorted(path.stem.removeprefix("cases_") for path in Path(__file__).parent.glob("cases_*.py"))


def cases(device: str, *, quick: bool) -> Iterator[Case]:
    """All cases, one at a time."""
    for subject in subjects():
        yield from importlib.import_module(f"gpu.cases_{subject}").cases(device, quick)


def measure(report: Report, case: Case, device: str, limits: dict[str, float], rounds: int | None) -> None:
    """Run one case and record it."""
    errors = {} if case.error is None else {name: case.error(call()) for name, call in case.candidates.items()}
    timings = timings_of(case, device, rounds)
    ours = next(name for name in case.candidates if name.startswith("pyprune."))
    report.add({"op": case.op, **case.what}, timings, ours=ours, reached=reached(case, timings, limits), errors=errors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", default="*", help="names, with commas; shell patterns will do (default: all)")
    parser.add_argument("--minutes", type=float, default=9.0, help="no case is begun after that (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small shapes, three rounds: does it run at all?")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 1
    end = time.monotonic() + 60 * options.minutes
    report = Report("gpu", write_file=not (options.no_write or options.quick))
    limits = ceilings("cuda", quick=options.quick)
    report.record({"ceilings": torch.cuda.get_device_name()}, **limits)
    left_out = []
    for case in cases("cuda", quick=options.quick):
        if not any(fnmatch(case.op, pattern) for pattern in options.ops.split(",")):
            continue
        if time.monotonic() > end:
            left_out.append(f"{case.op} {dict(case.what)}")
            continue
        measure(report, case, "cuda", limits, 3 if options.quick else None)
    if left_out:
        report.record({"left_out": len(left_out)}, cases=left_out)
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
