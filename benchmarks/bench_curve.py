# SPDX-License-Identifier: Apache-2.0
"""A sparsity curve of one layer, 10 to 90 % in nine points: `pyprune.solve_curve` beside nine calls of `pyprune.solve`.

The nine calls share one problem, and so the factorisation of the gram; every candidate begins with a new one. The
sparsest point alone is there as well. The shapes are those of an attention matrix and of the second feed-forward
matrix of a small BERT, whose gram is four times as wide.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable

import torch
from common import Report, activations, arguments, interleaved
from torch import Tensor

from pyprune import LayerProblem, LayerSolution, Unstructured, solve, solve_curve, solvers

SPARSITIES = tuple(tenth / 10 for tenth in range(1, 10))


def add_choice(parser: ArgumentParser) -> None:
    """Flags of this benchmark alone."""
    parser.add_argument("--solvers", nargs="+", choices=solvers.available(), default=list(solvers.available()))
    parser.add_argument("--shapes", nargs="+", default=["384x384", "384x1536"], help="outputs x inputs")


def main() -> None:
    options = arguments("Sparsity curves of one layer", rounds=3, add=add_choice)
    report = Report("curve", write_file=not options.no_write)
    for shape in ["24x32"] if options.quick else options.shapes:
        rows, columns = map(int, shape.split("x"))
        x = activations(4 * columns, columns).double()
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) / columns**0.5
        for solver in options.solvers:
            for scope in ("row", "layer") if solver == "obs" else ("layer",):
                patterns = [Unstructured(sparsity, scope=scope) for sparsity in SPARSITIES]
                measure(report, weight, x.T @ x / len(x), solver, patterns, options.rounds)
    report.write()


def measure(
    report: Report, weight: Tensor, gram: Tensor, solver: str, patterns: list[Unstructured], rounds: int
) -> None:
    """One solver on one layer."""

    def one_by_one(chosen: list[Unstructured]) -> list[LayerSolution]:
        problem = LayerProblem(weight, gram)
        return [solve(problem, pattern, solver) for pattern in chosen]

    candidates: dict[str, Callable[[], list[LayerSolution]]] = {
        "pyprune solve_curve": lambda: solve_curve(LayerProblem(weight, gram), patterns, solver),
        "pyprune solve, nine times": lambda: one_by_one(patterns),
        "pyprune solve, the last alone": lambda: one_by_one(patterns[-1:]),
    }
    curve, points, _ = (call() for call in candidates.values())
    report.add(
        {"rows": len(weight), "columns": len(gram), "solver": solver, "scope": patterns[0].scope},
        interleaved(candidates, rounds=rounds, warmup=0),
        ours="pyprune solve_curve",
        same_mask=min(float((a.mask == b.mask).double().mean()) for a, b in zip(curve, points, strict=True)),
    )


if __name__ == "__main__":
    main()
