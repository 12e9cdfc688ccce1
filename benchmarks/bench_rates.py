# SPDX-License-Identifier: Apache-2.0
"""Rates of the compute-bound kernels in GFLOP/s, and as a share of the peak of the machine.

The peak is measured (`csrc/cpu/peak.cpp`): fused multiply-adds in registers, float32 or float64 like the kernel's own
arithmetic. It is taken in turns with the kernel and torch, because processors change their frequency and share cores
with others: shares are of the medians. Operations are those of the method, not of the implementation; the formulas are
in `CASES`. What is not a product counts as time: packing, gathering, sums in float64, selection.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import Report, activations, arguments, interleaved, set_threads
from torch import Tensor

from pyprune import backends, ops

COLUMNS = (384, 768, 1536)
TOKENS = 8192
STEPS = 8  # of conjugate gradients
HALF = 0.5


@dataclass(frozen=True)
class Inputs:
    """What the kernels get at one size: `columns` inputs and, except for the slow solvers, as many outputs."""

    x: Tensor  # [tokens, columns]
    gram: Tensor  # unit diagonal, well conditioned, float64
    dense: Tensor  # [columns, columns]
    mask: Tensor

    @classmethod
    def make(cls, columns: int, tokens: int) -> Inputs:
        x = activations(tokens, columns)
        gram = ops.gram(x)
        scale = gram.diagonal().rsqrt()
        gram = ops.rescale(gram, scale, ridge=float(0.01 * gram.diagonal().mean()))
        generator = torch.Generator().manual_seed(2)
        dense = torch.randn(columns, columns, generator=generator)
        return cls(x, gram, dense, torch.rand(columns, columns, generator=generator) < HALF)

    @property
    def columns(self) -> int:
        return len(self.gram)


@dataclass(frozen=True)
class Case:
    """A kernel made ready: what runs, what it counts as, whose peak, and what torch takes for the same, if anything."""

    run: Callable[[], object]
    operations: float
    dtype: torch.dtype = torch.float32
    torch: Callable[[], object] | None = None


def gram(inputs: Inputs, dtype: torch.dtype) -> Case:
    x, out = inputs.x.to(dtype), torch.zeros_like(inputs.gram)
    tokens, k = x.shape
    return Case(lambda: ops.gram(x, out=out), tokens * k * (k + 1), torch=lambda: x.float().T @ x.float())


def cross_gram(inputs: Inputs) -> Case:
    x, out = inputs.x, torch.zeros_like(inputs.gram)
    tokens, k = x.shape
    return Case(lambda: ops.cross_gram(x, x, out=out), 2 * tokens * k**2, torch=lambda: x.T @ x)


def matmul(inputs: Inputs, dtype: torch.dtype) -> Case:
    a, b = inputs.dense.to(dtype), inputs.gram.to(dtype)
    return Case(lambda: ops.matmul(a, b), 2 * inputs.columns**3, dtype, lambda: a @ b)


def cholesky(inputs: Inputs, dtype: torch.dtype) -> Case:
    """With the inverse."""

    def by_torch() -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(inputs.gram.to(dtype)))

    return Case(lambda: ops.cholesky(inputs.gram, inverse=True, dtype=dtype), inputs.columns**3, dtype, by_torch)


def masked_lstsq(inputs: Inputs) -> Case:
    """Factors of the supports, and two residuals."""
    rows, k = min(96, inputs.columns), inputs.columns
    mask, rhs = inputs.mask[:rows], inputs.dense[:rows].double() @ inputs.gram
    kept = mask.sum(dim=1).double()
    smaller = torch.minimum(kept, k - kept)
    return Case(lambda: ops.masked_lstsq(inputs.gram, rhs, mask), float((smaller**3).sum()) / 3 + 4 * rows * k**2)


def masked_cg(inputs: Inputs) -> Case:
    system = inputs.gram.float()
    target = inputs.dense @ system
    start, products = torch.zeros_like(target), STEPS + 1
    return Case(
        lambda: ops.masked_cg(system, target, inputs.mask, start, steps=STEPS), 2 * inputs.columns**3 * products
    )


def admm_step(inputs: Inputs) -> Case:
    found = ops.cholesky(inputs.gram, ridge=1.0, inverse=True, dtype=torch.float32)
    assert found.inverse is not None
    multiplier, state, previous = found.inverse, inputs.dense.clone(), inputs.dense.clone()
    return Case(
        lambda: ops.admm_step(state, inputs.mask, inputs.dense, multiplier, previous=previous), 2 * inputs.columns**3
    )


def sparsegpt(inputs: Inputs) -> Case:
    k = inputs.columns
    factor = ops.cholesky(inputs.gram, reverse=True, dtype=torch.float32).factor
    prune = torch.tensor([k * min(128, k - first) // 2 for first in range(0, k, 128)])
    return Case(lambda: ops.sparsegpt(inputs.dense, factor, prune=prune, block=128), k**3)


def obs(inputs: Inputs) -> Case:
    """Half of the columns of some rows, in float32: k³ s² (1 − 2s/3) a row."""
    rows, k = min(32, inputs.columns), inputs.columns
    inverse, weight = torch.linalg.inv(inputs.gram), inputs.dense[:rows].double()
    operations = rows * k**3 * HALF**2 * (1 - 2 * HALF / 3)
    return Case(lambda: ops.obs(inverse, weight, k // 2, dtype=torch.float32), operations)


CASES: dict[str, Callable[[Inputs], Case]] = {
    "gram float32": lambda inputs: gram(inputs, torch.float32),
    "gram bfloat16": lambda inputs: gram(inputs, torch.bfloat16),
    "cross_gram float32": cross_gram,
    "matmul float32": lambda inputs: matmul(inputs, torch.float32),
    "matmul float64": lambda inputs: matmul(inputs, torch.float64),
    "cholesky float32": lambda inputs: cholesky(inputs, torch.float32),
    "cholesky float64": lambda inputs: cholesky(inputs, torch.float64),
    "masked_lstsq": masked_lstsq,
    "masked_cg": masked_cg,
    "admm_step": admm_step,
    "sparsegpt": sparsegpt,
    "obs": obs,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark alone."""
    parser.add_argument("--columns", type=int, nargs="+", default=COLUMNS, help="sizes (default: %(default)s)")
    parser.add_argument("--kernels", nargs="+", choices=CASES, default=list(CASES), help="kernels (default: all)")


