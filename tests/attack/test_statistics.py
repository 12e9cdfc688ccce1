# SPDX-License-Identifier: Apache-2.0
"""Rates by their definitions, and the paired bootstrap against its limit."""

from __future__ import annotations

import math

import pytest

from pyprune.attack import compare, summarise
from pyprune.errors import InputError
from pyprune.tasks.metrics import wilson


def records(outcomes: str, attack: str = "a") -> list[dict]:
    """One record a letter: s(ucceeded), f(ailed), k (skipped)."""
    names = {"s": "succeeded", "f": "failed", "k": "skipped"}
    return [
        {"index": i, "outcome": names[o], "queries": 10 * (i + 1), "words": 4, "changed": 1 + i % 2, "attack": attack}
        for i, o in enumerate(outcomes)
    ]


def test_rates() -> None:
    found = summarise(records("sskff" + "f" * 5))
    assert (found["total"], found["succeeded"], found["failed"], found["skipped"]) == (10, 2, 7, 1)
    assert (found["accuracy"], found["aua"]) == (0.9, 0.7)
    assert found["asr"] == 2 / 9
    assert found["asr"] == pytest.approx(1 - found["aua"] / found["accuracy"], abs=1e-15)
    assert found["intervals"] == {
        "accuracy": list(wilson(9, 10)),
        "aua": list(wilson(7, 10)),
        "asr": list(wilson(2, 9)),
    }
    # the skipped third example does not count
    assert found["queries_mean"] == sum(10 * i for i in (1, 2, 4, 5, 6, 7, 8, 9, 10)) / 9
    assert found["words_changed"] == (1 / 4 + 2 / 4) / 2


def test_rates_where_there_is_nothing() -> None:
    found = summarise(records("kk"))
    assert (found["accuracy"], found["aua"], found["asr"], found["intervals"]["asr"]) == (0.0, 0.0, None, None)
    assert (found["queries_mean"], found["words_changed"]) == (None, None)
    assert summarise(records("ff"))["words_changed"] is None
    with pytest.raises(InputError, match="no records"):
        summarise([])


def test_a_model_beside_itself() -> None:
    same = records("sfkfsfss" * 5)
    found = compare(same, same, draws=400)
    for name in ("accuracy", "aua", "asr"):
        assert found[name] == {"difference": 0.0, "interval": [0.0, 0.0]}, name
    assert found["sign_test_p"] == 1.0


def test_bootstrap_is_paired() -> None:
    first, second = "f" * 200 + "s" * 60 + "f" * 20, "f" * 200 + "f" * 60 + "s" * 20
    found = compare(records(first), records(second))
    total, gained, lost = 280, 60, 20
    assert found["aua"]["difference"] == pytest.approx((gained - lost) / total)
    assert (found["only_first_stands"], found["only_second_stands"]) == (lost, gained)
    # unpaired, the interval would be 40 % wider
    deviation = math.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    low, high = found["aua"]["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.05)
    assert (high + low) / 2 == pytest.approx((gained - lost) / total, abs=0.1 * deviation)
    assert found["asr"]["difference"] == pytest.approx(-found["aua"]["difference"])
    assert compare(records(first), records(second)) == found


def test_only_the_same_attack_is_compared() -> None:
    with pytest.raises(InputError, match="not attacked alike"):
        compare(records("sf", "a"), records("sf", "b"))
    with pytest.raises(InputError, match="same examples"):
        compare(records("sf"), records("sff"))


def test_no_success_rate_where_nothing_is_right() -> None:
    found = compare(records("kkk"), records("sff"), draws=50)
    assert found["asr"] == {"difference": None, "interval": None}
    assert found["accuracy"]["difference"] == 1.0
