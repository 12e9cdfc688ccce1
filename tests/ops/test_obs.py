# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import features, gram_of, plain_obs
from tolerances import GREEDY, GREEDY_LOSS_SINGLE, OTHER_CHOICES, SAME_CHOICE, relative

from pyprune import demo, ops
from pyprune.errors import InputError, NumericsError

DTYPES = [torch.float64, torch.float32]


def refit_of(gram, weight, order):
    """The exact fit of the dense output on the weights that ``order`` left."""
    mask = torch.ones_like(weight, dtype=torch.bool).scatter_(1, order, False)
    return ops.masked_lstsq(gram, weight @ gram, mask)


def objective(gram, weight, pruned):
    change = pruned - weight
    return ((change @ gram) * change).sum(dim=1)


def twins(columns, generator):
    """Pairs of nearly equal features of equal weight: half of the columns that look cheap never go."""
    x = 30 * torch.linalg.qr(torch.randn(2 * columns, columns, dtype=torch.float64, generator=generator))[0]
    x[:, 1::2] = 0.95 * x[:, ::2] + 0.3 * x[:, 1::2]
    gram = gram_of(x + 0.01 * features(2 * columns, columns, generator))
    return gram, torch.linspace(1, 2, columns // 2, dtype=torch.float64).repeat_interleave(2).repeat(2, 1)


def check_against_plain(gram, weight, count, keep=0, of=0):
    inverse = torch.linalg.inv(gram)
    inverse = (inverse + inverse.T) / 2
    got, order, loss = ops.obs(inverse, weight, count, keep=keep, of=of)
    for row in range(len(weight)):
        wanted, pivots, losses = plain_obs(inverse.numpy(), weight[row].numpy(), count, keep, of)
        assert order[row].tolist() == pivots
        scale = float(np.abs(wanted).max()) or 1.0
        assert np.abs(got[row].numpy() - wanted).max() <= 1e-5 * scale
        assert np.allclose(loss[row].numpy(), losses, rtol=1e-6, atol=1e-9 * max(losses, default=0.0))


# Ten random problems: around and far beyond the panel of the kernel, odd sizes, light and heavy pruning.
@pytest.mark.parametrize(
    ("rows", "columns", "count"),
    [
        (1, 1, 1),
        (3, 2, 1),
        (4, 17, 16),
        (5, 64, 32),
        (2, 97, 97),
        (3, 131, 100),
        (2, 145, 145),
        (2, 200, 175),
        (2, 255, 128),
        (2, 256, 224),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "correlated"])
def test_same_pivots_as_the_plain_algorithm(backend, rows, columns, count, kind, generator):
    gram = gram_of(features(2 * columns + 3, columns, generator, kind), 1e-3)
    weight = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    check_against_plain(gram, weight, count)


@pytest.mark.parametrize(("keep", "of", "columns"), [(2, 4, 128), (32, 64, 192), (1, 3, 99), (0, 4, 16)])
def test_groups_lose_exactly_their_share(backend, keep, of, columns, generator):
    gram = gram_of(features(300, columns, generator, "correlated"), 1e-3)
    weight = torch.randn(3, columns, dtype=torch.float64, generator=generator)
    count = columns // of * (of - keep)
    check_against_plain(gram, weight, count, keep, of)
    pruned, _, _ = ops.obs(torch.linalg.inv(gram), weight, count, keep=keep, of=of)
    assert bool(((pruned != 0).reshape(3, -1, of).sum(dim=2) == keep).all())


def test_rows_computed_for_columns_that_stay(generator):
    """More of them than are kept at a time."""
    gram, weight = twins(400, generator)
    check_against_plain(gram, weight, 250)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [60, 300])
def test_ends_in_the_restricted_least_squares(columns, dtype, generator):
    gram = gram_of(features(3 * columns, columns, generator, "correlated"), 1e-3)
    weight = torch.randn(6, columns, dtype=torch.float64, generator=generator)
    count = 3 * columns // 4
    pruned, order, loss = ops.obs(torch.linalg.inv(gram), weight, count, dtype=dtype)
    assert relative(pruned, refit_of(gram, weight, order)) <= GREEDY
    # The losses add up to the quadratic objective.
    tolerance = GREEDY if dtype == torch.float64 else GREEDY_LOSS_SINGLE
    assert relative(loss.sum(dim=1), objective(gram, weight, pruned)) <= tolerance


