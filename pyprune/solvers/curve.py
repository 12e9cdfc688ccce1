# SPDX-License-Identifier: Apache-2.0
"""Several patterns on one problem: what their solutions share, by family of solvers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from pyprune.errors import InputError
from pyprune.patterns import Pattern, kind_of
from pyprune.solvers.obs import obs_curve
from pyprune.solvers.outcome import Outcome
from pyprune.solvers.problem import LayerProblem
from pyprune.solvers.search import Trail
from pyprune.solvers.splitting import search_ridge

Run = Callable[..., Outcome]


def one_by_one(
    run: Run, problem: LayerProblem, patterns: Sequence[Pattern], damping: float, nested: bool, options: dict[str, Any]
) -> Iterator[tuple[int, Outcome]]:
    """Each pattern by itself: the problem keeps its factorisations, and that is all there is to share."""
    for index, pattern in enumerate(patterns):
        yield index, run(problem, pattern, damping, **options)


def by_greedy_removal(
    run: Run, problem: LayerProblem, patterns: Sequence[Pattern], damping: float, nested: bool, options: dict[str, Any]
) -> Iterator[tuple[int, Outcome]]:
    """One run of removals for all patterns of a kind; see :func:`pyprune.solvers.obs.obs_curve`."""
    return enumerate(obs_curve(problem, patterns, damping))


def along_a_trail(
    run: Run, problem: LayerProblem, patterns: Sequence[Pattern], damping: float, nested: bool, options: dict[str, Any]
) -> Iterator[tuple[int, Outcome]]:
    """From dense to sparse, what the searches have in common made once; see :class:`pyprune.solvers.search.Trail`."""
    trail = Trail(nested=nested)
    for index in sorted(range(len(patterns)), key=lambda i: (search_ridge(patterns[i]), patterns[i].sparsity)):
        yield index, run(problem, patterns[index], damping, trail, **options)


def check_kinds(patterns: Sequence[Pattern], name: str) -> None:
    """Raise :class:`InputError` where masks cannot be asked to lie within each other."""
    for other in patterns[1:]:
        if kind_of(other) != kind_of(patterns[0]):
            raise InputError(
                f"{name}: nested masks must be of one kind",
                seen=f"{patterns[0].describe()} and {other.describe()}",
                hint="patterns that differ only in how much they keep",
            )


def check_nested(masks: Sequence[Tensor], patterns: Sequence[Pattern], solver: str, name: str) -> None:
    """Raise :class:`InputError` unless every mask lies within those that keep more."""
    order = sorted(range(len(masks)), key=lambda i: patterns[i].sparsity)
    for denser, sparser in itertools.pairwise(order):
        if bool((masks[sparser] & ~masks[denser]).any()):
            raise InputError(
                f"{name}: {solver!r} does not choose nested masks here",
                asked=f"{patterns[sparser].describe()} within {patterns[denser].describe()}",
                hint="'best', 'fast' and 'admm' do for every pattern, 'obs' for all but N:M",
            )
