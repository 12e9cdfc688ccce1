# SPDX-License-Identifier: Apache-2.0
"""Several patterns in one go: the solutions are those of one call each, and what is shared is made once."""

from __future__ import annotations

import itertools

import pytest
import torch
from problems import features, gram_of
from tolerances import GREEDY, relative

import pyprune
from pyprune import NM, Block, LayerProblem, Unstructured, ops, solve, solve_curve, solvers
from pyprune.errors import InputError

SOLVERS = solvers.available()
NESTING = ("magnitude", "wanda", "obs", "admm", "fast", "best")
# Out of order, of several kinds, twice the same, the two ends.
MIXED = [
    Unstructured(0.7),
    NM(2, 4),
    Unstructured(0.3),
    Block(4, 4, 0.5),
    Unstructured(0.6, "layer"),
    Unstructured(1.0),
    Block(4, 4, 0.25, "row"),
    Unstructured(0.0, "layer"),
    NM(1, 4),
    Unstructured(0.3),
    Block(4, 4, 0.75, "row"),
    Unstructured(0.9, "layer"),
]
KINDS = {
    "row": [Unstructured(sparsity) for sparsity in (0.5, 0.2, 0.9, 0.55)],
    "layer": [Unstructured(sparsity, "layer") for sparsity in (0.5, 0.2, 0.9, 0.55)],
    "of 4": [NM(keep, 4) for keep in (2, 3, 1)],
    "blocks": [Block(4, 2, sparsity) for sparsity in (0.5, 0.2, 0.9)],
}


def make(rows=24, columns=48, generator=None, kind="correlated", cross=False):
    x = features(4 * columns, columns, generator, kind)
    weight = torch.randn(rows, columns, generator=generator)
    target = x @ torch.randn(columns, rows, dtype=torch.float64, generator=generator)
    return LayerProblem(weight, gram_of(x), target.T @ x / len(x) if cross else None)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("kind", "cross"), [("correlated", False), ("scaled", True)])
def test_every_point_is_what_solve_gives(solver, kind, cross, generator):
    problem = make(generator=generator, kind=kind, cross=cross)
    for pattern, found in zip(MIXED, solve_curve(problem, MIXED, solver), strict=True):
        alone = solve(problem, pattern, solver)
        assert pattern.holds(found.mask)
        assert torch.equal(found.mask, alone.mask)
        assert relative(found.weight, alone.weight) <= GREEDY
        assert found.error == pytest.approx(alone.error, rel=1e-6, abs=1e-15)
        assert (found.solver, found.damping, found.notes) == (solver, alone.damping, alone.notes)
        assert found.condition == pytest.approx(alone.condition)


def test_order_and_kinds_do_not_change_bits(generator):
    problem = make(generator=generator)
    for solver in SOLVERS:
        whole = solve_curve(problem, MIXED, solver)
        reversed_ = solve_curve(problem, MIXED[::-1], solver)[::-1]
        for one, other in zip(whole, reversed_, strict=True):
            assert torch.equal(one.weight, other.weight)


def test_options_reach_the_solver(generator):
    problem = make(generator=generator)
    patterns = KINDS["layer"]
    for solver, options in {"sparsegpt": {"block": 8}, "admm": {"iterations": 3}, "best": {"budget": 0.2}}.items():
        for pattern, found in zip(patterns, solve_curve(problem, patterns, solver, **options), strict=True):
            assert torch.equal(found.weight, solve(problem, pattern, solver, **options).weight)
    damped = solve_curve(problem, patterns, "wanda", damping=1e-2, refit=True)
    for pattern, found in zip(patterns, damped, strict=True):
        assert torch.equal(found.weight, solve(problem, pattern, "wanda", damping=1e-2, refit=True).weight)
        assert found.damping == 1e-2


def count_calls(monkeypatch, name):
    """Arguments of every call of an op that solvers make."""
    op, calls = getattr(ops, name), []
    monkeypatch.setattr(ops, name, lambda *given, **options: calls.append((given, options)) or op(*given, **options))
    return calls


