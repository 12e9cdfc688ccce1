# SPDX-License-Identifier: Apache-2.0
"""One matrix: time, error and memory of pyprune's solvers beside the public ones, or torch versions of them.

For every problem and pattern all solvers run in turns on the same gram; one that takes more than 20 s runs once, and
its line says so. Timed is the whole call, with the factorisation and without the gathering of moments; for pyprune
that is `LayerProblem` and `solve` with their checks (`solve_seconds`, which the solution states, leaves the problem's
out). Judged are all alike: the error is
`‖(Ŵ−W)X‖² / ‖WX‖²` in float64 from the gram without a ridge. Unstructured patterns let the rows of a layer compete,
except in Wanda and the torch OBS (`scope` says so).

Results are JSON lines, written as they come; `--resume` goes on after a kill. A table closes the run:

    python benchmarks/solver/run.py --sparsegpt ../sparsegpt --alps ../ALPS --patterns 0.5,2:4
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

# `common` and this folder, as `solver`, are beside each other.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import RESULTS, machine
from solver import measure, problems, public, records
from solver.candidates import Candidate, Found, choose

from pyprune import LayerProblem, Unstructured
from pyprune.errors import InputError, PypruneError
from pyprune.patterns import Pattern, parse_pattern

PATTERNS = "0.5,0.7,0.9,2:4"
SLOW = 20.0  # seconds; beyond this a solver runs once


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags and set the number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problems.add_flags(parser)
    parser.add_argument("--patterns", default=None, help=f"sparsities and N:M, with commas (default: {PATTERNS})")
    parser.add_argument("--solvers", default="", help="names, with commas; shell patterns such as 'pyprune.*' will do")
    parser.add_argument("--budgets", default="", help="for solvers that take a budget, with commas")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads for all")
    parser.add_argument("--patient", action="store_true", help="also what takes many minutes")
    parser.add_argument("--quick", action="store_true", help="small problems, one round: does it run at all?")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<date>-solver.jsonl; quick: none")
    parser.add_argument("--resume", action="store_true", help="keep what is in the file, add what is missing")
    public.add_flags(parser)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.threads < 1 or options.tokens < 1:
        parser.error("--rounds, --threads and --tokens must be at least 1")
    if options.quick:
        options.rounds = 1
        options.problems = options.problems or ",".join(problems.QUICK)
    elif options.output is None:
        options.output = RESULTS / f"{datetime.date.today().isoformat()}-solver.jsonl"
    options.patterns = _split(options.patterns or ("0.5,2:4" if options.quick else PATTERNS))
    options.solvers = _split(options.solvers)
    try:
        options.budgets = [float(budget) for budget in _split(options.budgets)]
    except ValueError:
        parser.error(f"--budgets must be numbers, not {options.budgets!r}")
    torch.set_num_threads(options.threads)
    os.environ["PYPRUNE_NUM_THREADS"] = str(options.threads)
    return options


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


class Run:
    """One run over problems and patterns.

    Parameters
    ----------
    options : argparse.Namespace
        Of :func:`options_of`.
    candidates : sequence of Candidate
    known : sequence of dict
        Lines that are already in the file.
    """

    def __init__(
        self, options: argparse.Namespace, candidates: Sequence[Candidate], known: Sequence[records.Line] = ()
    ) -> None:
        self.options = options
        self.candidates = list(candidates)
        self.lines = list(known)
        self.done = {records.key(line) for line in known}
        self.facts = {"machine": machine(), "versions": {name: version(name) for name in ("numpy", "transformers")}}

    def missing(self, problem: str, pattern: str) -> list[Candidate]:
        """Candidates that have no line yet."""
        threads = self.options.threads
        return [each for each in self.candidates if (problem, pattern, each.name, threads) not in self.done]

    def case(self, problem: LayerProblem, text: str, *, keep: bool = True) -> None:
        """All missing candidates on one problem and pattern; a line for each.

        Parameters
        ----------
        keep : bool
            False: run each once and forget it, so that what is loaded at first use is loaded.
        """
        pattern = parse_pattern(text, scope="layer")
        lines: dict[str, records.Line] = {}
        again: dict[str, Callable[[], Callable[[], Found]]] = {}
        for candidate in self.missing(problem.name, text):
            line = self._first(candidate, problem, pattern, text)
            if line is None:
                continue
            lines[candidate.name] = line
            if line["failed"] is None and not line["slow"]:
                again[candidate.name] = _preparing(candidate, problem, pattern)
        if not keep:
            return

        def note(name: str, found: Found, seconds: float) -> None:
            lines[name]["samples"].append(seconds)
            if found.solve_seconds is not None:
                lines[name]["solve_samples"].append(found.solve_seconds)

        for name in again:  # the first run was for error and memory
            lines[name]["samples"], lines[name]["solve_samples"] = [], []
        measure.in_turns(again, self.options.rounds, note)
        for line in lines.values():
            self._finish(line)

    def _first(self, candidate: Candidate, problem: LayerProblem, pattern: Pattern, text: str) -> records.Line | None:
        """The line of a candidate after one run, or None where it does not know the pattern."""
        rows, columns = problem.shape
        refusal = candidate.refusal(pattern, rows, columns, patient=self.options.patient)
        if refusal is not None:
            print(f"    {candidate.name:<28} left out: {refusal}", flush=True)
            return None
        by_row = candidate.row_only and isinstance(pattern, Unstructured)
        line: records.Line = {
            "problem": problem.name,
            "rows": rows,
            "columns": columns,
            "pattern": text,
            "scope": ("row" if by_row else "layer") if isinstance(pattern, Unstructured) else None,
            "solver": candidate.name,
            "settings": dict(candidate.settings),
            "failed": None,
            "slow": False,
            "samples": [],
            "solve_samples": [],
            "threads": self.options.threads,
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        }
        try:
            found, seconds, peak = measure.with_peak(candidate.prepare(problem, pattern))
            weight = found.weight.double()
        except InputError as error:
            print(f"    {candidate.name:<28} left out: {str(error).splitlines()[0]}", flush=True)
            return None
        except Exception as error:  # not our code alone, and a run takes hours
            line["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            return line
        if not bool(torch.isfinite(weight).all()):
            line["failed"] = "its weights are not finite"
            return line
        line |= {
            "error": problem.error(weight),
            "sparsity": float((weight == 0).double().mean()),
            "peak_bytes": peak,
            "notes": list(found.notes),
            "slow": seconds > SLOW,
            "samples": [seconds],
            "solve_samples": [] if found.solve_seconds is None else [found.solve_seconds],
        }
        return line

    def _finish(self, line: records.Line) -> None:
        if line["failed"] is None:
            line["seconds"] = statistics.median(line["samples"])
            line["solve_seconds"] = statistics.median(line["solve_samples"]) if line["solve_samples"] else None
            once = "  (once: slow)" if line["slow"] else ""
            print(f"    {line['solver']:<28} error {line['error']:.5f}  {line['seconds'] * 1e3:10.2f} ms{once}")
        else:
            print(f"    {line['solver']:<28} failed: {line['failed']}")
        sys.stdout.flush()
        line |= {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), **self.facts}
        self.lines.append(line)
        if self.options.output is not None:
            records.append(self.options.output, line)


def _preparing(candidate: Candidate, problem: LayerProblem, pattern: Pattern) -> Callable[[], Callable[[], Found]]:
    return lambda: candidate.prepare(problem, pattern)


def known_lines(options: argparse.Namespace) -> list[records.Line]:
    """What a file to be resumed holds; an existing file is never overwritten.

    Raises
    ------
    InputError
        The file exists and `--resume` was not given.
    """
    path: Path | None = options.output
    if path is None:
        return []
    if not path.exists() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    if not options.resume:
        raise InputError(f"{path} exists", hint="--resume to go on with it, or another --output")
    records.drop_cut_line(path)
    return records.read(path)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except PypruneError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; --resume goes on")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and print the table."""
    options = options_of(arguments)
    with _plain_errors():
        checkpoint, wanted = problems.chosen(options)
        for text in options.patterns:
            parse_pattern(text)
        candidates = choose(public.given(options), options.solvers, options.budgets)
        run = Run(options, candidates, known_lines(options))
        facts: dict[str, Any] = run.facts["machine"]
        print(
            f"solver: pyprune {facts['pyprune']} on {facts['cpu']}, {options.threads} threads, torch {facts['torch']}"
        )
        wanted = [name for name in wanted if any(run.missing(name, text) for text in options.patterns)]
        for number, problem in enumerate(problems.make(wanted, checkpoint)):
            if number == 0:
                _rehearse(run, options.patterns)
            for text in options.patterns:
                print(f"  {problem.name} ({problem.shape[0]} x {problem.shape[1]}), {text}", flush=True)
                run.case(problem, text)
        print(records.table([line for line in run.lines if line["threads"] == options.threads]))
        if options.output is not None:
            print(f"\nin {options.output}")


def _rehearse(run: Run, patterns: Sequence[str]) -> None:
    """Every candidate once on a small problem, so that no first use is timed or counted as memory."""
    small = problems.synthetic("bert", 64, 128, name="rehearsal")
    print("  rehearsal (not measured)")
    for text in patterns:
        run.case(small, text, keep=False)


if __name__ == "__main__":
    main()
