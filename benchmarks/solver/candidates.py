# SPDX-License-Identifier: Apache-2.0
"""Everything that solves: pyprune's solvers, public ones, and the torch ones of `rivals.py`, in one form."""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from solver import public, rivals
from torch import Tensor

from pyprune import LayerProblem, solve, solvers
from pyprune.errors import InputError
from pyprune.patterns import Pattern

# A torch solver steps back where a public one of the same method was given.
SAME_METHOD = {"wanda": ("wanda",), "sparsegpt": ("sparsegpt", "llmcompressor"), "obs": ("obc",), "admm": ("alps",)}
# Greedy OBS takes time like rows·columns³: one weight at a time in torch, a whole row at a time in ours.
MOST_WORK = {"torch.obs": 5e11, "public.obc": 5e11, "pyprune.obs": 3e13}


@dataclass(frozen=True)
class Found:
    """What one run gave.

    Attributes
    ----------
    weight : Tensor, shape (out, in)
    solve_seconds : float, optional
        The solver's own time, where it states one: without its checks and the error in float64.
    notes : tuple of str
        What it had to say.
    """

    weight: Tensor
    solve_seconds: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One solver with its settings.

    Attributes
    ----------
    name : str
        `pyprune.`, `public.` or `torch.`, and the solver.
    prepare : callable
        From a problem and a pattern to a callable that solves once. Nothing may be shared between two of them, such
        as a factorisation.
    refuses : callable
        Why it cannot do a pattern on a shape, or None.
    row_only : bool
        Its unstructured masks keep the same number in every row.
    settings : mapping
        For the record.
    """

    name: str
    prepare: Callable[[LayerProblem, Pattern], Callable[[], Found]]
    refuses: Callable[[Pattern, int, int], str | None]
    row_only: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def refusal(self, pattern: Pattern, rows: int, columns: int, *, patient: bool = False) -> str | None:
        """Why this candidate is left out of a case, or None; the patient leave none out for its length."""
        work = rows * columns**3
        if not patient and work > MOST_WORK.get(self.name, work):
            return "it would take many minutes (--patient runs it)"
        return self.refuses(pattern, rows, columns)


def ours(name: str, **options: Any) -> Candidate:
    """A solver of pyprune, from tensors to solution: checks, factorisation and the error in float64 are all timed."""
    arguments = {key: value for key, value in options.items() if key != "label"}

    def prepare(problem: LayerProblem, pattern: Pattern) -> Callable[[], Found]:
        weight, gram = problem.weight, problem.gram

        def run() -> Found:
            solution = solve(LayerProblem(weight, gram, name=problem.name), pattern, name, **arguments)
            return Found(solution.weight, solution.seconds, tuple(solution.notes))

        return run

    label = options.get("label", name)
    settings = {"damping": solvers.default_damping(name), **arguments}
    return Candidate(f"pyprune.{label}", prepare, lambda pattern, rows, columns: None, settings=settings)


def all_of_ours(budgets: Sequence[float]) -> list[Candidate]:
    """Every solver that is available, SparseGPT also with an exact refit, and those with a budget once for each."""
    found = []
    for name in solvers.available():
        found.append(ours(name))
        if "budget" in inspect.signature(solvers._SOLVERS[name].run).parameters:
            found += [ours(name, label=f"{name}@{budget:g}", budget=budget) for budget in budgets]
    return [*found, ours("sparsegpt", label="sparsegpt+refit", refit=True)]


def of_public(solver: public.PublicSolver) -> Candidate:
    """A public solver; what it prints that is no number becomes a note."""

    def prepare(problem: LayerProblem, pattern: Pattern) -> Callable[[], Found]:
        work = solver.prepare(problem.weight, problem.gram, pattern)

        def run() -> Found:
            notes = public.Notes()
            with public.harmless(notes):
                weight = work()
            return Found(weight, notes=notes.warnings())

        return run

    digest = hashlib.sha256(solver.file.read_bytes()).hexdigest()
    settings = {"file": solver.file.name, "sha256": digest}
    return Candidate(f"public.{solver.name}", prepare, solver.refuses, solver.name == "wanda", settings)


def of_torch(name: str) -> Candidate:
    """A solver of `rivals.py`."""

    def prepare(problem: LayerProblem, pattern: Pattern) -> Callable[[], Found]:
        return lambda: Found(rivals.SOLVERS[name](problem.weight, problem.gram, pattern))

    settings = {} if name in {"magnitude", "wanda"} else {"damping": rivals.DAMPING}
    return Candidate(
        f"torch.{name}",
        prepare,
        lambda pattern, rows, columns: rivals.refuses(name, pattern),
        name in rivals.ROW_ONLY,
        settings,
    )


def choose(
    checkouts: Mapping[str, public.PublicSolver], wanted: Sequence[str], budgets: Sequence[float]
) -> list[Candidate]:
    """The candidates by name.

    Parameters
    ----------
    checkouts : mapping
        Public solvers, by flag.
    wanted : sequence of str
        Names or shell patterns, with or without what stands before the dot: `sparsegpt`, `pyprune.*`. Empty: all of
        ours, all public ones, and torch versions of the methods no public one was given for.
    budgets : sequence of float
        For solvers that take one.

    Raises
    ------
    InputError
        A name that fits none.
    """
    torch_ones = [of_torch(name) for name in rivals.SOLVERS]
    everything = [*all_of_ours(budgets), *map(of_public, checkouts.values()), *torch_ones]
    if not wanted:
        instead = {f"torch.{name}" for name, flags in SAME_METHOD.items() if any(flag in checkouts for flag in flags)}
        return [candidate for candidate in everything if candidate.name not in instead]
    for name in wanted:
        if not any(_fits(candidate, name) for candidate in everything):
            raise InputError(
                f"no solver is called {name!r}", hint=", ".join(candidate.name for candidate in everything)
            )
    return [candidate for candidate in everything if any(_fits(candidate, name) for name in wanted)]


def _fits(candidate: Candidate, name: str) -> bool:
    short = candidate.name.partition(".")[2]
    return fnmatch.fnmatchcase(candidate.name, name) or fnmatch.fnmatchcase(short, name)
