# SPDX-License-Identifier: Apache-2.0
"""The results as JSON lines, one a problem, pattern and solver; and their ratios to SparseGPT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyprune.errors import InputError

BASELINES = ("public.sparsegpt", "torch.sparsegpt")  # the first of them that a case has

Line = dict[str, Any]


def key(line: Mapping[str, Any]) -> tuple[str, str, str, int]:
    """What makes a line one of a kind."""
    return line["problem"], line["pattern"], line["solver"], line["threads"]


def read(path: Path) -> list[Line]:
    """The lines of a file; a later one of the same key replaces an earlier one.

    Raises
    ------
    InputError
        A line that is not JSON, other than a last one that was cut off while it was written.
    """
    lines: dict[tuple[str, str, str, int], Line] = {}
    text = path.read_text(encoding="utf-8")
    for number, row in enumerate(text.splitlines(keepends=True), 1):
        try:
            line = json.loads(row)
            lines[key(line)] = line
        except (ValueError, KeyError, TypeError) as error:
            if not row.endswith("\n"):
                break
            raise InputError(f"{path}, line {number}, is no result of this benchmark", seen=repr(error)) from None
    return list(lines.values())


def drop_cut_line(path: Path) -> None:
    """Remove a last line that was never finished, so that the next one can be appended."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Ratio:
    """One line beside SparseGPT on the same problem and pattern; None where that was not run or is zero."""

    line: Line
    error: float | None
    seconds: float | None


def beside_sparsegpt(lines: Sequence[Line]) -> dict[tuple[str, str], list[Ratio]]:
    """Lines that did not fail, by problem and pattern, each with its ratios, from the fastest to the slowest.

    Raises
    ------
    InputError
        Runs with different numbers of threads are mixed.
    """
    threads = {line["threads"] for line in lines}
    if len(threads) > 1:
        raise InputError(
            "these results were taken with different numbers of threads",
            seen=", ".join(map(str, sorted(threads))),
            hint="choose with --threads",
        )
    cases: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line.get("failed") is None:
            cases.setdefault((line["problem"], line["pattern"]), []).append(line)
    found = {}
    for case, members in cases.items():
        by_name = {line["solver"]: line for line in members}
        base = next((by_name[name] for name in BASELINES if name in by_name), None)
        ordered = sorted(members, key=lambda line: line["seconds"])
        found[case] = [Ratio(line, _ratio(line, base, "error"), _ratio(line, base, "seconds")) for line in ordered]
    return found


def _ratio(line: Line, base: Line | None, field: str) -> float | None:
    return line[field] / base[field] if base is not None and base[field] > 0 else None


def table(lines: Sequence[Line]) -> str:
    """For a person: every case with errors, times, memory and the ratios to SparseGPT."""
    rows = []
    for (problem, pattern), ratios in beside_sparsegpt(lines).items():
        shape = f"{ratios[0].line['rows']} x {ratios[0].line['columns']}"
        rows += ["", f"{problem} ({shape}), {pattern}"]
        rows.append(f"  {'solver':<28}{'error':>10}{'ratio':>8}{'seconds':>11}{'ratio':>8}{'peak MiB':>10}")
        for ratio in ratios:
            line = ratio.line
            peak = "-" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**20:.1f}"
            rows.append(
                f"  {line['solver']:<28}{line['error']:>10.5f}{_short(ratio.error):>8}"
                f"{line['seconds']:>11.4f}{_short(ratio.seconds):>8}{peak:>10}"
                + ("  (once: slow)" if line["slow"] else "")
            )
    failed = [line for line in lines if line.get("failed") is not None]
    rows += [f"failed: {line['problem']}, {line['pattern']}, {line['solver']}: {line['failed']}" for line in failed]
    return "\n".join(rows)


def _short(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}"