class TestSingle:
    """Weights chosen in float32."""

    @pytest.mark.parametrize("kind", ["plain", "correlated"])
    @pytest.mark.parametrize(("columns", "count"), [(1, 1), (17, 9), (95, 50), (160, 150), (260, 130), (390, 300)])
    def test_as_good_as_in_float64(self, columns, count, kind, generator):
        gram = gram_of(features(2 * columns + 3, columns, generator, kind), 1e-3)
        weight = torch.randn(8, columns, dtype=torch.float64, generator=generator)
        inverse = torch.linalg.inv(gram)
        single, one, _ = ops.obs(inverse, weight, count, dtype=torch.float32)
        exact, other, _ = ops.obs(inverse, weight, count)
        assert bool(((single == 0).sum(dim=1) == count).all())
        got, wanted = objective(gram, weight, single), objective(gram, weight, exact)
        same = (one.sort(dim=1).values == other.sort(dim=1).values).all(dim=1)
        assert int(same.sum()) >= 6
        assert relative(got[same], wanted[same]) <= SAME_CHOICE
        assert float(got.sum()) <= float(wanted.sum()) * (1 + OTHER_CHOICES)

    @pytest.mark.parametrize(("keep", "of", "columns"), [(2, 4, 320), (32, 64, 192), (1, 3, 99), (0, 4, 16)])
    def test_groups(self, keep, of, columns, generator):
        gram = gram_of(features(3 * columns, columns, generator, "correlated"), 1e-3)
        weight = torch.randn(3, columns, dtype=torch.float64, generator=generator)
        count = columns // of * (of - keep)
        pruned, order, _ = ops.obs(torch.linalg.inv(gram), weight, count, keep=keep, of=of, dtype=torch.float32)
        assert bool(((pruned != 0).reshape(3, -1, of).sum(dim=2) == keep).all())
        assert relative(pruned, refit_of(gram, weight, order)) <= GREEDY

    def test_rows_computed_for_columns_that_stay(self, generator):
        gram, weight = twins(400, generator)
        pruned, order, _ = ops.obs(torch.linalg.inv(gram), weight, 250, dtype=torch.float32)
        assert relative(pruned, refit_of(gram, weight, order)) <= GREEDY

    @pytest.mark.parametrize("kind", ["deficient", "dead", "scaled"])
    def test_rows_that_float32_does_not_settle(self, kind, generator):
        """They are done again: the very bits of float64 for those, and float64's accuracy for all."""
        gram = gram_of(features(150, 90, generator, kind), 1e-9)
        weight = torch.randn(4, 90, dtype=torch.float64, generator=generator)
        inverse = torch.linalg.inv(gram)
        inverse = (inverse + inverse.T) / 2
        pruned, order, _ = ops.obs(inverse, weight, 60, dtype=torch.float32)
        exact, _, _ = ops.obs(inverse, weight, 60)
        if kind == "deficient":
            assert torch.equal(pruned, exact)
        best = objective(gram, weight, refit_of(gram, weight, order))
        assert float(objective(gram, weight, pruned).sum()) <= float(best.sum()) * (1 + 1e-6)

    def test_sizes_that_float32_cannot_hold(self, generator):
        gram = gram_of(features(300, 64, generator, "correlated"), 1e-3)
        weight = torch.randn(3, 64, dtype=torch.float64, generator=generator)
        plain, order, loss = ops.obs(torch.linalg.inv(gram), weight, 32, dtype=torch.float32)
        scaled, *trace = ops.obs(torch.linalg.inv(gram) * 2.0**200, weight * 2.0**-150, 32, dtype=torch.float32)
        assert torch.equal(scaled * 2.0**150, plain)
        assert torch.equal(trace[0], order)
        assert torch.equal(trace[1] * 2.0**250 * 2.0**250, loss)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_may_differ_by_row(backend, dtype, generator):
    gram = gram_of(features(500, 160, generator), 1e-3)
    inverse = torch.linalg.inv(gram)
    weight = torch.randn(4, 160, dtype=torch.float64, generator=generator)
    counts = torch.tensor([0, 1, 160, 99])
    pruned, order, loss = ops.obs(inverse, weight, counts, dtype=dtype)
    assert ((pruned == 0).sum(dim=1)).tolist() == counts.tolist()
    assert order.shape == loss.shape == (4, 160)
    for row, count in enumerate(counts.tolist()):
        assert bool((order[row, count:] == -1).all())
        assert bool((loss[row, count:] == 0).all())
        alone = ops.obs(inverse, weight[row : row + 1], count, dtype=dtype)
        assert torch.equal(alone[0][0], pruned[row])
    assert torch.equal(pruned[0], weight[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("keep", "of"), [(0, 0), (1, 4)])
def test_points_of_one_run(backend, keep, of, dtype, generator):
    """Each has the weights of a run that ends there; the order is that of the longest."""
    gram = gram_of(features(400, 100, generator, "correlated"), 1e-3)
    inverse, weight = torch.linalg.inv(gram), torch.randn(3, 100, dtype=torch.float64, generator=generator)
    counts = torch.tensor([[0, 9, 75], [75, 1, 33], [32, 74, 33]])
    pruned, order, loss = ops.obs(inverse, weight, counts, keep=keep, of=of, dtype=dtype)
    assert pruned.shape == (3, 3, 100)
    longest = ops.obs(inverse, weight, counts.max(dim=0).values, keep=keep, of=of, dtype=dtype)
    assert torch.equal(order, longest[1])
    assert torch.equal(loss, longest[2])
    for point, count in zip(pruned, counts, strict=True):
        alone = ops.obs(inverse, weight, count, keep=keep, of=of, dtype=dtype)[0]
        assert torch.equal(point == 0, alone == 0)
        assert relative(point, alone) <= GREEDY
    assert torch.equal(ops.obs(inverse, weight, counts[:1], keep=keep, of=of, dtype=dtype)[0][0][0], weight[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [5, 130])
def test_ties_go_to_the_lower_column(backend, columns, dtype):
    _, order, _ = ops.obs(torch.eye(columns), torch.ones(1, columns), columns - 2, dtype=dtype)
    assert order.tolist() == [list(range(columns - 2))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_weights_go_first_at_no_loss(backend, dtype, generator):
    gram = gram_of(features(200, 40, generator), 1e-3)
    weight = torch.randn(1, 40, dtype=torch.float64, generator=generator)
    weight[0, [3, 30]] = 0.0
    pruned, order, loss = ops.obs(torch.linalg.inv(gram), weight, 2, dtype=dtype)
    assert sorted(order[0].tolist()) == [3, 30]
    assert float(loss.max()) == 0.0
    assert torch.equal(pruned, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_empty(backend, shape, dtype):
    pruned, order, _ = ops.obs(torch.eye(shape[1]), torch.zeros(shape), 0, dtype=dtype)
    assert pruned.shape == shape
    assert order.shape == (shape[0], 0)


@pytest.mark.parametrize("kind", ["deficient", "dead", "scaled"])
def test_hard_grams(backend, kind, generator):
    gram = gram_of(features(150, 90, generator, kind), 1e-4)
    weight = torch.randn(4, 90, dtype=torch.float64, generator=generator)
    pruned, order, _ = ops.obs(torch.linalg.inv(gram), weight, 60)
    best = objective(gram, weight, refit_of(gram, weight, order))
    assert float(objective(gram, weight, pruned).sum()) <= float(best.sum()) * (1 + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_thread_count(monkeypatch, dtype, generator):
    gram = gram_of(features(600, 200, generator), 1e-3)
    inverse, weight = torch.linalg.inv(gram), torch.randn(9, 200, dtype=torch.float64, generator=generator)
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        results.append(ops.obs(inverse, weight, 150, dtype=dtype)[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inverse_that_is_not_positive_definite(backend, dtype):
    inverse = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    with pytest.raises(NumericsError, match="row 0"):
        ops.obs(inverse, torch.ones(1, 3), 2, dtype=dtype)


def test_errors_say_what_was_seen():
    with pytest.raises(InputError, match="0 to 3 are possible"):
        ops.obs(torch.eye(3), torch.ones(1, 3), 4)
    with pytest.raises(InputError, match=r"inverse \[3, 3\]"):
        ops.obs(torch.eye(3), torch.ones(1, 4), 1)
    for shape in [(2,), (2, 2), (0, 1), (1, 1, 1)]:
        with pytest.raises(InputError, match=r"count does not fit\n.*\[1\] or \[points, 1\]"):
            ops.obs(torch.eye(3), torch.ones(1, 3), torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(InputError, match="groups"):
        ops.obs(torch.eye(3), torch.ones(1, 3), 1, keep=1, of=2)
    with pytest.raises(InputError, match="float32 or float64"):
        ops.obs(torch.eye(3), torch.ones(1, 3), 1, dtype=torch.bfloat16)
    with pytest.raises(NumericsError, match="weight holds NaN"):
        ops.obs(torch.eye(3), torch.full((1, 3), torch.nan), 1)


def test_real_layer():
    """Same pivots on a fine-tuned layer, with the gram of its own real inputs."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = demo.model_folder()
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    lines = demo.train_file().read_text(encoding="utf-8").splitlines()[1:257]
    batch = tokenizer([line.split("\t")[0] for line in lines], return_tensors="pt", padding=True)
    site = model.bert.encoder.layer[2].attention.output.dense
    seen = []
    handle = site.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    keep = batch["attention_mask"]
    gram = ops.gram(seen[0], keep, out=torch.zeros(384, 384, dtype=torch.float64)) / int(keep.sum())
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(384, dtype=torch.float64)
    check_against_plain(gram, site.weight.detach().double()[:6], 300)
