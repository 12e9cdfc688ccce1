# SPDX-License-Identifier: Apache-2.0
"""What one iteration of a mask search takes: `admm_step`, `select` and `nm`, beside torch's kernels one by one.

And what searches end in or do without: exchanges (`swap`), and blocks removed one by one (`block_obs`), beside their
references on a few rows; and masks drawn at random (`draw_counts`), beside repeated `torch.multinomial`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from common import activations
from gpu.measure import Case, relative, ways
from torch import Tensor

from pyprune import ops
from pyprune.ops.block_obs import block_obs_reference
from pyprune.ops.swap import swap_reference

SHAPES = ((4096, 4096), (4096, 11008))
QUICK = ((24, 32),)
EXCHANGES = ((768, 768, 0), (3072, 768, 0), (768, 3072, 0), (4096, 4096, 0), (4096, 4096, 4))  # the last one 2:4
BLOCKS = ((768, 768, 4, 1), (3072, 768, 16, 16), (4096, 4096, 16, 16))  # and height, width
DRAWS = ((768, 768, 0.54, 95), (3072, 768, 0.9375, 663))  # and sparsity, draws: the most of the published schedule
LEAST = 1e-5  # of a row's loss, that an exchange has to gain


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Of the six ops."""
    for rows, columns in QUICK if quick else SHAPES:
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(rows, columns, generator=generator).to(device)
        what = {"rows": rows, "columns": columns}
        yield _select(scores, columns // 2, "row", device)
        yield _select(scores, scores.numel() // 2, "layer", device)
        yield Case(
            "nm",
            {**what, "pattern": "2:4"},
            {**ways("nm", lambda scores=scores: ops.nm(scores, 2, 4), device), "torch": lambda s=scores: _torch_nm(s)},
            operations=0.0,
            bytes=5.0 * scores.numel(),
        )
        yield _admm_step(scores, device)
    for rows, columns, of in ((*QUICK[0], 0), (*QUICK[0], 4)) if quick else EXCHANGES:
        yield _swap(rows, columns, of, device)
    for rows, columns, height, width in ((*QUICK[0], 4, 2),) if quick else BLOCKS:
        yield _block_obs(rows, columns, height, width, device)
    for rows, columns, sparsity, draws in ((*QUICK[0], 0.5, 9),) if quick else DRAWS:
        yield _draw_counts(rows, columns, sparsity, draws, device)


def _draw_counts(rows: int, columns: int, sparsity: float, draws: int, device: str) -> Case:
    """The others do each draw alike, so that two of them are timed."""
    few = 2
    weight = (0.04 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))).to(device)
    keep = round(weight.numel() * (1.0 - sparsity))
    sizes = weight.abs().reshape(-1)
    p, logs = sizes**5.0, 5.0 * sizes.log()

    def drawn(choose: Callable[[], Tensor]) -> Tensor:
        counts = torch.zeros(weight.numel(), dtype=torch.int32, device=device)
        for _ in range(few):
            counts[choose()] += 1
        return counts

    return Case(
        "draw_counts",
        {"rows": rows, "columns": columns, "sparsity": sparsity, "draws": draws},
        {
            **ways("draw_counts", lambda: ops.draw_counts(weight, keep, draws), device),
            f"torch.multinomial, {few} draws": lambda: drawn(lambda: torch.multinomial(p, keep)),
            f"torch.topk of Gumbel keys, {few} draws": lambda: drawn(
                lambda: torch.topk(logs - torch.empty_like(logs).exponential_().log_(), keep, sorted=False).indices
            ),
        },
        operations=0.0,
        bytes=8.0 * weight.numel(),
        error=lambda counts: float(int(counts.sum()) % keep),  # every draw has as many
    )


def _select(scores: Tensor, count: int, scope: str, device: str) -> Case:
    def by_torch() -> Tensor:
        flat = scores if scope == "row" else scores.reshape(1, -1)
        mask = torch.zeros_like(flat, dtype=torch.bool)
        return mask.scatter_(1, flat.topk(count, dim=1, sorted=False).indices, True)

    return Case(
        "select",
        {"rows": scores.shape[0], "columns": scores.shape[1], "scope": scope},
        {**ways("select", lambda: ops.select(scores, count, scope), device), "torch.topk": by_torch},
        operations=0.0,
        bytes=5.0 * scores.numel(),
        error=lambda mask: float(abs(int(mask.sum()) - count * (len(scores) if scope == "row" else 1))),
    )


