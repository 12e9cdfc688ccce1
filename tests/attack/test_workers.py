# SPDX-License-Identifier: Apache-2.0
"""Groups attacked by other processes: the same outcomes, and nothing that goes wrong there is lost."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from fake_attacker import Dying, Failing, FakeAttacker

from pyprune.attack.workers import Group, attack_groups, attack_in_processes
from pyprune.errors import PypruneError

GROUPS = [Group((2 * n, 2 * n + 1), (f"text {n}", f"another text {n}"), (0, 1), (7 * n, 7 * n + 1)) for n in range(3)]


def maker(kind: Any) -> Any:
    return functools.partial(kind, "pwws", None, None, None)


@pytest.mark.slow
def test_outcomes_do_not_depend_on_who_attacks() -> None:
    alone = dict(attack_groups(FakeAttacker("pwws", None, None, None), GROUPS))
    assert sorted(alone) == list(range(6))
    assert dict(attack_in_processes(maker(FakeAttacker), GROUPS, workers=2, threads=1)) == alone


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "message"), [(Failing, "ZeroDivisionError: in the attack"), (Dying, "has died")])
def test_what_happens_in_a_process_is_told(monkeypatch: pytest.MonkeyPatch, kind: Any, message: str) -> None:
    monkeypatch.setattr("pyprune.attack.workers._LOOK_AGAIN", 0.2)
    with pytest.raises(PypruneError, match=message):
        list(attack_in_processes(maker(kind), GROUPS[:1], workers=1, threads=1))


def test_no_groups_need_no_process() -> None:
    assert list(attack_in_processes(maker(Failing), [], workers=2, threads=1)) == []
