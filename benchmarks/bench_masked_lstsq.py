# SPDX-License-Identifier: Apache-2.0
"""Row-wise least squares on a given mask: pyprune.ops.masked_lstsq beside batched Cholesky in torch.

The torch one is in `solver/rivals.py`: rows and columns outside a row's support are zeroed, ones put on their
diagonal, and all full-size systems are factorised in batches. pyprune solves the support or the complement,
whichever is smaller, in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Report, activations, arguments, interleaved
from solver.rivals import batched_cholesky
from torch import Tensor

from pyprune import ops

DAMP = 1e-3


def main() -> None:
    options = arguments("Masked least squares", rounds=5)
    report = Report("masked_lstsq", write_file=not options.no_write)
    rows, columns = (32, 48) if options.quick else (384, 384)
    x = activations(4 * columns, columns).double()
    gram = x.T @ x / len(x)
    generator = torch.Generator().manual_seed(3)
    rhs = torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ gram
    for sparsity in (0.3, 0.5, 0.7, 0.875):
        mask = torch.rand(rows, columns, generator=generator) >= sparsity
        measure(report, gram, rhs, mask, sparsity, options.rounds)
    report.write()


def measure(report: Report, gram: Tensor, rhs: Tensor, mask: Tensor, sparsity: float, rounds: int) -> None:
    candidates: dict[str, Callable[[], Tensor]] = {
        "pyprune": lambda: ops.masked_lstsq(gram, rhs, mask, damp=DAMP),
        "torch batched Cholesky float32": lambda: batched_cholesky(gram, rhs, mask, damping=DAMP, dtype=torch.float32),
        "torch batched Cholesky float64": lambda: batched_cholesky(gram, rhs, mask, damping=DAMP, dtype=torch.float64),
    }
    exact = ops.masked_lstsq(gram, rhs, mask, damp=DAMP)
    ridge = DAMP * gram.diagonal().mean()

    def residual(solution: Tensor) -> float:
        """Largest entry of the normal equations on the support, relative to the right-hand side."""
        w = solution.double()
        return float(((w @ gram + ridge * w - rhs) * mask).abs().max() / rhs.abs().max())

    report.add(
        {"rows": len(rhs), "columns": len(gram), "sparsity": sparsity, "damp": DAMP},
        interleaved(candidates, rounds=rounds),
        ours="pyprune",
        residual={name: residual(call()) for name, call in candidates.items()},
        difference={name: float((call().double() - exact).norm() / exact.norm()) for name, call in candidates.items()},
    )


if __name__ == "__main__":
    main()
