# SPDX-License-Identifier: Apache-2.0
"""Row-wise least squares on a given mask: pyprune.ops.masked_lstsq beside two ways in torch.

Both are in `solver/rivals.py`: `full-size` is the usual one (rows and columns outside a row's support are zeroed,
ones put on their diagonal, batches of full-size systems), `gathered` works on systems as small as the supports are.
Every row keeps the same number, so that no gathered system is padded. pyprune solves the support or the complement,
whichever is smaller, in float32 with float64 residuals.

`gap` is (loss - loss*) / loss* over all rows and in the worst of them, `loss` with the ridge and loss* that of a
float64 solution; GFLOP/s count a third of the support cubed for every row, whatever a candidate really does.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from common import Report, activations, arguments, interleaved
from solver.measure import with_peak
from solver.rivals import batched_cholesky, gathered_cholesky, keep_largest
from torch import Tensor

from pyprune import Unstructured, ops
from pyprune.ops.masked_lstsq import masked_lstsq_reference

DAMP = 1e-3
ROWS = {384: 384, 768: 192, 1536: 64, 2048: 48, 4096: 8}  # a case of torch takes seconds
SPARSITIES = (0.5, 0.7, 0.875, 0.9)
Solve = Callable[[], Tensor]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark alone."""
    parser.add_argument("--columns", type=int, nargs="+", choices=ROWS, default=list(ROWS), help="sizes of the system")


@dataclass(frozen=True)
class Problem:
    """One gram, and right-hand sides whose dense solutions are known."""

    gram: Tensor
    dense: Tensor
    rhs: Tensor

    @classmethod
    def make(cls, rows: int, columns: int) -> Problem:
        x = activations(4 * columns, columns)
        gram = (x.T @ x).double() / len(x)
        gram = (gram + gram.T) / 2
        dense = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        ridge = DAMP * gram.diagonal().mean()
        return cls(gram, dense, dense @ gram + ridge * dense)

    @property
    def system(self) -> Tensor:
        """Gram and ridge."""
        return self.gram + DAMP * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=torch.float64)

    def losses(self, change: Tensor) -> Tensor:
        """What a change of the weights costs each row at its optimum: ``δ H δ``."""
        wide = change.double()
        return ((wide @ self.system) * wide).sum(dim=1)


def main() -> None:
    options = arguments(__doc__ or "", rounds=5, add=add_flags)
    report = Report("masked_lstsq", write_file=not options.no_write)
    if options.go_on:
        report.resume()
    for columns in (48,) if options.quick else options.columns:
        problem = Problem.make(ROWS.get(columns, 32), columns)
        scores = torch.rand(problem.rhs.shape, generator=torch.Generator().manual_seed(4))
        for sparsity in SPARSITIES[:1] if columns > 2048 else SPARSITIES:
            mask = keep_largest(scores, Unstructured(sparsity, scope="row"))
            measure(report, problem, mask, sparsity, options.rounds)
        if options.quick or columns == max(ROWS):
            wide(report, problem, keep_largest(scores, Unstructured(0.5, scope="row")))
    report.write()


def measure(report: Report, problem: Problem, mask: Tensor, sparsity: float, rounds: int) -> None:
    """Time, gap and rate of all candidates on one mask."""
    given = (problem.gram, problem.rhs, mask)
    candidates: dict[str, Solve] = {
        "pyprune": lambda: ops.masked_lstsq(*given, damp=DAMP),
        "torch full-size float32": lambda: batched_cholesky(*given, damping=DAMP),
        "torch gathered float32": lambda: gathered_cholesky(*given, damping=DAMP),
        "torch gathered float64": lambda: gathered_cholesky(*given, damping=DAMP, dtype=torch.float64),
    }
    timings = interleaved(candidates, rounds=rounds)
    operations = float((mask.sum(dim=1).double() ** 3).sum()) / 3
    report.add(
        {"rows": len(mask), "columns": mask.shape[1], "sparsity": sparsity, "damp": DAMP},
        timings,
        ours="pyprune",
        gflops={name: operations / timing.median * 1e-9 for name, timing in timings.items()},
        **gaps(problem, mask, {name: call() for name, call in candidates.items()}),
    )


def gaps(problem: Problem, mask: Tensor, found: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """How far above the float64 optimum each solution is, all rows together and the worst row."""
    best, status = masked_lstsq_reference(problem.system, problem.rhs, mask)
    if bool(status.any()):
        raise SystemExit("the reference met a singular system")
    least = problem.losses(best - problem.dense)
    above = {name: problem.losses(solution.double() - best) for name, solution in found.items()}
    return {
        "gap": {name: float(value.sum() / least.sum()) for name, value in above.items()},
        "worst_row_gap": {name: float((value / least).max()) for name, value in above.items()},
    }


def wide(report: Report, problem: Problem, mask: Tensor) -> None:
    """Memory of one solution by factors and one by conjugate gradients, and the residuals they end with."""
    for way, part in (("factors", 0.0), ("conjugate gradients", float("inf"))):
        with iterating_below(part):
            found, seconds, peak = with_peak(lambda: ops.masked_lstsq(problem.gram, problem.rhs, mask, damp=DAMP))
        residual = (problem.rhs - found @ problem.system) * mask
        report.record(
            {"way": way, "rows": len(mask), "columns": mask.shape[1], "sparsity": 0.5, "damp": DAMP},
            seconds=seconds,
            peak_bytes=peak,
            system_bytes=problem.gram.numel() * 8,
            residual=float(residual.norm() / problem.rhs.norm()),
            **gaps(problem, mask, {"pyprune": found}),
        )


@contextmanager
def iterating_below(part: float) -> Iterator[None]:
    """Let `masked_lstsq` iterate where that is estimated at less than this part of the direct cost."""
    module = importlib.import_module("pyprune.ops.masked_lstsq")
    before = module._ITERATION_GAIN
    module._ITERATION_GAIN = part
    try:
        yield
    finally:
        module._ITERATION_GAIN = before


if __name__ == "__main__":
    main()