def test_greedy_removal_runs_once_for_a_kind(generator, monkeypatch):
    problem = make(generator=generator)
    runs, refits = count_calls(monkeypatch, "obs"), count_calls(monkeypatch, "masked_lstsq")
    solve_curve(problem, KINDS["row"], "obs")
    assert len(runs) == 1
    assert not refits
    solve_curve(problem, KINDS["row"] + KINDS["layer"], "obs")
    assert len(runs) == 2
    assert len(refits) == len(KINDS["layer"])
    solve_curve(problem, KINDS["of 4"], "obs")
    assert len(runs) == 5
    block_runs = count_calls(monkeypatch, "block_obs")
    solve_curve(problem, KINDS["blocks"], "obs")
    assert len(block_runs) == 1


def test_searches_of_one_ridge_share_inverses(generator, monkeypatch):
    problem = make(generator=generator)
    problem.factorise(1e-4)
    inverses = count_calls(monkeypatch, "cholesky")
    solve(problem, Unstructured(0.5), "best")
    alone = len(inverses)
    solve_curve(problem, [Unstructured(0.1), NM(2, 4), Unstructured(0.5), Unstructured(0.2, "layer")], "best")
    assert len(inverses) == 2 * alone + 2  # N:M has penalties of its own


@pytest.mark.parametrize("solver", NESTING)
@pytest.mark.parametrize("patterns", KINDS.values(), ids=KINDS)
def test_nested_masks(solver, patterns, generator):
    problem = make(generator=generator)
    if solver == "obs" and isinstance(patterns[0], NM):
        with pytest.raises(
            InputError, match=r"'obs' does not choose nested masks here\n.*1:4 within 2:4|2:4 within 3:4"
        ):
            solve_curve(problem, patterns, solver, nested=True)
        return
    free = solve_curve(problem, patterns, solver)
    found = solve_curve(problem, patterns, solver, nested=True)
    order = sorted(range(len(patterns)), key=lambda i: patterns[i].sparsity)
    for denser, sparser in itertools.pairwise(order):
        assert not bool((found[sparser].mask & ~found[denser].mask).any())
    for pattern, one, other in zip(patterns, found, free, strict=True):
        assert pattern.holds(one.mask)
        if solver in ("magnitude", "wanda", "obs"):
            assert torch.equal(one.weight, other.weight)
        else:
            assert one.error <= 1.5 * other.error


def test_nested_masks_with_dead_columns_and_zero_rows(generator):
    """Some of the zeros are kept, some are not, and all are the same size."""
    problem = make(generator=generator, kind="dead")
    weight = problem.weight.clone()
    weight[3] = 0.0
    for solver in NESTING:
        for scope in ("row", "layer"):
            patterns = [Unstructured(percent / 100, scope) for percent in (2, 5, 8, 10, 30, 60)]
            found = solve_curve(problem.sibling(weight), patterns, solver, nested=True)
            for denser, sparser in itertools.pairwise(found):
                assert not bool((sparser.mask & ~denser.mask).any())


def test_errors_say_what_was_seen(generator):
    problem = make(generator=generator)
    with pytest.raises(InputError, match="layer: no patterns"):
        solve_curve(problem, [])
    with pytest.raises(InputError, match=r"unknown solver 'magic'.*\n.*sparsegpt"):
        solve_curve(problem, MIXED, "magic")
    with pytest.raises(InputError, match="has no option 'trail'"):
        solve_curve(problem, MIXED, "best", trail=None)
    with pytest.raises(InputError, match="5:7"):
        solve_curve(problem, [Unstructured(0.5), NM(5, 7)])
    with pytest.raises(InputError, match=r"nested masks must be of one kind\n.*50 % of each row and 2:4"):
        solve_curve(problem, [Unstructured(0.5), NM(2, 4)], "best", nested=True)
    with pytest.raises(InputError, match="one kind"):
        solve_curve(problem, [Unstructured(0.5), Unstructured(0.7, "layer")], "obs", nested=True)
    with pytest.raises(InputError, match=r"'sparsegpt' does not choose nested masks"):
        solve_curve(problem, KINDS["row"], "sparsegpt", nested=True, block=8)


def test_public_name():
    assert pyprune.solve_curve is solve_curve
    assert "solve_curve" in pyprune.__all__
