# SPDX-License-Identifier: Apache-2.0
"""The few numbers an evaluation reports, from a confusion matrix of counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

# 97.5 % quantile of the normal distribution: two-sided 95 %
_Z95 = 1.959963984540054


def confusion(gold: Sequence[int], predicted: Sequence[int], classes: int) -> list[list[int]]:
    """Count ``[gold][predicted]``, a list of `classes` lists of `classes` ints."""
    counts = [[0] * classes for _ in range(classes)]
    for truth, guess in zip(gold, predicted, strict=True):
        counts[truth][guess] += 1
    return counts


def wilson(correct: int, total: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927), by default 95 %.

    Unlike ``p +- z sqrt(p(1-p)/n)`` it stays inside [0, 1] and is right near the ends.

    >>> low, high = wilson(559, 600)
    >>> round(low, 4), round(high, 4)
    (0.9086, 0.9492)
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"need 0 <= correct <= total and total > 0, got {correct} of {total}")
    share = correct / total
    shrink = 1.0 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == total else centre + half
    return low, high


def accuracy(counts: list[list[int]]) -> float:
    """Share of the diagonal."""
    return sum(counts[k][k] for k in range(len(counts))) / sum(map(sum, counts))


def matthews(counts: list[list[int]]) -> float:
    """Matthews correlation, in its form for any number of classes (Gorodkin 2004); 0 where it is not defined."""
    total = sum(map(sum, counts))
    right = sum(counts[k][k] for k in range(len(counts)))
    gold = [sum(row) for row in counts]
    guess = [sum(column) for column in zip(*counts, strict=True)]
    covariance = right * total - sum(g * p for g, p in zip(gold, guess, strict=True))
    spread_gold = total * total - sum(g * g for g in gold)
    spread_guess = total * total - sum(p * p for p in guess)
    if spread_gold == 0 or spread_guess == 0:
        return 0.0
    return float(covariance / math.sqrt(spread_gold * spread_guess))


def f1(counts: list[list[int]], positive: int = 1) -> float:
    """Harmonic mean of precision and recall of class `positive`; 0 where it is not defined."""
    hits = counts[positive][positive]
    missed_or_false = sum(counts[positive]) + sum(row[positive] for row in counts)
    return 2 * hits / missed_or_false if missed_or_false else 0.0


def sign_test(first_only: int, second_only: int) -> float:
    """Two-sided exact sign test (McNemar) for two classifiers on the same examples.

    Parameters
    ----------
    first_only, second_only : int
        Examples that only the first, only the second, got right.

    Returns
    -------
    float
        Probability of a split at least this uneven if both were equally good.
    """
    total = first_only + second_only
    fewer = min(first_only, second_only)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**total))


class Judged(Protocol):
    """Predictions for the same examples in the same order, and which are right (an ``Evaluation``)."""

    @property
    def right(self) -> tuple[bool, ...]: ...

    @property
    def predictions(self) -> tuple[Any, ...]: ...


def compare(first: Judged, second: Judged) -> dict[str, Any]:
    """Two models on the same examples: how often they agree, and which is right where they do not.

    Returns
    -------
    dict
        ``same_answer`` (share), ``only_first_right``, ``only_second_right`` (counts), ``sign_test_p``.
    """
    rows = list(zip(first.right, second.right, strict=True))
    first_only = sum(one and not other for one, other in rows)
    second_only = sum(other and not one for one, other in rows)
    same = sum(one == other for one, other in zip(first.predictions, second.predictions, strict=True))
    return {
        "same_answer": same / len(rows),
        "only_first_right": first_only,
        "only_second_right": second_only,
        "sign_test_p": sign_test(first_only, second_only),
    }
