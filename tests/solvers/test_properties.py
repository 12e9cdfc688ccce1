# SPDX-License-Identifier: Apache-2.0
"""What is true of every solver whatever the layer, on drawn layers: well, badly and not at all conditioned."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import features, gram_of
from tolerances import GREEDY, SOLVE, relative

from pyprune import NM, Block, LayerProblem, Unstructured, ops, solve, solvers

SOLVERS = solvers.available()
REFITTING = ("obs", "admm", "fast", "best")  # on layers as small as these fast and best end in the exact fit, too
steady = settings(derandomize=True, deadline=None, max_examples=12)
KINDS = ["plain", "correlated", "scaled", "deficient", "dead", "twins", "near twins", "one token"]


def draw_features(columns, generator, kind):
    if kind == "one token":
        return features(1, columns, generator)
    x = features(3 * columns + 5, columns, generator, kind if "twins" not in kind else "plain")
    if "twins" in kind and columns > 1:  # two columns alike, or so nearly that the gram's condition is 1e12
        x[:, 0] = x[:, 1] + (1e-6 * x[:, 0] if kind == "near twins" else 0.0)
    return x if bool(x.any()) else features(3 * columns + 5, columns, generator)  # a gram of zeros is refused


@st.composite
def layers(draw, kinds=KINDS, dtypes=(torch.float64,), cross=False):
    """Features, weight and a generator; the inputs fit groups of four."""
    rows, columns = draw(st.integers(1, 9)), 4 * draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = draw_features(columns, generator, draw(st.sampled_from(kinds)))
    weight = torch.randn(rows, columns, generator=generator).to(draw(st.sampled_from(dtypes)))
    return x, weight, generator


patterns = st.one_of(
    st.builds(Unstructured, st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.875, 1.0]), st.sampled_from(["row", "layer"])),
    st.builds(NM, st.integers(0, 4), st.just(4)),
    st.builds(Block, st.just(1), st.sampled_from([1, 2, 4]), st.sampled_from([0.0, 0.3, 0.5, 1.0])),
)


@steady
@given(layers())
def test_objective_is_that_of_the_data(layer):
    """``E|y|² − 2⟨C, W⟩ + ⟨W, HW⟩``, of another target."""
    x, weight, generator = layer
    y = torch.randn(len(x), len(weight), dtype=torch.float64, generator=generator)
    energy = float(y.square().sum()) / len(x)
    problem = LayerProblem(weight, gram_of(x), y.T @ x / len(x), target_energy=energy)
    direct = float((y - x @ weight.T).square().sum()) / len(x)
    assert problem.loss(weight) == pytest.approx(direct, rel=1e-9, abs=1e-9 * energy)
    assert problem.error(weight) == pytest.approx(direct / energy, rel=1e-9, abs=1e-9)
    own = LayerProblem(weight, gram_of(x))
    other = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
    change = float((x @ (other - weight).T).square().sum()) / len(x)
    assert own.loss(other) == pytest.approx(change, rel=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@steady
@given(layers(dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16)), patterns)
def test_every_layer_gets_exactly_its_pattern(solver, layer, pattern):
    x, weight, _ = layer
    solution = solve(LayerProblem(weight, gram_of(x)), pattern, solver)
    assert pattern.holds(solution.mask)
    assert int(solution.mask.sum()) == pattern.kept(*weight.shape)
    assert solution.weight.dtype == weight.dtype
    assert bool(torch.isfinite(solution.weight).all())
    assert bool((solution.weight[~solution.mask] == 0).all())
    if solver in REFITTING:  # the fit is at most as bad as nothing at all, up to the ridge and the rounding of storage
        assert 0 <= solution.error <= 1.01


@pytest.mark.parametrize("solver", SOLVERS)
@steady
@given(layers(dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16)))
def test_nothing_removed_nothing_changed(solver, layer):
    x, weight, _ = layer
    for pattern in (Unstructured(0.0), Unstructured(0.0, "layer"), NM(4, 4), Block(1, 2, 0.0)):
        solution = solve(LayerProblem(weight, gram_of(x)), pattern, solver)
        assert torch.equal(solution.weight, weight)
        assert solution.error == 0.0


@pytest.mark.parametrize("solver", REFITTING)
@steady
@given(layers(), patterns, st.booleans())
def test_refitting_solvers_end_in_a_fixed_point(solver, layer, pattern, rectified):
    """The residual of ``(H + λI) W = C + λW₀`` vanishes on the support of every row."""
    x, weight, generator = layer
    y = x @ torch.randn(x.shape[1], len(weight), dtype=torch.float64, generator=generator)
    gram = gram_of(x)
    problem = LayerProblem(weight, gram, y.T @ x / len(x) if rectified else None)
    solution = solve(problem, pattern, solver, damping=1e-3)
    ridge = solution.damping * float(gram.diagonal().mean())
    damped = gram + ridge * torch.eye(len(gram), dtype=torch.float64)
    rhs = problem.rhs() + ridge * weight
    residual = (rhs - solution.weight @ damped)[solution.mask]
    largest = damped.diagonal().sqrt().max() * ((solution.weight @ damped) * solution.weight).sum(dim=1).max().sqrt()
    scale = max(float(rhs.abs().max()), float(largest))
    assert float(residual.abs().max() if len(residual) else 0.0) <= GREEDY * scale


@steady
@given(layers(), st.floats(0.1, 1.0))
def test_losses_come_on_top_of_the_rectified_start(layer, part):
    """``W̄`` and then OBS: the damped objective of the target is that of ``W̄`` and the losses of all removals."""
    x, weight, generator = layer
    y = x @ torch.randn(x.shape[1], len(weight), dtype=torch.float64, generator=generator)
    problem = LayerProblem(weight, gram_of(x), y.T @ x / len(x))
    factor, start = problem.factorise(1e-3), problem.start(1e-3)
    pruned, _, loss = ops.obs(factor.inverse, start, round(part * weight.shape[1]))
    damped = problem.gram + factor.ridge * torch.eye(len(problem.gram), dtype=torch.float64)
    rhs = problem.rhs() + factor.ridge * weight

    def objective(w):
        return float((w @ damped * w).sum() - 2 * (rhs * w).sum())

    wanted = objective(pruned) - objective(start)
    assert float(loss.sum()) == pytest.approx(wanted, rel=1e-6, abs=1e-9 * abs(objective(start)))


@steady
@given(layers(), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_the_dense_stream_rectifies_nothing(layer, damping):
    """Dense and pruned stream alike: ``C = W H``, and the dense weight is the rectified one, whatever the ridge."""
    x, weight, _ = layer
    target = x @ weight.T
    problem = LayerProblem(weight, gram_of(x), target.T @ x / len(x))
    assert relative(problem.start(damping), weight) <= SOLVE


@pytest.mark.parametrize("solver", SOLVERS)
@steady
@given(layers(kinds=["plain", "correlated", "scaled"]), patterns, st.integers(-9, 9), st.integers(-9, 9))
def test_sizes_of_features_and_weights_do_not_matter(solver, layer, pattern, gram_power, weight_power):
    """Powers of two, which round nothing: to the last bit."""
    x, weight, _ = layer
    gram = gram_of(x)
    one = solve(LayerProblem(weight, gram), pattern, solver)
    other = solve(LayerProblem(weight * 2.0**weight_power, gram * 4.0**gram_power), pattern, solver)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.weight, other.weight * 2.0**-weight_power)


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver != "magnitude"])
@steady
@given(layers(kinds=["plain"]), patterns)
def test_units_of_features_do_not_matter(solver, layer, pattern):
    """Columns measured in other units: without a ridge the mask and the outputs stay."""
    x, weight, generator = layer
    units = 2.0 ** torch.randint(-2, 3, (x.shape[1],), generator=generator)
    one = solve(LayerProblem(weight, gram_of(x)), pattern, solver, damping=0.0)
    other = solve(LayerProblem(weight / units, gram_of(x * units)), pattern, solver, damping=0.0)
    assert torch.equal(one.mask, other.mask)
    assert relative(other.weight * units, one.weight) <= GREEDY


@pytest.mark.parametrize("solver", SOLVERS)
@steady
@given(layers(kinds=["plain", "correlated", "scaled"]), patterns)
def test_order_of_rows_does_not_matter(solver, layer, pattern):
    x, weight, generator = layer
    order = torch.randperm(len(weight), generator=generator)
    one, other = (solve(LayerProblem(w, gram_of(x)), pattern, solver) for w in (weight, weight[order]))
    assert torch.equal(one.mask[order], other.mask)
    assert relative(other.weight, one.weight[order]) <= GREEDY


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver != "sparsegpt"])
@steady
@given(layers(kinds=["plain"]), st.sampled_from([0.25, 0.5, 0.75]), st.sampled_from(["row", "layer"]))
def test_order_of_columns_does_not_matter(solver, layer, sparsity, scope):
    """But for SparseGPT, which takes them from left to right."""
    x, weight, generator = layer
    order = torch.randperm(x.shape[1], generator=generator)
    pattern = Unstructured(sparsity, scope)
    one = solve(LayerProblem(weight, gram_of(x)), pattern, solver)
    other = solve(LayerProblem(weight[:, order], gram_of(x[:, order])), pattern, solver)
    assert torch.equal(one.mask[:, order], other.mask)
    assert relative(other.weight, one.weight[:, order]) <= GREEDY


@pytest.mark.parametrize("solver", ["wanda", "obs", "admm", "fast", "best"])  # those that see it in time
@steady
@given(layers(kinds=["plain"]), st.integers(1, 4))
def test_columns_without_energy_change_nothing(solver, layer, dead):
    """Dead columns beside the others: all that has to go goes there first, and the outputs stay."""
    x, weight, generator = layer
    weight = weight + weight.sign()  # the ridge makes a dead weight cost a little: no live one may be near zero
    columns = x.shape[1]
    wide = torch.cat([x, torch.zeros(len(x), dead, dtype=torch.float64)], dim=1)
    both = torch.cat([weight, torch.randn(len(weight), dead, dtype=torch.float64, generator=generator)], dim=1)
    solution = solve(LayerProblem(both, gram_of(wide)), Unstructured(dead / (columns + dead)), solver)
    assert bool(solution.mask[:, :columns].all())
    assert solution.error <= 1e-15
