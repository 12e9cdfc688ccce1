# SPDX-License-Identifier: Apache-2.0
"""Sums over a bank and their gradients by Triton, against float64 with the matrix of scores."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from buffers import Guarded, refused
from tolerances import BANK, BANK_GRADIENT
from torch import Tensor

from pyprune.ops.bank_scores import bank_scores_gradient_reference, bank_scores_reference
from pyprune.triton_kernels import bank_scores
from pyprune.triton_kernels.bank_scores import Tile, score_gradient, score_sums

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SMALL = Tile(queries=16, candidates=16, depth=16, warps=4, stages=2)
KEYS = torch.tensor([3, 3 + (1 << 32), -3, 3 - (1 << 40)])  # equal in either half of their bits


def guarded(values: Tensor, device: str, *, pitch: int | None = None) -> Guarded:
    buffer = Guarded(*values.shape, values.dtype, device, pitch=pitch)
    buffer.view.copy_(values)
    return buffer


def run(
    device: str,
    batch: int,
    entries: int,
    features: int,
    kinds: int,
    *,
    in_batch: bool = False,
    dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32),
    rows: bool = True,
    tile: Tile | None = SMALL,
    processors: int = 2,
    temperature: float = 0.7,
) -> dict[str, bool]:
    """Both kernels on buffers between guards; few multiprocessors, so that chunks have several tiles."""
    generator = torch.Generator().manual_seed(batch * 1009 + entries)

    def keys(count: int) -> Tensor:
        return KEYS[torch.randint(len(KEYS), (kinds, count), generator=generator)]

    length = entries + 3 if rows else entries
    queries = torch.randn(batch, features, generator=generator).to(dtypes[0])
    bank = torch.randn(length, features, generator=generator).to(dtypes[1])
    index = torch.randint(length, (entries,), generator=generator) if rows else None
    own, others = keys(batch), keys(entries)
    slopes = torch.randn(batch, generator=generator), torch.randn(kinds, batch, generator=generator)
    at_end = (temperature, in_batch)
    exact = bank_scores_reference(queries.double(), own, bank, others, index, *at_end)
    wanted = bank_scores_gradient_reference(exact[0], *slopes, queries.double(), own, bank, others, index, *at_end)

    bank_buffer = guarded(bank, device, pitch=features + 5)
    given = (guarded(queries, device).view, guarded(own, device).view, bank_buffer.view, guarded(others, device).view)
    there = (*given, None if index is None else guarded(index[None], device).view[0], *at_end)
    outputs = [Guarded(1, batch, F32, device)]
    outputs += [Guarded(kinds, batch, dtype, device) for dtype in (F32, torch.int64, torch.bool)]
    gradients = [Guarded(batch, features, dtypes[0], device) for _ in range(2)]
    first, *more = (buffer.view for buffer in outputs)
    with mock.patch.object(bank_scores, "processors_of", return_value=processors):
        score_sums(first[0], *more, *there, tile=tile)
        found = [tensor.cpu() for tensor in (first[0].clone(), *(tensor.clone() for tensor in more))]
        score_sums(first[0], *more, *there, tile=tile)
        sides = (first[0].clone(), *(slope.to(device) for slope in slopes))
        for gradient in gradients:
            score_gradient(gradient.view, *sides, *there, tile=tile)

    candidates = bank.double() if index is None else bank[index].double()
    candidates = torch.cat([queries.double(), candidates]) if in_batch else candidates
    sizes = queries.double().abs() @ candidates.abs().T / temperature
    largest = 1.0 + (sizes.amax(1) if sizes.shape[1] else sizes.new_zeros(batch))
    some = ~exact[0].isinf()
    weights = slopes[0].abs() + (slopes[1].abs() * exact[2]).sum(0)
    size = candidates.abs().amax() / temperature if candidates.numel() else 0.0
    bound = BANK_GRADIENT[dtypes[0]] * (size * weights * largest)[:, None]
    off = (gradients[0].view.cpu().double() - wanted).abs()
    again = [first[0], *more]
    return {
        "log_sum": bool(((found[0] - exact[0]).abs() <= BANK[F32] * largest)[some].all()),
        "no candidates": torch.equal(found[0] == -torch.inf, ~some),
        "positives": bool(((found[1] - exact[1]).abs() <= BANK[F32] * sizes.sum(1)).all()),
        "counts": torch.equal(found[2], exact[2]),
        "certain": torch.equal(found[3], exact[3]),
        "gradient": bool((off <= bound).all()),
        "the same bits": all(torch.equal(a, b.cpu()) for a, b in zip(found, again, strict=True))
        and torch.equal(gradients[0].view, gradients[1].view),
        "intact": all(buffer.intact() for buffer in (*outputs, *gradients)),
    }


def certain(device: str) -> dict[str, bool]:
    """Scores of 1,000 do not overflow, and one candidate has all of the probability, in whichever chunk it is."""
    generator = torch.Generator().manual_seed(7)
    bank = torch.nn.functional.normalize(torch.randn(100, 16, generator=generator), dim=1).to(device)
    queries, keys = bank[[3, 50, 99]].contiguous(), torch.tensor([[3, 50, 98]], device=device)
    log_sum, positives = torch.zeros(3, device=device), torch.zeros(1, 3, device=device)
    counts, sure = torch.zeros_like(keys), torch.zeros_like(keys, dtype=torch.bool)
    others = torch.arange(100, device=device)[None]
    score_sums(log_sum, positives, counts, sure, queries, keys, bank, others, None, 1e-3, False, tile=SMALL)
    found = {
        "log_sum": bool(((log_sum - 1000.0).abs() < 1e-3).all()),
        "counts": counts.tolist() == [[1, 1, 1]],
        "certain": sure.tolist() == [[True, True, False]],
    }
    score_sums(log_sum, positives, counts, sure, queries, keys, bank, others, None, 0.5, False, tile=SMALL)
    return {**found, "milder": not bool(sure.any())}


def not_numbers(device: str) -> dict[str, bool]:
    """NaN stays with its query; a row that is not in the bank is not read, and tells all who asked for it."""
    queries, bank = torch.ones(3, 4, device=device), torch.ones(5, 4, device=device)
    queries[1, 2] = torch.nan
    keys, others = torch.zeros(1, 3, dtype=torch.int64, device=device), torch.zeros(1, 5, dtype=torch.int64).to(device)
    log_sum, positives = torch.zeros(3, device=device), torch.zeros(1, 3, device=device)
    counts, sure = torch.zeros_like(keys), torch.zeros_like(keys, dtype=torch.bool)
    outputs = (log_sum, positives, counts, sure)
    score_sums(*outputs, queries, keys, bank, others, None, 1.0, False)
    found = {
        "log_sum": log_sum.isnan().tolist() == [False, True, False],
        "positives": positives.isnan().tolist() == [[False, True, False]],
    }
    rows = torch.tensor([0, 1, 5, -1, 1 << 40], device=device)
    score_sums(*outputs, torch.ones(3, 4, device=device), keys, bank, others, rows, 1.0, False)
    return {**found, "outside": bool(log_sum.isnan().all()), "not certain": not bool(sure.any())}


def refusals(device: str) -> dict[str, bool]:
    queries, bank = torch.zeros(3, 4, device=device), torch.zeros(5, 4, device=device)
    keys, others = torch.zeros(2, 3, dtype=torch.int64, device=device), torch.zeros(2, 5, dtype=torch.int64).to(device)
    out = (torch.zeros(3, device=device), torch.zeros(2, 3, device=device))
    whole, sure = torch.zeros_like(keys), torch.zeros_like(keys, dtype=torch.bool)

    def sums(**changed: Any) -> Any:
        given = {"log_sum": out[0], "positives": out[1], "counts": whole, "certain": sure, "queries": queries}
        given |= {"keys": keys, "bank": bank, "bank_keys": others, "rows": None}
        return lambda: score_sums(**(given | changed), temperature=1.0, in_batch=False)

    side = (queries, keys, bank, others, None, 1.0, False)
    return refused(
        {
            "other features": sums(bank=bank[:, :3]),
            "float64": sums(queries=queries.double()),
            "features apart": sums(bank=torch.zeros(4, 5, device=device).T),
            "keys of int32": sums(keys=keys.int()),
            "keys of others": sums(keys=keys[:, :2].contiguous()),
            "keys of other candidates": sums(rows=torch.zeros(4, dtype=torch.int64, device=device)),
            "rows of int32": sums(rows=torch.zeros(5, dtype=torch.int32, device=device)),
            "log_sum of a wrong shape": sums(log_sum=out[0][:2]),
            "counts of int32": sums(counts=whole.int()),
            "elsewhere": sums(bank=bank.to("meta")),
            "gradient of a wrong shape": lambda: score_gradient(bank, *out, out[1], *side),
            "slopes missing": lambda: score_gradient(torch.zeros_like(queries), out[0], out[0], out[1][:1], *side),
        }
    )


def findings(device: str) -> dict[str, Any]:
    return {
        "cases": {
            "one": run(device, 1, 1, 1, 1),
            "several chunks": run(device, 17, 150, 19, 2, in_batch=True),
            "one chunk": run(device, 40, 33, 16, 1, processors=1),
            "a chunk a tile": run(device, 5, 70, 35, 3, processors=99),
            "chosen tile": run(device, 35, 70, 70, 1, in_batch=True, tile=None),
            "all of the bank": run(device, 3, 31, 20, 1, rows=False),
            "bfloat16": run(device, 18, 40, 50, 1, in_batch=True, dtypes=(BF16, BF16), tile=None),
            "float16": run(device, 18, 40, 50, 1, in_batch=True, dtypes=(F16, F16), tile=None),
            "a bank in bfloat16": run(device, 9, 40, 20, 1, in_batch=True, dtypes=(F32, BF16)),
            "queries in float16": run(device, 9, 40, 20, 1, in_batch=True, dtypes=(F16, F32)),
            "no bank": run(device, 20, 0, 6, 2, in_batch=True),
            "no candidates": run(device, 4, 0, 6, 2),
            "alone": run(device, 1, 0, 3, 1, in_batch=True),
            "no queries": run(device, 0, 3, 4, 1, in_batch=True),
            "no features": run(device, 3, 4, 0, 1),
            "no kinds": run(device, 3, 4, 5, 0, in_batch=True),
        },
        "certain": certain(device),
        "not numbers": not_numbers(device),
        "refusals": refusals(device),
    }
