# SPDX-License-Identifier: Apache-2.0
"""What the numbers say, in plain words; nothing is left out where pyprune is behind."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALIKE = 0.03  # a difference of less is no difference
_NAMED = 6  # slower cases that are listed before the rest is counted


@dataclass(frozen=True)
class Comparison:
    """One kernel in one case.

    Attributes
    ----------
    case : mapping
        As recorded.
    seconds : float
        Median of the kernel.
    dense, sparse : (str, float), optional
        Name and median of the best dense and the best other sparse candidate, where there is one.
    auto : str, optional
        "sparse" or "dense": what pyprune would take here if it were asked to choose.
    """

    case: Mapping[str, Any]
    seconds: float
    dense: tuple[str, float] | None
    sparse: tuple[str, float] | None
    auto: str | None = None

    @property
    def gain(self) -> float | None:
        """How many times faster than the best dense one."""
        return None if self.dense is None else self.dense[1] / self.seconds

    @property
    def lead(self) -> float | None:
        """How many times faster than the best other sparse one."""
        return None if self.sparse is None else self.sparse[1] / self.seconds


def subjects(document: Mapping[str, Any]) -> list[str]:
    """The kernels that are judged: pyprune's and registered ones."""
    return [name for name, entry in document["candidates"].items() if entry["kind"] in ("pyprune", "registered")]


def comparisons(document: Mapping[str, Any], subject: str) -> list[Comparison]:
    """Every case that a kernel was timed in, beside the best of the others."""
    kinds = {name: entry["kind"] for name, entry in document["candidates"].items()}
    found = []
    for case in document["cases"]:
        timed = {name: each["median"] for name, each in case["results"].items() if each["status"] == "timed"}
        if subject in timed:
            best = [
                min(
                    ((name, timed[name]) for name in timed if name != subject and kinds[name] in own),
                    key=lambda pair: pair[1],
                    default=None,
                )
                for own in ({"dense"}, {"sparse", "pyprune", "registered"})
            ]
            details = case["results"][subject].get("details", {})
            found.append(Comparison(case, timed[subject], best[0], best[1], details.get("auto")))
    return found


def spmm(document: Mapping[str, Any]) -> list[str]:
    """Sentences on a record of ``bench spmm``."""
    lines: list[str] = []
    for subject in subjects(document):
        found = comparisons(document, subject)
        if not found:
            lines.append(f"{subject} was timed in no case.")
            continue
        lines += _against_dense(subject, [each for each in found if each.dense is not None])
        lines += _against_sparse(subject, [each for each in found if each.sparse is not None])
    lines += _not_timed(document["cases"])
    if document["interrupted"]:
        lines.append("The run was interrupted: the other cases were not measured.")
    return lines


def _against_dense(subject: str, found: Sequence[Comparison]) -> list[str]:
    lines = []
    groups: dict[tuple[str, str, float], list[Comparison]] = {}
    for each in found:
        groups.setdefault((each.case["dtype"], each.case["pattern"], each.case["sparsity"]), []).append(each)
    for (dtype, pattern, sparsity), group in groups.items():
        gains = sorted((each.gain or 0.0, _where(each.case)) for each in group)
        planned = {_where(each.case) for each in group if each.auto == "dense"}
        middle = statistics.median(gain for gain, _ in gains)
        text = f"{subject}, {dtype}, {pattern}, {_percent(sparsity)} zeros: {_times(middle)} the best dense product"
        if len(gains) > 1:
            text += (
                f" in the middle of {len(gains)} cases, "
                f"from {_ratio(gains[0][0])} ({gains[0][1]}) to {_ratio(gains[-1][0])} ({gains[-1][1]})"
            )
        else:
            text += f" ({gains[0][1]})"
        lines.append(f"{text}.")
        slower = [(gain, where) for gain, where in gains if gain < 1 - ALIKE]
        if slower:
            shown = ", ".join(f"{where} {_ratio(gain)}" for gain, where in slower[:_NAMED])
            more = f" and {len(slower) - _NAMED} more" if len(slower) > _NAMED else ""
            known = sum(where in planned for _, where in slower)
            auto = f"; format auto stays dense in {known} of {len(slower)}" if known else ""
            lines.append(f"  Slower than dense at this size: {shown}{more}{auto}.")
    if found:
        best = Counter(each.dense[0] for each in found if each.dense is not None).most_common()
        lines.append(f"  The best dense one was {_listed(f'{name} in {count}' for name, count in best)}.")
    return lines


def _against_sparse(subject: str, found: Sequence[Comparison]) -> list[str]:
    if not found:
        return []
    leads = [each.lead or 0.0 for each in found]
    ahead = sum(lead > 1 + ALIKE for lead in leads)
    best = Counter(each.sparse[0] for each in found if each.sparse is not None).most_common()
    worst = min(found, key=lambda each: each.lead or 0.0)
    return [
        f"  Against the best of the other sparse ones ({_listed(f'{name} in {count}' for name, count in best)}): ahead "
        f"in {ahead} of {len(found)} cases, {_times(_geometric(leads))} them on average, {_times(worst.lead or 0.0)} "
        f"{(worst.sparse or ('',))[0]} at the worst ({_percent(worst.case['sparsity'])} zeros, {_where(worst.case)})."
    ]


