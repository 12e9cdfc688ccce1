# SPDX-License-Identifier: Apache-2.0
"""Prune one weight matrix by every solver, and repair one whose inputs have already changed.

No model and no tokenizer: a weight ``W`` and second moments of its inputs are all a solver needs.

    python examples/solve_one_matrix.py
    python examples/solve_one_matrix.py --rows 16 --cols 32 --tokens 200 --pattern 2:4
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import pyprune
from pyprune.patterns import parse_pattern


def make_layer(rows: int, cols: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight ``[rows, cols]`` and features ``[tokens, cols]`` that are correlated, as those of a model are."""
    generator = torch.Generator().manual_seed(seed)
    # Directions of falling energy: some of the inputs can be told from the others, and every one occurs in the data.
    energy = torch.arange(1, cols + 1).rsqrt()
    mix = energy[:, None] * torch.randn(cols, cols, generator=generator)
    features = torch.randn(tokens, cols, generator=generator) @ mix
    return torch.randn(rows, cols, generator=generator), features


def compare_solvers(weight: Tensor, features: Tensor, pattern: pyprune.Unstructured | pyprune.NM) -> None:
    """One line per solver on the same problem."""
    problem = pyprune.LayerProblem(weight, pyprune.ops.gram(features) / len(features), name="example")
    print(f"weight {list(weight.shape)}, {len(features)} tokens, pattern {pattern.describe()}")
    print(f"{'solver':<10}  {'kept':>6}  {'error':>8}  {'seconds':>8}")
    for solver in pyprune.solvers.available():
        # One pattern for all: by default each solver would use the scope of its own paper.
        solution = pyprune.solve(problem, pattern, solver)
        print(f"{solver:<10}  {int(solution.mask.sum()):>6}  {solution.error:>8.4f}  {solution.seconds:>8.3f}")


def repair(weight: Tensor, features: Tensor, pattern: pyprune.Unstructured | pyprune.NM, seed: int) -> None:
    """Inputs that were changed by pruning further down: with and without the dense output as target."""
    generator = torch.Generator().manual_seed(seed + 1)
    scale = 0.3 * features.std()
    changed = features + scale * torch.randn(features.shape, generator=generator)
    target = features @ weight.T  # the dense layer's output on its own, unchanged inputs
    tokens = len(features)
    gram = pyprune.ops.gram(changed) / tokens
    cross = pyprune.ops.cross_gram(target, changed) / tokens
    energy = float(target.double().square().sum()) / tokens
    towards_target = pyprune.LayerProblem(weight, gram, cross, target_energy=energy)
    plain = pyprune.solve(pyprune.LayerProblem(weight, gram), pattern, "obs")
    rectified = pyprune.solve(towards_target, pattern, "obs")
    print("inputs changed below, error against the dense output:")
    print(f"  towards its own weight  {towards_target.error(plain.weight):.4f}")
    print(f"  towards that output     {towards_target.error(rectified.weight):.4f}")


def main() -> None:
    """Read the sizes and run both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", type=int, default=384, help="outputs (default: %(default)s)")
    parser.add_argument("--cols", type=int, default=384, help="inputs (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens (default: %(default)s)")
    parser.add_argument("--pattern", default="0.5", help="a sparsity, or N:M (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random layer (default: %(default)s)")
    options = parser.parse_args()
    weight, features = make_layer(options.rows, options.cols, options.tokens, options.seed)
    pattern = parse_pattern(options.pattern)
    compare_solvers(weight, features, pattern)
    print()
    repair(weight, features, pattern, options.seed)


if __name__ == "__main__":
    main()
