# SPDX-License-Identifier: Apache-2.0
"""Measure a sparse kernel of your own beside pyprune's, dense torch and the sparse libraries that are installed.

``prepare`` arranges a pruned weight as the kernel wants it and returns what multiplies by it; all the rest (weights,
masks, warm-up, turns, the check against float64, the best of the others, the verdict) comes from the suite.

    python examples/bench_my_kernel.py
    python examples/bench_my_kernel.py --shapes 768x3072 --tokens 1,32,512 --sparsity 0.9,0.99
    pyprune bench spmm --kernel examples/bench_my_kernel.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from pyprune import bench


def prepare(
    weight: Tensor, mask: Tensor, tokens: int, dtype: torch.dtype
) -> Callable[[Tensor], Tensor] | tuple[None, str]:
    """A kernel that is dense where a column has weights left, and skips the columns that have none."""
    if dtype == torch.int8:
        return None, "no int8"
    used = mask.any(0).nonzero().flatten()
    narrow = weight[:, used].contiguous()
    return lambda x: x[:, used] @ narrow.T


bench.register("skip-columns", prepare)


def main() -> None:
    """Run the suite through Python; ``pyprune bench spmm --kernel`` does the same from a shell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--shapes", default="256x256", help="outputs x inputs (default: %(default)s)")
    parser.add_argument("--tokens", default="1,32", help="rows of the input (default: %(default)s)")
    parser.add_argument("--sparsity", default="0.5,0.9", help="fractions of zeros (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of measuring a case (default: %(default)s)")
    options = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes.split(",")]
    tokens = [int(count) for count in options.tokens.split(",")]
    sparsities = [float(share) for share in options.sparsity.split(",")]

    cases = bench.parse_cases([(out, into) for out, into in shapes], tokens, sparsities)
    record = bench.run_spmm(cases, seconds=options.seconds)
    for case in record["cases"]:
        out, into = case["shape"]
        print(f"{out}x{into}, tokens {case['tokens']}, zeros {case['sparsity']:.0%}")
        for name, result in case["results"].items():
            if result["status"] == "timed":
                print(f"  {name:<14} {1e6 * result['median']:>9.1f} µs   error {result['error']:.0e}")
    print("\n".join(record["verdict"]))


if __name__ == "__main__":
    main()
