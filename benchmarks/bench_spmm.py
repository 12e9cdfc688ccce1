# SPDX-License-Identifier: Apache-2.0
"""Products with a compressed matrix: pyprune.ops.spmm beside torch's dense and sparse ones, and SciPy's.

All take x as rows of tokens and give rows of tokens, with bias; weights are prepared beforehand, as each library wants
them. `dense float32` is `torch.nn.functional.linear`, `dense onednn` the same on weights that oneDNN has packed,
`dense bfloat16` has activations in bfloat16 too, `dense int8` is torch's dynamic quantisation, `torch csr` and
`scipy csr` multiply by the transpose of x. What takes more than `TOO_SLOW` times as long as pyprune is timed once.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from common import Report, arguments
from torch import Tensor

from pyprune import backends, ops
from pyprune.bench.timing import summary, turns
from pyprune.ops.spmm_plan import faster

SHAPES = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768), (4096, 4096))
TOKENS = (1, 8, 32, 128, 512)
SPARSITIES = (0.5, 0.7, 0.9, 0.95)
VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
TOO_SLOW = 15.0
SECONDS = 0.4  # of a case, all candidates together
TURN = 0.002  # a candidate is called again and again for so long, as a model would that runs nothing else


@dataclass(frozen=True)
class Problem:
    """One matrix with its zeros, a bias, and the candidates that multiply by it."""

    dense: Tensor  # [out, in]
    bias: Tensor
    sparse: ops.SparseWeight

    @classmethod
    def make(cls, shape: tuple[int, int], sparsity: float, values: torch.dtype) -> Problem:
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        mask = torch.rand(shape, generator=generator) >= sparsity
        return cls(
            weight * mask,
            torch.randn(shape[0], generator=generator),
            ops.prepare(ops.compress(weight, mask, dtype=values)),
        )

    def candidates(self, tokens: int) -> dict[str, Callable[[], object]]:
        x = torch.randn(tokens, self.dense.shape[1], generator=torch.Generator().manual_seed(4))
        half = x.bfloat16()
        ours = half if self.sparse.dtype == torch.bfloat16 else x
        halves = self.dense.bfloat16(), self.bias.bfloat16()
        found: dict[str, Callable[[], object]] = {
            "pyprune": lambda: ops.spmm(ours, self.sparse, self.bias),
            "dense float32": lambda: torch.nn.functional.linear(x, self.dense, self.bias),
            "dense bfloat16": lambda: torch.nn.functional.linear(half, *halves),
        }
        if torch.backends.mkldnn.is_available():
            packed = torch.ops.mkldnn._reorder_linear_weight(self.dense, tokens)
            found["dense onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, "none", [], "")
        quantised = dynamic_int8(self.dense, self.bias)
        found["dense int8"] = lambda: quantised(x)
        csr = self.dense.to_sparse_csr()
        found["torch csr"] = lambda: (csr @ x.T).T.contiguous() + self.bias
        if find_spec("scipy") is not None:
            from scipy.sparse import csr_matrix

            matrix, bias, columns = csr_matrix(self.dense.numpy()), self.bias.numpy(), x.numpy()
            found["scipy csr"] = lambda: (matrix @ columns.T).T.copy() + bias
        return found


def dynamic_int8(weight: Tensor, bias: Tensor) -> Any:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(linear), {torch.nn.Linear}, torch.qint8)


def main() -> None:
    options = arguments("Products with a compressed matrix", rounds=60, add=add_choices)
    report = Report("spmm", write_file=not options.no_write)
    if options.go_on:
        report.resume()
    shapes = [(96, 64)] if options.quick else options.shapes
    sparsities = (0.9,) if options.quick else SPARSITIES
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR is "in beta", dynamic quantisation moves elsewhere
        for shape in shapes:
            for values in options.values:
                for sparsity in sparsities:
                    problem = Problem.make(shape, sparsity, VALUES[values])
                    for tokens in (1, 8) if options.quick else options.tokens:
                        measure(report, problem, sparsity, tokens, options)
    report.write()


def add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=SHAPES, help="such as 768x3072: outputs x inputs")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--values", choices=VALUES, nargs="+", default=tuple(VALUES), help="type of the kept weights")


def shape_of(text: str) -> tuple[int, int]:
    out, columns = text.split("x")
    return int(out), int(columns)


def measure(report: Report, problem: Problem, sparsity: float, tokens: int, options: argparse.Namespace) -> None:
    candidates = problem.candidates(tokens)
    once = {name: seconds(call) for name, call in candidates.items()}
    slow = {name: taken for name, taken in once.items() if taken > TOO_SLOW * once["pyprune"]}
    kept = {name: call for name, call in candidates.items() if name not in slow}
    turn = 0.0 if options.quick else TURN
    measured = turns(kept, rounds=options.rounds, seconds=SECONDS, burst=turn)
    timings = {name: summary(values) for name, values in measured.items()}
    out, columns = problem.dense.shape
    density = 1 - sparsity
    report.add(
        {
            "out": out,
            "in": columns,
            "tokens": tokens,
            "sparsity": sparsity,
            "values": str(problem.sparse.dtype).removeprefix("torch."),
            "threads": backends.threads(),
        },
        timings,
        ours="pyprune",
        slow_once=slow,
        plan=faster(out, columns, density, dtype=problem.sparse.dtype, tokens=tokens).format,
        gflops=2e-9 * tokens * problem.sparse.mask().sum().item() / timings["pyprune"].median,
        bytes={"dense": problem.dense.numel() * problem.sparse.dtype.itemsize, "ours": problem.sparse.nbytes},
    )


def seconds(call: Callable[[], object]) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
