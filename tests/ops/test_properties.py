# SPDX-License-Identifier: Apache-2.0
"""What is true of the solving ops whatever the numbers, on drawn problems."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import features, gram_of
from tolerances import GREEDY, SOLVE, relative

from pyprune import ops

steady = settings(derandomize=True, deadline=None, max_examples=30)
KINDS = ["plain", "correlated", "scaled", "deficient", "dead"]


@st.composite
def problems(draw, most_rows=6, most_columns=40):
    """A damped gram of any kind, weights, and a generator for what else is needed."""
    rows, columns = draw(st.integers(1, most_rows)), draw(st.integers(1, most_columns))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens = draw(st.sampled_from([1, columns, 3 * columns + 2]))
    gram = gram_of(features(tokens, columns, generator, draw(st.sampled_from(KINDS))), 1e-4)
    # A token of zeros only has no scale, and nothing to be found.
    gram = gram + torch.eye(columns, dtype=torch.float64) * (1.0 if float(gram.diagonal().sum()) == 0.0 else 0.0)
    return gram, torch.randn(rows, columns, dtype=torch.float64, generator=generator), generator


def quadratic(gram, change):
    return ((change @ gram) * change).sum(dim=1)


@steady
@given(problems(), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_restricted_fit_is_the_mask_trick(problem, density):
    """``H_m = m mᵀ∘H + 1 − m`` on the diagonal and ``m∘c`` have the restricted solution; some rows empty or full."""
    gram, weight, generator = problem
    mask = torch.rand(weight.shape, generator=generator) < density
    rhs = weight @ gram
    got = ops.masked_lstsq(gram, rhs, mask)
    assert bool((got[~mask] == 0).all())
    for row, keep in enumerate(mask.double()):
        whole = keep[:, None] * gram * keep + torch.diag(1.0 - keep)
        scale = gram.diagonal().sqrt()  # of the columns, so that kinds of all scales are held to one tolerance
        wanted = torch.linalg.solve(whole, keep * rhs[row])
        assert relative(got[row] * scale, wanted * scale) <= GREEDY


@steady
@given(problems())
def test_restricted_fit_leaves_no_residual_on_the_support(problem):
    gram, weight, generator = problem
    mask = torch.rand(weight.shape, generator=generator) < 0.5
    rhs = torch.randn(weight.shape, dtype=torch.float64, generator=generator) @ gram
    residual = (rhs - ops.masked_lstsq(gram, rhs, mask) @ gram) / gram.diagonal().sqrt()
    assert float(residual[mask].abs().max() if mask.any() else 0.0) <= SOLVE * float(
        (rhs / gram.diagonal().sqrt()).abs().max()
    )


@steady
@given(problems(), st.floats(0, 1), st.sampled_from([torch.float64, torch.float32]))
def test_losses_of_greedy_removal_add_up_to_the_objective(problem, part, dtype):
    gram, weight, _ = problem
    count = round(part * weight.shape[1])
    inverse = torch.linalg.inv(gram)
    pruned, order, loss = ops.obs(inverse, weight, count, dtype=dtype)
    assert order.shape == (len(weight), count)
    assert bool((loss >= 0).all())
    wanted = quadratic(gram, pruned - weight)
    # All of it gone is what the dense weight put out.
    energy = float(quadratic(gram, weight).max())
    assert float((loss.sum(dim=1) - wanted).abs().max()) <= (GREEDY if dtype == torch.float64 else 1e-4) * energy
    if count == weight.shape[1]:
        assert relative(wanted, quadratic(gram, weight)) <= GREEDY


@steady
@given(problems(), st.integers(1, 6))
def test_greedy_removal_is_nested(problem, points):
    """A longer run begins as a shorter one, and every point is the fit on what is left."""
    gram, weight, generator = problem
    columns = weight.shape[1]
    counts = torch.randint(0, columns + 1, (points, len(weight)), generator=generator)
    inverse = torch.linalg.inv(gram)
    pruned, order, _ = ops.obs(inverse, weight, counts)
    for point, count in zip(pruned, counts, strict=True):
        alone, prefix, _ = ops.obs(inverse, weight, count)
        assert torch.equal(order[:, : prefix.shape[1]].where(prefix >= 0, -1), prefix)
        assert bool((quadratic(gram, point - alone) <= GREEDY * quadratic(gram, weight)).all())


@steady
@given(problems())
def test_one_removal_is_the_best_of_all(problem):
    """By trying: every column is removed in turn and the rest fitted."""
    gram, weight, _ = problem
    columns = weight.shape[1]
    _, _, loss = ops.obs(torch.linalg.inv(gram), weight, 1)
    masks = ~torch.eye(columns, dtype=torch.bool)
    for row, w in enumerate(weight):
        tried = ops.masked_lstsq(gram, (w @ gram).expand(columns, columns), masks)
        least = float(quadratic(gram, tried - w).min())
        assert abs(float(loss[row, 0]) - least) <= SOLVE * float(quadratic(gram, w[None]))


def test_more_rows_than_sixteen_bits_count(generator):
    gram = gram_of(features(50, 5, generator), 1e-3)
    weight = torch.randn(65_537, 5, dtype=torch.float64, generator=generator)
    mask = torch.rand(65_537, 5, generator=generator) < 0.5
    fitted = ops.masked_lstsq(gram, weight @ gram, mask)
    pruned, _, _ = ops.obs(torch.linalg.inv(gram), weight, 2)
    assert bool(((pruned == 0).sum(dim=1) == 2).all())
    for row in (0, 255, 65_535, 65_536):
        part = slice(row, row + 1)
        assert relative(fitted[part], ops.masked_lstsq(gram, weight[part] @ gram, mask[part])) <= SOLVE
        assert torch.equal(pruned[part], ops.obs(torch.linalg.inv(gram), weight[part], 2)[0])