def main() -> None:
    options = arguments(__doc__ or "", rounds=11, add=add_flags)
    report = Report("rates", write_file=not options.no_write)
    if options.go_on:
        report.resume()
    for columns in (48,) if options.quick else options.columns:
        inputs = Inputs.make(columns, 256 if options.quick else TOKENS)
        for name in options.kernels:
            case = CASES[name](inputs)
            for threads in sorted({1, options.threads}):
                set_threads(threads)
                measure(report, name, case, columns, threads, options.rounds)
    report.write()


def measure(report: Report, name: str, case: Case, columns: int, threads: int, rounds: int) -> None:
    """Rates of one kernel, of torch and of the peak, in turns."""
    peaks: list[float] = []
    candidates: dict[str, Callable[[], object]] = {
        "pyprune": case.run,
        "peak": lambda: peaks.append(backends.peak(case.dtype, threads, rounds=5)),
    }
    if case.torch is not None:
        candidates["torch"] = case.torch
    timings = interleaved(candidates, rounds=rounds)
    peak = float(torch.tensor(peaks).median())
    rates = {other: case.operations / timings[other].median for other in timings if other != "peak"}
    report.add(
        {"kernel": name, "columns": columns, "threads": threads},
        {other: timing for other, timing in timings.items() if other != "peak"},
        ours="pyprune",
        gflops={**{other: rate * 1e-9 for other, rate in rates.items()}, "peak": peak * 1e-9},
        share_of_peak={other: rate / peak for other, rate in rates.items()},
    )


if __name__ == "__main__":
    main()