def _torch_nm(scores: Tensor) -> Tensor:
    groups = scores.reshape(-1, 4)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(1, groups.topk(2, dim=1, sorted=False).indices, True).reshape(scores.shape)


def _admm_step(start: Tensor, device: str) -> Case:
    rows, columns = start.shape
    multiplier = torch.eye(columns, device=device) / 2
    mask, state, previous = start > 0, start.clone(), start.clone()

    def by_torch() -> Tensor:
        kept = torch.where(mask, state, 0.0)
        dual = state - kept
        dense = start + (kept - dual - start) @ multiplier
        return 1.5 * dense - 0.5 * kept + dual + 0.2 * (state - previous)

    return Case(
        "admm_step",
        {"rows": rows, "columns": columns},
        {
            **ways(
                "admm_step",
                lambda: ops.admm_step(state, mask, start, multiplier, 1.5, momentum=0.2, previous=previous),
                device,
            ),
            "torch": by_torch,
        },
        operations=2.0 * rows * columns**2,
        bytes=4.0 * columns**2 + 22.0 * start.numel(),
    )


def _problem(rows: int, columns: int, device: str) -> tuple[Tensor, Tensor]:
    """Damped gram and weight, float64."""
    x = activations(4 * columns, columns).double().to(device)
    gram = x.T @ x / len(x)
    gram.diagonal().add_(1e-2 * gram.diagonal().mean())
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(4), dtype=torch.float64) / columns**0.5
    return gram, weight.to(device)


def _swap(rows: int, columns: int, of: int, device: str) -> Case:
    """From the largest weights on, in float32."""
    gram, weight = _problem(rows, columns, device)
    target, half = weight @ gram, columns // 2
    scores = weight.abs()
    mask = ops.nm(scores, of // 2, of) if of else ops.select(scores, half, "row")

    def loss(found: Tensor) -> Tensor:
        change = ops.masked_lstsq(gram, target[: len(found)], found) - weight[: len(found)]
        return ((change @ gram) * change).sum(dim=1)

    before = loss(mask)
    least = LEAST * before
    exchanged = ops.swap(gram, target, mask, least=least, of=of, dtype=torch.float32)[1].double()
    pairs = half * (of // 2 if of else half)

    def by_reference() -> Tensor:
        return swap_reference(gram, target[:1], mask[:1], least[:1], 4, of, None, None, False)[0]

    return Case(
        "swap",
        {"rows": rows, "columns": columns, "of": of, "exchanges": float(exchanged.mean())},
        {
            **ways("swap", lambda: ops.swap(gram, target, mask, least=least, of=of, dtype=torch.float32)[0], device),
            "float64 tableaus, 1 row, 4 exchanges": by_reference,
        },
        operations=rows * 2 * columns**3 / 3 + 14.0 * pairs * float(exchanged.sum()),
        bytes=8.0 * pairs * float(exchanged.sum()) + 8.0 * columns**2,
        error=lambda found: float((loss(found) / before[: len(found)] - 1.0).clamp(min=0.0).max()),  # it never rises
    )


def _block_obs(rows: int, columns: int, height: int, width: int, device: str) -> Case:
    """Half of the blocks of every group."""
    gram, weight = _problem(rows, columns, device)
    inverse, steps = torch.linalg.inv(gram), columns // width // 2
    few = weight[:height].contiguous()
    count = torch.full((1,), steps, dtype=torch.int64, device=device)
    exact = block_obs_reference(inverse, few, count, steps, height, width)[0]
    return Case(
        "block_obs",
        {"rows": rows, "columns": columns, "height": height, "width": width, "sparsity": 0.5},
        {
            **ways("block_obs", lambda: ops.block_obs(inverse, weight, steps, height=height, width=width)[0], device),
            "explicit inverse, 1 group": lambda: block_obs_reference(inverse, few, count, steps, height, width)[0],
        },
        operations=7.0 / 12 * columns**3 * rows / height,
        bytes=8.0 * columns**2 * rows / height,
        peak="float64",
        error=lambda found: relative(found[:height], exact),
    )
