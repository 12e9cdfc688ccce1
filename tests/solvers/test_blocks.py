# SPDX-License-Identifier: Apache-2.0
"""Whole blocks go: what is true of single weights is true of blocks of one, and of larger ones by definition."""

from __future__ import annotations

import pytest
import torch
from problems import features, gram_of
from tolerances import GREEDY, relative

from pyprune import Block, LayerProblem, Unstructured, ops, solve, solvers
from pyprune.errors import InputError

SOLVERS = solvers.available()


def make(rows=24, columns=48, generator=None, kind="correlated", dtype=torch.float32, **options):
    x = features(4 * columns, columns, generator, kind)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    return LayerProblem(weight, gram_of(x), **options), x


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scope", ["row", "layer"])
def test_blocks_of_one_weight(solver, scope, generator):
    problem, _ = make(generator=generator, dtype=torch.float64)
    one, other = (solve(problem, p, solver) for p in (Block(1, 1, 0.6, scope), Unstructured(0.6, scope)))
    assert torch.equal(one.mask, other.mask)
    assert relative(one.weight, other.weight) <= GREEDY


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("pattern", [Block(24, 1, 0.5), Block(1, 48, 0.5), Block(24, 48, 0.0), Block(24, 48, 1.0)])
def test_blocks_of_whole_columns_rows_and_matrices(solver, pattern, generator):
    problem, _ = make(generator=generator)
    assert pattern.holds(solve(problem, pattern, solver).mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_weights_whose_squares_leave_the_range(dtype, generator):
    weight = torch.randn(8, 16, generator=generator)
    for factor in (1e-7, 1e-3, 1e4):
        scaled = (weight * factor).to(dtype)
        energy = scaled.double().square().reshape(4, 2, 4, 4).sum(dim=(1, 3))
        kept = solve(LayerProblem(scaled, torch.eye(16)), Block(2, 4, 0.5), "magnitude").mask[::2, ::4]
        assert float(energy[kept].min()) >= float(energy[~kept].max())


def test_wanda_takes_what_the_blocks_put_out(generator):
    problem, x = make(generator=generator, kind="scaled")
    energy = (problem.weight.double() ** 2 * x.square().mean(dim=0)).reshape(6, 4, 12, 4).sum(dim=(1, 3))
    kept = solve(problem, Block(4, 4, 0.5), "wanda").mask[::4, ::4]
    assert float(energy[kept].min()) > float(energy[~kept].max())


@pytest.mark.parametrize("scope", ["row", "layer"])
@pytest.mark.parametrize(("rows", "cols", "span"), [(4, 4, 16), (1, 6, 12), (8, 1, 5), (2, 16, 48), (3, 8, 10)])
def test_sparsegpt_equals_the_loop_by_definition(rows, cols, span, scope, generator):
    """Column blocks of whole pattern blocks, those of least loss gone, the rest as in the published sweep."""
    problem, _ = make(generator=generator, dtype=torch.float64)
    pattern, weight, gram = Block(rows, cols, 0.6, scope), problem.weight.clone(), problem.gram
    solution = solve(problem, pattern, "sparsegpt", block=span)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(48, dtype=torch.float64)
    inverses = [torch.linalg.inv(damped[j:, j:]) for j in range(48)]  # of what may still adapt
    span = -(-span // cols) * cols
    for first in range(0, 48, span):
        stop = min(first + span, 48)
        losses = torch.zeros(24 // rows, (stop - first) // cols, dtype=torch.float64)
        for index, j in enumerate(range(first, stop, cols)):
            own = weight[:, j : j + cols]
            each = ((own @ torch.linalg.inv(inverses[j][:cols, :cols])) * own).sum(dim=1)
            losses[:, index] = each.reshape(-1, rows).sum(dim=1)
        kept = pattern.kept_blocks(24, stop) - pattern.kept_blocks(24, first)
        mask = pattern.expand(ops.select(losses, kept, scope))
        for j in range(first, stop):
            error = torch.where(mask[:, j - first], 0.0, weight[:, j] / inverses[j][0, 0])
            weight[:, j:] -= torch.outer(error, inverses[j][0])
        weight[:, first:stop] *= mask
        assert torch.equal(solution.mask[:, first:stop], mask)
    assert relative(solution.weight, weight) <= GREEDY


def test_obs_removes_the_block_of_least_loss_first(generator):
    problem, _ = make(8, 12, generator=generator, dtype=torch.float64)
    mask = solve(problem, Block(2, 3, 1 / 16), "obs", damping=0.0).mask
    losses = {}
    for row in range(0, 8, 2):
        for col in range(0, 12, 3):
            rest = torch.ones(8, 12, dtype=torch.bool)
            rest[row : row + 2, col : col + 3] = False
            losses[row, col] = problem.loss(ops.masked_lstsq(problem.gram, problem.rhs(), rest))
    row, col = min(losses, key=losses.__getitem__)
    assert not bool(mask[row : row + 2, col : col + 3].any())


def test_allocation_across_rows_of_blocks_is_not_worse_than_uniform(generator):
    problem, _ = make(generator=generator)
    problem = LayerProblem(problem.weight * torch.logspace(-2, 1, 24)[:, None], problem.gram)
    uniform, allocated = (solve(problem, Block(4, 2, 0.6, scope), "obs") for scope in ("row", "layer"))
    assert allocated.error < uniform.error


def test_blocks_that_do_not_fit(generator):
    problem, _ = make(generator=generator, name="encoder.layer.1.output.dense")
    with pytest.raises(InputError, match=r"encoder\.layer\.1\.output\.dense: blocks of 5x4 do not fit.*24"):
        solve(problem, Block(5, 4, 0.5))
