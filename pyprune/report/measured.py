# SPDX-License-Identifier: Apache-2.0
"""What was measured of a model: evaluations, attacks, and records of ``pyprune bench model``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyprune.report.document import Attack, Bench, Judged, Latency, Share
from pyprune.report.parts import Part, printable, read_json
from pyprune.tasks.metrics import wilson

_IDENTITY = 1e-3  # of Asr = 1 - Aua / accuracy; records may be rounded


def read_judged(part: Part, around: Part | None = None) -> Judged | None:
    """An evaluation as ``pyprune evaluate`` writes it; None if there is none."""
    metric = part.text("metric")
    if metric is None and part.number("accuracy", 0, 1) is None:
        return None
    accuracy = None if metric == "perplexity" else _share(part, "accuracy", part, "interval", part.count("total"))
    source, sha256 = part.text("source"), part.text("sha256")
    if around is not None:
        source, sha256 = source or around.text("source"), sha256 or around.text("sha256")
    total = part.count("predicted") if metric == "perplexity" else part.count("total")
    called = {"accuracy_is": "exact match"} if part.text("accuracy_is") == "exact match" else {}
    return Judged(metric or "accuracy", part.number("value"), accuracy, total, source, sha256, **called)


def read_attack(part: Part) -> Attack | None:
    """``attack.json`` as :mod:`pyprune.attack.run` writes it; None if it holds no number of an attack.

    Intervals that are not there are Wilson's, of the counts. A record whose numbers contradict each other is shown, and
    a problem.
    """
    total, skipped = part.count("total"), part.count("skipped")
    attacked = None if total is None or skipped is None else total - skipped
    intervals = part.part("intervals")
    accuracy = _share(part, "accuracy", intervals, "accuracy", total)
    aua = _share(part, "aua", intervals, "aua", total)
    asr = _share(part, "asr", intervals, "asr", attacked)
    if accuracy is None and aua is None and asr is None:
        return None
    if accuracy is not None and aua is not None and asr is not None and accuracy.value > 0:
        wanted = 1 - aua.value / accuracy.value
        if abs(asr.value - wanted) > _IDENTITY:
            part.complain(f"is {asr.value:.4f}, but 1 - Aua / accuracy is {wanted:.4f}", "asr")
    return Attack(
        part.text("recipe"),
        accuracy,
        aua,
        asr,
        part.number("queries_mean", 0),
        part.number("words_changed", 0),
        total,
        skipped,
        part.count("seed"),
        part.text("sha256"),
        part.text("model_sha256"),
        dict(map(_resource, part.parts("resources"))),
    )


def _share(part: Part, key: str, intervals: Part, interval: str, total: int | None) -> Share | None:
    value = part.number(key, 0, 1)
    if value is None:
        return None
    ends = intervals.interval(interval, value)
    if ends is None and total is not None and total > 0:
        ends = wilson(round(value * total), total)
    return Share(value) if ends is None else Share(value, *ends)


def _resource(part: Part) -> tuple[str, str]:
    """Name, and whether it is the original; of anything else also what it is."""
    kind, sha256 = part.text("kind") or "?", part.text("sha256")
    facts = [] if kind == "original" else [part.text("what"), None if sha256 is None else f"sha256 {sha256[:12]}"]
    return part.text("name") or "?", ", ".join([kind, *(fact for fact in facts if fact is not None)])


def read_bench(path: Path) -> Bench:
    """A record of ``pyprune bench model``."""
    problems: list[str] = []
    record = read_json(path, problems) or Part({}, path.name, problems)
    if not problems and record.values.get("kind") != "model":
        problems.append(f"{path.name} is not a record of pyprune bench model")
        record = Part({}, path.name, problems)
    machine, models, candidates = record.part("machine"), record.part("models"), record.part("candidates")
    facts = [machine.text("cpu"), _threads(machine.count("threads")), _version("torch", machine.text("torch"))]
    memory = {name: candidates.part(name).part("memory").count("process") for name in candidates.values}
    rows = tuple(row for case in record.parts("cases") for row in _rows(case, candidates))
    if record.values.get("interrupted") is True:
        problems.append(f"{path.name}: the measurement was interrupted, cases are missing")
    return Bench(
        str(path),
        models.part("dense").text("path"),
        models.part("pruned").text("path"),
        ", ".join(fact for fact in facts if fact) or "machine not stated",
        rows,
        {printable(name, 60): size for name, size in memory.items() if size is not None},
        record.texts("verdict"),
        tuple(problems),
    )


def _rows(case: Part, candidates: Part) -> Iterator[Latency]:
    results, base = case.part("results"), None
    for name in results.values:
        result, about = results.part(name), candidates.part(name)
        median = result.number("median", 0)
        if base is None and about.text("model") == "dense":
            base = median
        yield Latency(
            case.text("batch") or "?",
            case.text("length") or "?",
            printable(name, 60),
            about.values.get("ours") is True,
            median,
            result.number("p90", 0),
            base / median if base and median else None,
            result.number("tokens_per_second", 0),
            result.text("status") or "?",
        )


def _threads(count: int | None) -> str | None:
    return None if count is None else f"{count} thread{'' if count == 1 else 's'}"


def _version(name: str, version: str | None) -> str | None:
    return None if version is None else f"{name} {version}"