def _not_timed(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for status, words in (("wrong", "gave a wrong result"), ("failed", "failed")):
        counts: Counter[str] = Counter()
        reasons: dict[str, str] = {}
        for case in cases:
            for name, result in case["results"].items():
                if result["status"] == status:
                    counts[name] += 1
                    reasons.setdefault(name, result["reason"])
        lines += [f"{name} {words} in {count} of {len(cases)} cases: {reasons[name]}" for name, count in counts.items()]
    return lines


def model(document: Mapping[str, Any]) -> list[str]:
    """Sentences on a record of ``bench model``."""
    entries = document["candidates"]
    lines = []
    for case in document["cases"]:
        timed = {name: each for name, each in case["results"].items() if each["status"] == "timed"}
        dense = {name: each["median"] for name, each in timed.items() if entries[name]["model"] == "dense"}
        pruned = {name: each["median"] for name, each in timed.items() if entries[name]["model"] == "pruned"}
        if not dense or not pruned:
            continue
        first, best = min(pruned, key=pruned.__getitem__), min(dense, key=dense.__getitem__)
        text = f"Batch {case['batch']}, {_length(case['length'])}: the fastest pruned one is {first}, "
        text += f"{_times(dense[best] / pruned[first])} the fastest dense one, {best}"
        others = [f"{_times(dense[name] / pruned[first])} {name}" for name in dense if name != best]
        lines.append(f"{text}{'; ' if others else ''}{', '.join(others)}.")
        gains = {name: dense[best] / seconds for name, seconds in pruned.items()}
        slower = [f"{name} {_ratio(gain)}" for name, gain in gains.items() if gain < 1 - ALIKE]
        if slower:
            lines.append(f"  Slower than the best dense one at this size: {', '.join(slower)}.")
    lines += _sizes(document["models"], entries)
    lines += _not_timed(document["cases"])
    if document["interrupted"]:
        lines.append("The run was interrupted: what is missing was not measured.")
    return lines


def _sizes(models: Mapping[str, Any], entries: Mapping[str, Any]) -> list[str]:
    lines = []
    disks = [models[which]["disk"] for which in ("dense", "pruned")]
    for key, words in (("folder", "the folder takes"), ("linears", "the encoder's linear weights take")):
        dense, pruned = (disk.get(key) for disk in disks)
        if dense and pruned:
            lines.append(f"On disk {words} {_share(pruned / dense)} the bytes of the dense model's.")
    types = [disk.get("values") for disk in disks]
    if None not in types and types[0] != types[1]:
        lines.append(f"  Values are stored as {types[0]} in the dense one, as {types[1]} in the pruned one.")
    memory = {name: each["memory"]["model"] for name, each in entries.items() if each.get("memory")}
    memory = {name: size for name, size in memory.items() if size}
    sizes: list[int] = [
        min((size for name, size in memory.items() if entries[name]["model"] == which), default=0)
        for which in ("dense", "pruned")
    ]
    if all(sizes):
        least = min((name for name in memory if entries[name]["model"] == "pruned"), key=memory.__getitem__)
        lines.append(f"In memory {least} takes {_share(sizes[1] / sizes[0])} the bytes of the smallest dense one.")
    judged = {name: each["evaluation"] for name, each in entries.items() if each.get("evaluation")}
    for which in ("dense", "pruned"):
        own = [each["value"] for name, each in judged.items() if entries[name]["model"] == which]
        if own:
            metric = next(iter(judged.values()))["metric"]
            low, high = f"{min(own):.4g}", f"{max(own):.4g}"
            lines.append(f"{metric[0].upper()}{metric[1:]}, {which}: {low if low == high else f'{low} to {high}'}.")
    return lines


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _times(gain: float) -> str:
    return "as fast as" if abs(gain - 1) < ALIKE else f"{_ratio(gain)} as fast as"


def _ratio(gain: float) -> str:
    return f"{gain:.0f} x" if gain >= 10 else f"{gain:.2g} x"


def _share(share: float) -> str:
    return f"{share:.2f} x"


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:.3g} %"


def _where(case: Mapping[str, Any]) -> str:
    out, columns = case["shape"]
    return f"{out}x{columns} with {case['tokens']} token{'' if case['tokens'] == 1 else 's'}"


def _length(length: object) -> str:
    return "real sentences" if length == "real" else f"{length} tokens each"


def _listed(entries: Iterable[str]) -> str:
    *first, last = list(entries)
    return f"{', '.join(first)} and {last}" if first else last
