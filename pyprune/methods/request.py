# SPDX-License-Identifier: Apache-2.0
"""What was asked of a run: the method by name, with its pattern and settings, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyprune import solvers
from pyprune.errors import InputError
from pyprune.methods.akr import AKR
from pyprune.methods.one_shot import MAGNITUDE, OBS, SPARSEGPT, WANDA
from pyprune.methods.recipe import Recipe
from pyprune.methods.unit_request import UNIT_METHODS
from pyprune.patterns import Pattern, parse_pattern

RECIPES = {recipe.name: recipe for recipe in (AKR, MAGNITUDE, WANDA, SPARSEGPT, OBS)}


def available() -> tuple[str, ...]:
    """Names that ``prune(..., method=...)`` takes."""
    return (*RECIPES, *UNIT_METHODS)


def describe() -> dict[str, str]:
    """What each method does, in a line."""
    lines = {name: recipe.line for name, recipe in RECIPES.items()}
    return lines | {name: method.line for name, method in UNIT_METHODS.items()}


@dataclass(frozen=True)
class Request:
    """A recipe with the user's choices.

    Attributes
    ----------
    recipe, pattern
    damping : float, optional
        Default: the solver's own.
    options : dict
        For the solver.
    seed : int
        Which sentences are drawn.
    """

    recipe: Recipe
    pattern: Pattern
    damping: float | None
    options: dict[str, Any]
    seed: int

    def settings(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """What changes the bits of the result, JSON-able; the sentences themselves are hashed as token ids."""
        return {
            "method": self.recipe.name,
            "solver": self.recipe.solver,
            "rectify": self.recipe.rectify,
            "refit_bias": self.recipe.refit_bias,
            "pattern": self.pattern.to_dict(),
            "damping": self.damping,
            "solver_options": self.options,
            "seed": self.seed,
            "batches": [list(batch["input_ids"].shape) for batch in batches],
        }


def resolve(
    method: str,
    *,
    solver: str | None,
    rectify: bool | None,
    sparsity: float | None,
    pattern: Pattern | str | None,
    damping: float | None,
    solver_options: Mapping[str, Any] | None,
    seed: int,
) -> Request:
    """Look names up and check what can be checked without a model; see :func:`pyprune.prune` for the arguments.

    Raises
    ------
    InputError
        A name that is not known, or settings that disagree.
    """
    recipe = _recipe(method, solver, rectify)
    chosen = _pattern(recipe, sparsity, pattern)
    if damping is not None and not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping {damping} is not a ridge", hint="a number of at least 0, such as 1e-4")
    return Request(recipe, chosen, damping, dict(solver_options or {}), seed)


def _recipe(method: str, solver: str | None, rectify: bool | None) -> Recipe:
    if method in UNIT_METHODS:
        raise InputError(
            f"{method} removes heads and neurons, which is not done block by block from disk",
            hint=f"pyprune.prune with the model in memory; or one of {', '.join(RECIPES)}",
        )
    if method not in RECIPES:
        raise InputError(f"unknown method {method!r}", hint=f"one of {', '.join(available())}")
    recipe = RECIPES[method]
    if solver is not None:
        if solver not in solvers.available():
            raise InputError(f"unknown solver {solver!r}", hint=f"one of {', '.join(solvers.available())}")
        recipe = replace(recipe, solver=solver)
    if rectify is not None and rectify != recipe.rectify:
        # A rectified target has a mean of its own, which only the bias can follow.
        recipe = replace(recipe, rectify=rectify, refit_bias=rectify or recipe.refit_bias)
    return recipe


def _pattern(recipe: Recipe, sparsity: float | None, pattern: Pattern | str | None) -> Pattern:
    if isinstance(pattern, str):
        pattern = parse_pattern(pattern)
    if pattern is None:
        return solvers.default_pattern(recipe.solver, 0.5 if sparsity is None else sparsity)
    if not isinstance(pattern, Pattern):
        raise InputError("pattern must be a pattern", seen=repr(pattern), hint='pyprune.NM(2, 4), or "2:4"')
    if sparsity is not None and abs(sparsity - pattern.sparsity) > 1e-9:
        raise InputError(
            "sparsity and pattern disagree",
            asked=f"sparsity {sparsity:g}",
            seen=f"{pattern.describe()}, which is {pattern.sparsity:g}",
            hint="give one of them",
        )
    return pattern
