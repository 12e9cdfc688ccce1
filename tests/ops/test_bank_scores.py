# SPDX-License-Identifier: Apache-2.0
"""Sums over a bank against a loop in float64, candidate by candidate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import BANK, BANK_GRADIENT
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.ops.bank_scores import bank_scores_gradient_reference, bank_scores_reference

# batch, entries, features, kinds, in_batch: below, at and above lanes, tiles and blocks; nothing of each.
SHAPES = [
    (1, 1, 1, 1, False),
    (2, 5, 3, 2, True),
    (5, 49, 7, 3, False),
    (17, 48, 50, 1, True),
    (3, 7, 1030, 2, True),
    (66, 20, 5, 1, True),
    (4, 0, 6, 2, True),
    (4, 0, 6, 2, False),
    (0, 3, 4, 1, True),
    (3, 4, 0, 1, False),
    (3, 4, 5, 0, True),
]


def problem(shape: tuple[int, ...], generator: torch.Generator, *, scale: float = 1.0) -> dict[str, Any]:
    """Queries, a bank longer than what is looked up in it, and keys that differ in either half of their bits."""
    batch, entries, features, kinds = shape
    values = torch.tensor([3, 3 + (1 << 32), -3, 3 - (1 << 40)])

    def keys(count: int) -> Tensor:
        return values[torch.randint(len(values), (kinds, count), generator=generator)]

    return {
        "queries": scale * torch.randn(batch, features, generator=generator, dtype=torch.float64),
        "keys": keys(batch),
        "bank": torch.randn(entries + 3, features, generator=generator, dtype=torch.float64),
        "bank_keys": keys(entries),
        "rows": torch.randint(entries + 3, (entries,), generator=generator),  # some twice
    }


def loop(
    queries: Tensor, keys: Tensor, bank: Tensor, bank_keys: Tensor, rows: Tensor, temperature: float, in_batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """log_sum, positives and counts in float64, with a graph for queries as queries only."""
    queries, bank = queries.double(), bank.double()
    log_sum, positives, counts = [], torch.zeros(keys.shape, dtype=torch.float64), torch.zeros(keys.shape).long()
    for i, query in enumerate(queries):
        candidates = [(value, keys[:, j]) for j, value in enumerate(queries.detach()) if in_batch and j != i]
        candidates += [(bank[row], bank_keys[:, place]) for place, row in enumerate(rows.tolist())]
        scores = [query @ value / temperature for value, _ in candidates]
        log_sum.append(torch.stack(scores).logsumexp(0) if scores else torch.tensor(-torch.inf).double())
        for score, (_, of_candidate) in zip(scores, candidates, strict=True):
            for kind in range(len(keys)):
                if of_candidate[kind] == keys[kind, i]:
                    add = torch.zeros_like(positives)
                    add[kind, i] = 1.0
                    positives = positives + add * score
                    counts[kind, i] += 1
    return (torch.stack(log_sum) if log_sum else torch.empty(0).double()), positives, counts


def magnitudes(given: dict[str, Any], temperature: float, in_batch: bool) -> tuple[Tensor, Tensor]:
    """For each query the largest Σ abs(q) abs(c) / τ of a candidate, and the sum of them all."""
    candidates = given["bank"][given["rows"]].double()
    if in_batch:
        candidates = torch.cat([given["queries"].double(), candidates])
    sizes = given["queries"].double().abs() @ candidates.abs().T / temperature
    return sizes.amax(1) if sizes.shape[1] else sizes.new_zeros(len(sizes)), sizes.sum(1)


@pytest.mark.parametrize("dtype", BANK, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_those_of_a_loop(backend, shape, dtype, generator):
    in_batch, given = shape[4], problem(shape[:4], generator)
    given |= {"queries": given["queries"].to(dtype), "bank": given["bank"].to(dtype)}
    found = ops.bank_scores(**given, temperature=0.7, in_batch=in_batch)
    log_sum, positives, counts = loop(**given, temperature=0.7, in_batch=in_batch)
    assert found.log_sum.dtype == found.positives.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(found.counts, counts)
    largest, total = magnitudes(given, 0.7, in_batch)
    some = ~log_sum.isinf()
    assert torch.equal(found.log_sum.isinf(), log_sum.isinf())
    assert bool(((found.log_sum.double() - log_sum)[some].abs() <= BANK[dtype] * (1 + largest)[some]).all())
    assert bool(((found.positives.double() - positives).abs() <= BANK[dtype] * total).all())


@pytest.mark.parametrize("bank_dtype", BANK, ids=str)
def test_the_bank_has_a_dtype_of_its_own(backend, bank_dtype, generator):
    given = problem((9, 60, 50, 1), generator)
    given |= {"queries": given["queries"].float(), "bank": given["bank"].to(bank_dtype)}
    found = ops.bank_scores(**given)
    log_sum, positives, _ = loop(**given, temperature=1.0, in_batch=False)
    largest, total = magnitudes(given, 1.0, False)
    assert bool(((found.log_sum - log_sum).abs() <= BANK[torch.float32] * (1 + largest)).all())
    assert bool(((found.positives - positives).abs() <= BANK[torch.float32] * total).all())


@pytest.mark.parametrize("dtype", BANK, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_a_loop(backend, shape, dtype, generator):
    in_batch, given = shape[4], problem(shape[:4], generator)
    queries = given["queries"].to(dtype).requires_grad_()
    given |= {"queries": queries, "bank": given["bank"].to(dtype)}
    wide = queries.detach().double().requires_grad_()
    exact = loop(**(given | {"queries": wide}), temperature=0.7, in_batch=in_batch)
    found = ops.bank_scores(**given, temperature=0.7, in_batch=in_batch)
    slopes = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in exact[:2]]
    slopes[0][exact[0].isinf()] = 0.0
    torch.autograd.backward(found[:2], [slope.to(found.log_sum.dtype) for slope in slopes])
    assert queries.grad is not None
    assert queries.grad.dtype == dtype
    if not exact[0].requires_grad:  # no candidates at all
        assert not queries.grad.any()
        return
    finite = [(tensor, slope) for tensor, slope in zip(exact[:2], slopes, strict=True) if tensor.requires_grad]
    torch.autograd.backward(*(list(one) for one in zip(*finite, strict=True)))
    assert wide.grad is not None
    given |= {"queries": queries.detach()}
    largest, _ = magnitudes(given, 0.7, in_batch)
    candidates = torch.cat([given["bank"].double(), given["queries"].double()])
    size = candidates.abs().max() / 0.7 if candidates.numel() else torch.zeros(())
    weights = slopes[0].abs() + (slopes[1].abs() * exact[2]).sum(0)
    bound = BANK_GRADIENT[dtype] * (size * weights * (1 + largest))[:, None]
    assert bool(((queries.grad.double() - wide.grad).abs() <= bound).all())


def test_many_candidates(backend, generator):
    """More than one chunk, and more queries than a block."""
    given = problem((67, 5000, 40, 2), generator, scale=0.2)
    given |= {"queries": given["queries"].float().requires_grad_(), "bank": given["bank"].float()}
    found = ops.bank_scores(**given, temperature=0.3, in_batch=True)
    slopes = torch.randn(67, generator=generator), torch.randn(2, 67, generator=generator)
    torch.autograd.backward(found[:2], slopes)
    queries = given.pop("queries")
    rest = (*given.values(), 0.3, True)
    wanted = bank_scores_reference(queries.detach(), *rest)
    gradient = bank_scores_gradient_reference(wanted[0], *slopes, queries.detach(), *rest)
    assert torch.allclose(found.log_sum, wanted[0], rtol=1e-6)
    assert torch.allclose(found.positives, wanted[1], rtol=1e-5, atol=1e-2)
    assert torch.equal(found.counts, wanted[2])
    assert torch.allclose(queries.grad, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_large_scores_do_not_overflow(backend, generator):
    """Scores of ± 1,000 and more: all of the probability is at one candidate."""
    bank = torch.nn.functional.normalize(torch.randn(100, 16, generator=generator), dim=1)
    queries = bank[[3, 50, 99]].clone().requires_grad_()
    rows = torch.tensor([[3, 50, 98]])  # the third query's own is no positive
    found = ops.bank_scores(queries, rows, bank, torch.arange(100)[None], temperature=1e-3)
    assert found.log_sum.tolist() == pytest.approx([1000.0] * 3, rel=1e-6)
    assert found.certain.tolist() == [[True, True, False]]
    assert found.counts.tolist() == [[1, 1, 1]]
    loss = (found.log_sum - found.positives[0]).sum()
    loss.backward()
    assert torch.allclose(queries.grad[:2], torch.zeros(2, 16), atol=2e-3)
    assert torch.allclose(queries.grad[2], (bank[99] - bank[98]) / 1e-3, rtol=1e-5, atol=1e-2)
    milder = ops.bank_scores(queries, rows, bank, torch.arange(100)[None], temperature=0.5)
    assert not milder.certain.any()


def test_no_positives(backend, generator):
    queries, bank = torch.randn(2, 5, generator=generator).requires_grad_(), torch.randn(9, 5, generator=generator)
    found = ops.bank_scores(queries, torch.tensor([[0, 1], [2, 7]]), bank, torch.full((2, 9), 7))
    assert found.counts.tolist() == [[0, 0], [0, 9]]
    assert found.positives.tolist()[0] == [0.0, 0.0]
    assert not found.certain.any()
    found.positives[0].sum().backward()
    assert not queries.grad.any()


def test_alone_in_a_batch(backend):
    """A query is no candidate of its own: there is none, and nothing to be told."""
    queries = torch.ones(1, 3, requires_grad=True)
    found = ops.bank_scores(queries, torch.ones(1, 1).long(), torch.ones(0, 3), torch.ones(1, 0).long(), in_batch=True)
    assert found.log_sum.tolist() == [-torch.inf]
    assert found.counts.tolist() == [[0]]
    found.positives.sum().backward()
    assert not queries.grad.any()


def test_rows_may_lie_apart(backend, generator):
    wide = torch.randn(40, 90, generator=generator)
    keys, entries = torch.zeros(1, 3).long(), torch.zeros(1, 40).long()
    wanted = ops.bank_scores(wide[5:8, 3:33].contiguous(), keys, wide[:, 40:70].contiguous(), entries)
    found = ops.bank_scores(wide[5:8, 3:33], keys, wide[:, 40:70], entries)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    found = ops.bank_scores(wide[5:8, 3:33], keys.T.contiguous().T, wide[:, 40:70].T.contiguous().T, entries)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def run(queries: Tensor, given: dict[str, Any], slope: Tensor) -> list[Tensor]:
    queries = queries.clone().requires_grad_()
    found = ops.bank_scores(queries, **given, temperature=0.1)
    (found.log_sum * slope - found.positives[0]).sum().backward()
    assert queries.grad is not None
    return [found.log_sum.detach(), found.positives.detach(), found.counts, found.certain, queries.grad]


def test_bits_depend_on_no_thread_and_no_other_query(monkeypatch, generator):
    given = problem((40, 3000, 100, 1), generator, scale=0.1)
    queries, slope = given.pop("queries").float(), torch.randn(40, generator=generator)
    given["bank"] = given["bank"].float()
    whole = run(queries, given, slope)
    for threads in ("2", "3", "7"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        assert all(torch.equal(one, other) for one, other in zip(run(queries, given, slope), whole, strict=True))
    alone = run(queries[33:34], given | {"keys": given["keys"][:, 33:34]}, slope[33:34])
    assert torch.equal(alone[0], whole[0][33:34])
    assert torch.equal(alone[1], whole[1][:, 33:34])
    assert torch.equal(alone[4], whole[4][33:34])


def test_nan_stays_where_it_is(backend):
    queries = torch.ones(3, 4)
    queries[1, 2] = torch.nan
    found = ops.bank_scores(queries, torch.zeros(1, 3).long(), torch.ones(5, 4), torch.zeros(1, 5).long())
    assert found.log_sum.isnan().tolist() == [False, True, False]
    assert found.positives.isnan().tolist() == [[False, True, False]]


def test_composes_with_torch(generator):
    given = problem((4, 9, 8, 2), generator)
    queries = given.pop("queries").float().requires_grad_()
    rest = (given["keys"], given["bank"].float(), given["bank_keys"], given["rows"], 0.5, True)
    torch.library.opcheck(torch.ops.pyprune.bank_scores.default, (queries, *rest))
    slopes = torch.full((4,), 2.5), torch.randn(4, generator=generator), torch.randn(2, 4, generator=generator)
    torch.library.opcheck(torch.ops.pyprune.bank_scores_gradient.default, (*slopes, queries.detach(), *rest))

    def loss(values: Tensor) -> Tensor:
        log_sum, positives, counts, _ = torch.ops.pyprune.bank_scores(values, *rest)
        return (log_sum - (positives / counts.clamp(min=1)).sum(0)).sum()

    (wanted,) = torch.autograd.grad(loss(queries), queries)
    (found,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(queries), queries)
    assert torch.equal(found, wanted)
    rest = (*rest[:-1], False)  # of the others in a batch, which are candidates without gradient, it would tell
    assert torch.autograd.gradcheck(lambda q: torch.ops.pyprune.bank_scores(q, *rest)[:2], queries.double())


def test_errors_say_what_was_seen(generator):
    given = problem((4, 9, 8, 2), generator)

    def refuse(message: str, **others: Any) -> None:
        with pytest.raises(InputError, match=message):
            ops.bank_scores(**(given | others))

    refuse(r"queries \[4, 7\]", queries=torch.ones(4, 7))
    refuse("keys must be int64", keys=given["keys"].int())
    refuse("rows must be int64", rows=given["rows"].float())
    refuse("bank_keys has the wrong shape", bank_keys=given["bank_keys"][:, 1:])
    refuse("bank_keys has the wrong shape", bank_keys=given["bank_keys"][:1])
    refuse("keys has the wrong shape", keys=given["keys"][0])
    refuse("rows has the wrong shape", rows=given["rows"][None])
    refuse("temperature is out of range", temperature=0.0)
    refuse("temperature is out of range", temperature=float("nan"))
    refuse("has dtype torch.int64", bank=given["bank"].long())
    refuse("by its bank has no gradient", bank=given["bank"].requires_grad_())
    given["bank"] = given["bank"].detach()
    for row in (-1, 12):
        outside = given["rows"].clone()
        outside[3] = row
        refuse("a row that is not in the bank", rows=outside)
    queries = given.pop("queries").requires_grad_()
    with pytest.raises(InputError, match="the gradient of bank_scores has no gradient"):
        torch.autograd.grad(ops.bank_scores(queries, **given).log_sum.sum(), queries, create_graph=True)
