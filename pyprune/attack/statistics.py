# SPDX-License-Identifier: Apache-2.0
"""Accuracy, accuracy under attack and attack success rate, from records; and two models on the same examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyprune.attack.records import Record
from pyprune.errors import InputError, NumericsError
from pyprune.tasks.metrics import sign_test, wilson

_DRAWS = 10_000
_CHUNK = 500  # draws at a time, for memory


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Count outcomes.

    Every example is one of three: *skipped*, as the model is wrong without an attack; *succeeded*, the attack changed
    the answer; *failed*, the model withstood. Of all examples ``accuracy`` is the share that is not skipped, ``aua``
    (accuracy under attack) the share that failed; ``asr`` (attack success rate) is the share of successes among those
    attacked.

    Returns
    -------
    dict
        ``accuracy``, ``aua``, ``asr`` (None where nothing was attacked), ``intervals`` of these (Wilson, 95 %),
        ``total``, ``succeeded``, ``failed``, ``skipped``; ``queries_mean`` over attacked examples; ``words_changed``,
        the mean share of words that are another one over successes. Means of nothing are None.

    Raises
    ------
    InputError
        There is no record.
    NumericsError
        ``asr`` is not ``1 - aua / accuracy``, which follows from the definitions.

    Examples
    --------
    >>> record = {"queries": 10, "words": 5, "changed": 1}
    >>> found = summarise([{**record, "outcome": outcome} for outcome in ("skipped", "succeeded", "failed", "failed")])
    >>> found["accuracy"], found["aua"], round(found["asr"], 4)
    (0.75, 0.5, 0.3333)
    """
    if not records:
        raise InputError("there are no records to summarise")
    counts = Counter(record["outcome"] for record in records)
    total, succeeded, failed = len(records), counts["succeeded"], counts["failed"]
    attacked = succeeded + failed
    accuracy, aua = attacked / total, failed / total
    asr = succeeded / attacked if attacked else None
    if asr is not None and abs(asr - (1 - aua / accuracy)) > 1e-12:
        raise NumericsError("the attack success rate is not 1 - Aua / Acc", seen=f"{asr}, {aua}, {accuracy}")
    queries = [record["queries"] for record in records if record["outcome"] != "skipped"]
    changed = [record["changed"] / max(record["words"], 1) for record in records if record["outcome"] == "succeeded"]
    return {
        "accuracy": accuracy,
        "aua": aua,
        "asr": asr,
        "intervals": {
            "accuracy": list(wilson(attacked, total)),
            "aua": list(wilson(failed, total)),
            "asr": list(wilson(succeeded, attacked)) if attacked else None,
        },
        "total": total,
        "succeeded": succeeded,
        "failed": failed,
        "skipped": counts["skipped"],
        "queries_mean": sum(queries) / len(queries) if queries else None,
        "words_changed": sum(changed) / len(changed) if changed else None,
    }


def compare(first: Sequence[Record], second: Sequence[Record], *, seed: int = 0, draws: int = _DRAWS) -> dict[str, Any]:
    """Two models attacked alike, example by example.

    Parameters
    ----------
    first, second : sequence of records
        Of the same attack: recipe, resources, data and seed.
    seed, draws : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``accuracy``, ``aua``, ``asr``: each with ``difference`` (second minus first) and ``interval``, the middle 95 %
        of that difference when examples are drawn anew with replacement, both models on the same draw (paired
        bootstrap, Efron 1979); draws in which a model has nothing right are left out for ``asr``.
        ``only_first_stands``, ``only_second_stands``: examples that only this model got right under attack, with
        ``sign_test_p`` of the two; ``draws`` and ``seed``.

    Raises
    ------
    InputError
        The records are not of the same attack or not of the same examples.
    """
    if {record["attack"] for record in first} != {record["attack"] for record in second}:
        raise InputError(
            "the two models were not attacked alike", hint="the same recipe, resources, data, limit and seed for both"
        )
    if [record["index"] for record in first] != [record["index"] for record in second]:
        raise InputError("the two models were not attacked on the same examples", hint="finish both with --resume")
    right = np.array(
        [[record["outcome"] != "skipped" for record in records] for records in (first, second)], dtype=float
    )
    stands = np.array(
        [[record["outcome"] == "failed" for record in records] for records in (first, second)], dtype=float
    )
    total = right.shape[1]
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[Any]] = {"accuracy": [], "aua": [], "asr": []}
    for begin in range(0, draws, _CHUNK):
        times = generator.multinomial(total, np.full(total, 1 / total), size=min(_CHUNK, draws - begin))
        for name, values in _rates(times @ right.T / total, times @ stands.T / total).items():
            drawn[name].append(values[:, 1] - values[:, 0])
    seen = _rates(right.mean(axis=1)[None], stands.mean(axis=1)[None])
    found: dict[str, Any] = {}
    for name, parts in drawn.items():
        values = np.concatenate(parts)
        values = values[np.isfinite(values)]
        difference = float(seen[name][0, 1] - seen[name][0, 0])
        found[name] = {
            "difference": difference if np.isfinite(difference) else None,
            "interval": [float(bound) for bound in np.quantile(values, (0.025, 0.975))] if len(values) else None,
        }
    only_first = int(((stands[0] == 1) & (stands[1] == 0)).sum())
    only_second = int(((stands[0] == 0) & (stands[1] == 1)).sum())
    return {
        **found,
        "only_first_stands": only_first,
        "only_second_stands": only_second,
        "sign_test_p": sign_test(only_first, only_second),
        "draws": draws,
        "seed": seed,
    }


def _rates(accuracy: Any, aua: Any) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"accuracy": accuracy, "aua": aua, "asr": 1 - aua / accuracy}
