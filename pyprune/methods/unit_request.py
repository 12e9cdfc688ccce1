# SPDX-License-Identifier: Apache-2.0
"""What was asked of a run that prunes heads and neurons: method, settings and target, checked before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyprune.budgets import allowance
from pyprune.errors import InputError
from pyprune.methods.calibration import Calibration
from pyprune.methods.kprune import KPrune, UnitMagnitude
from pyprune.methods.kwon import Kwon

UnitMethod = KPrune | Kwon | UnitMagnitude
UNIT_METHODS: dict[str, type[UnitMethod]] = {kind.name: kind for kind in (KPrune, Kwon, UnitMagnitude)}
EXAMPLE = "target_flops=0.4 leaves at most 40 % of the encoder's FLOPs, 60 % go"


@dataclass(frozen=True)
class Target:
    """How much of the encoder may be left.

    Attributes
    ----------
    measure : str
        What is counted, one of :data:`pyprune.budgets.MEASURES`, or ``"latency"``.
    share : float
        The part of the dense encoder's that may be left, from 0 to 1.
    """

    measure: str
    share: float

    @classmethod
    def of(cls, **shares: float | None) -> Target:
        """The one share that is not None, by its measure.

        Raises
        ------
        InputError
            None of them, several, or no part of a whole.

        Examples
        --------
        >>> Target.of(flops=0.4, macs=None)
        Target(measure='flops', share=0.4)
        """
        given = [(measure, share) for measure, share in shares.items() if share is not None]
        if len(given) != 1:
            names = ", ".join(f"target_{measure}" for measure in shares)
            seen = ", ".join(f"target_{measure}" for measure, _ in given) or "none"
            raise InputError(f"exactly one target has to be given: {names}", seen=seen, hint=EXAMPLE)
        allowance(given[0][1], 0)
        return cls(*given[0])


@dataclass(frozen=True)
class UnitRequest:
    """A method with its settings, its target, and the seed of what is drawn."""

    method: UnitMethod
    target: Target
    seed: int

    def settings(self, calibration: Calibration) -> dict[str, Any]:
        """What changes the bits of the result, JSON-able; the sentences themselves are hashed as token ids."""
        return {
            "method": self.method.name,
            **asdict(self.method),
            **asdict(self.target),
            "seed": self.seed,
            "batches": [list(batch["input_ids"].shape) for batch in calibration.batches],
        }


def share_of(speedup: float | None) -> float | None:
    """The part of the time that may be left for a model to be so many times as fast.

    >>> share_of(2.5)
    0.4
    """
    if speedup is None:
        return None
    if isinstance(speedup, bool) or not isinstance(speedup, (int, float)) or not 1 <= speedup < float("inf"):
        raise InputError(
            "target_latency says how many times as fast the model has to be",
            seen=repr(speedup),
            hint="2.0: half the time",
        )
    return 1 / speedup


def is_unit_method(method: object) -> bool:
    """Whether this names, or is, a method that prunes heads and neurons."""
    return isinstance(method, UnitMethod) or (isinstance(method, str) and method in UNIT_METHODS)


def unit_method(method: str | UnitMethod, *, damping: float | None = None) -> UnitMethod:
    """The method of a name, or the one that was given; with another ridge, if it has one.

    Raises
    ------
    InputError
        An unknown name, or a ridge for a method without.
    """
    if isinstance(method, str):
        if method not in UNIT_METHODS:
            known = ", ".join(UNIT_METHODS)
            raise InputError(f"unknown method {method!r} for heads and neurons", hint=f"one of {known}")
        method = UNIT_METHODS[method]()
    if damping is None:
        return method
    if not isinstance(method, KPrune):
        raise InputError(f"{method.name} has no ridge", seen=f"damping {damping:g}", hint="leave damping out")
    return replace(method, damping=damping)


def refuse_for_units(method: str | UnitMethod, given: Mapping[str, Any]) -> None:
    """Raise where something was given that only methods take which remove single weights.

    Raises
    ------
    InputError
        The message names it.
    """
    found = [name for name, value in given.items() if value is not None]
    if found:
        raise InputError(
            f"{' and '.join(found)} cannot go with {unit_method(method).name}, which removes whole heads and neurons",
            seen=", ".join(f"{name}={given[name]!r}"[:80] for name in found),
            hint=EXAMPLE,
        )


def refuse_targets(method: str, given: Mapping[str, float | None]) -> None:
    """Raise where a target was given to a method that removes single weights.

    Raises
    ------
    InputError
        The message names it.
    """
    found = [f"target_{measure}" for measure, share in given.items() if share is not None]
    if found:
        raise InputError(
            f"{' and '.join(found)} cannot go with {method}, which removes single weights",
            hint=f"a method for heads and neurons ({', '.join(UNIT_METHODS)}), or sparsity= in its place",
        )
