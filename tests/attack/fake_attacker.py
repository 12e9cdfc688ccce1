# SPDX-License-Identifier: Apache-2.0
"""What `run` needs of an attacker, without TextAttack and without a model: outcomes by arithmetic on the text."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from pyprune.attack.recipes import Attacked


class FakeAttacker:
    """Outcomes depend on text, truth, seed and on who is in the group, as those of a real one may in the last bits."""

    textattack = "0"

    def __init__(self, recipe: str, model: Any, tokenizer: Any, resources: Any, **options: Any) -> None:
        self.resources: list[dict[str, Any]] = [
            {"name": "words", "kind": "stand-in", "what": "none", "source": None, "sha256": None}
        ]

    def attack(self, texts: Sequence[Any], gold: Sequence[int], seeds: Sequence[int]) -> Iterator[tuple[int, Attacked]]:
        # not in the order of the texts
        for place in sorted(range(len(texts)), key=lambda place: (len(texts[place]), place)):
            yield place, self.outcome(texts, gold, seeds, place)

    def outcome(self, texts: Sequence[Any], gold: Sequence[int], seeds: Sequence[int], place: int) -> Attacked:
        number = zlib.crc32(repr((texts[place], gold[place], seeds[place])).encode())
        return Attacked(
            outcome=("succeeded", "failed", "skipped")[number % 3],
            perturbed=f"{texts[place]} {number}",
            queries=1 + number % 50,
            score=0.25,
            perturbed_score=zlib.crc32(repr(list(texts)).encode()) / 2**32,
            prediction=number % 2,
            words=5,
            changed=number % 5,
        )


class Breaking(FakeAttacker):
    """Stops after `left` outcomes, as a kill would."""

    left = 0

    def outcome(self, *arguments: Any) -> Attacked:
        if Breaking.left == 0:
            raise KeyboardInterrupt
        Breaking.left -= 1
        return super().outcome(*arguments)


class Failing(FakeAttacker):
    """Raises what the command line does not know."""

    def attack(self, *_: Any) -> Iterator[tuple[int, Attacked]]:
        raise ZeroDivisionError("in the attack")


class Dying(FakeAttacker):
    """Its process ends without a word."""

    def attack(self, *_: Any) -> Iterator[tuple[int, Attacked]]:
        import os

        os._exit(9)
