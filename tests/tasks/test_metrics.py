# SPDX-License-Identifier: Apache-2.0
"""Metrics against values from the literature and against formulas written another way."""

from __future__ import annotations

import math
import random

import pytest

from pyprune.tasks import metrics


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998), Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_newcombe(correct: int, total: int, low: float, high: float) -> None:
    assert metrics.wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_inside() -> None:
    for total in (1, 2, 7, 600):
        for correct in range(total + 1):
            low, high = metrics.wilson(correct, total)
            mirrored = metrics.wilson(total - correct, total)
            assert 0.0 <= low <= correct / total <= high <= 1.0
            assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
    with pytest.raises(ValueError, match="correct <= total"):
        metrics.wilson(3, 2)


def test_wilson_solves_its_equation() -> None:
    # the bounds are where |p - x| = z sqrt(x (1 - x) / n)
    for bound in metrics.wilson(559, 600):
        distance = abs(559 / 600 - bound)
        assert distance == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / 600), rel=1e-12)


def test_matthews_of_two_classes_is_the_textbook_formula() -> None:
    draw = random.Random(0)
    for _ in range(50):
        tn, fp, fn, tp = (draw.randrange(1, 60) for _ in range(4))
        expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        assert metrics.matthews([[tn, fp], [fn, tp]]) == pytest.approx(expected, rel=1e-12)


def test_matthews_of_many_classes_is_the_correlation_of_indicators() -> None:
    draw = random.Random(1)
    gold = [draw.randrange(4) for _ in range(300)]
    guess = [g if draw.random() < 0.6 else draw.randrange(4) for g in gold]

    def covariance(x: list[int], y: list[int]) -> float:
        total = 0.0
        for k in range(4):
            mean_x, mean_y = x.count(k) / len(x), y.count(k) / len(y)
            total += sum((float(a == k) - mean_x) * (float(b == k) - mean_y) for a, b in zip(x, y, strict=True))
        return total

    expected = covariance(gold, guess) / math.sqrt(covariance(gold, gold) * covariance(guess, guess))
    assert metrics.matthews(metrics.confusion(gold, guess, 4)) == pytest.approx(expected, rel=1e-12)


def test_matthews_at_its_ends() -> None:
    assert metrics.matthews([[5, 0], [0, 7]]) == 1.0
    assert metrics.matthews([[0, 5], [7, 0]]) == -1.0
    assert metrics.matthews([[5, 0], [7, 0]]) == 0.0


def test_accuracy_and_f1() -> None:
    counts = metrics.confusion([0, 0, 1, 1, 1], [0, 1, 1, 1, 0], 2)
    assert counts == [[1, 1], [1, 2]]
    assert metrics.accuracy(counts) == 0.6
    precision, recall = 2 / 3, 2 / 3
    assert metrics.f1(counts) == pytest.approx(2 * precision * recall / (precision + recall))
    assert metrics.f1([[4, 0], [0, 0]]) == 0.0


def test_sign_test() -> None:
    assert metrics.sign_test(0, 0) == 1.0
    assert metrics.sign_test(5, 5) == 1.0
    assert metrics.sign_test(0, 5) == pytest.approx(2 / 32)
    assert metrics.sign_test(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert metrics.sign_test(9, 1) == metrics.sign_test(1, 9)
