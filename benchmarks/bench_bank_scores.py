# SPDX-License-Identifier: Apache-2.0
"""A contrastive loss against a bank, with its gradient: pyprune.ops.bank_scores beside the matrix of scores in torch.

Both look up the same rows of a file that is mapped into memory: the batch's own and as many others as are asked for.
Timed are CAP's two terms (Xu et al., AAAI 2022), from anchors to their gradient. In torch the representations are
copied, joined with the batch, and the scores masked, normalised and summed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Report, arguments, interleaved
from torch import Tensor

from pyprune.training.contrastive import Bank, bank_loss, extra_rows

BATCH, TEMPERATURE, UNSUPERVISED, SUPERVISED = 32, 0.1, 0.1, 10.0
SIZES = [(features, others) for features in (384, 768) for others in (3_200, 4_096, 16_384, 65_536)]


def main() -> None:
    options = arguments("Scores of a bank", rounds=9)
    report = Report("bank_scores", write_file=not options.no_write)
    done = report.resume() if options.go_on else []
    known = [(case["features"], case["others"], case["dtype"]) for case in done]
    for features, others in [(16, 50)] if options.quick else SIZES:
        for dtype in (torch.float32, torch.float16):
            if (features, others, str(dtype)) not in known:
                measure(report, features, others, dtype, options.rounds)
                report.write()


def measure(report: Report, features: int, others: int, dtype: torch.dtype, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = others + others // 4
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank(Path(folder) / "bank.safetensors", rows=rows, features=features, dtype=dtype)
        for part in torch.arange(rows).split(8_192):
            bank.put(part, torch.randn(len(part), features, generator=generator))
        bank.finish()
        anchors = torch.randn(BATCH, features, generator=generator).requires_grad_()
        numbers, far = torch.randint(rows, (BATCH,), generator=generator), extra_rows(rows, others, generator)
        labels = torch.randint(2, (rows,), generator=generator)

        def ours() -> tuple[Tensor, Tensor]:
            value = bank_loss(
                anchors,
                numbers,
                bank.candidates(torch.cat([numbers, far])),
                far,
                labels=labels[numbers],
                far_labels=labels[far],
                temperature=TEMPERATURE,
                unsupervised=UNSUPERVISED,
                supervised=SUPERVISED,
                normalisation="published",
            )
            return value, torch.autograd.grad(value, anchors)[0]

        def theirs() -> tuple[Tensor, Tensor]:
            value = by_matrix(anchors, bank, numbers, far, labels)
            return value, torch.autograd.grad(value, anchors)[0]

        (value, gradient), (other, other_gradient) = ours(), theirs()
        value, other = value.detach(), other.detach()
        errors = {
            "loss": float((value - other).abs() / other.abs()),
            "gradient": float((gradient - other_gradient).norm() / other_gradient.norm()),
        }
        assert max(errors.values()) < 1e-4, errors
        candidates: dict[str, Callable[[], Any]] = {"pyprune": ours, "torch": theirs}
        case = {"batch": BATCH, "features": features, "others": others, "dtype": str(dtype)}
        report.add(case, interleaved(candidates, rounds=rounds), ours="pyprune", difference=errors)


def by_matrix(anchors: Tensor, bank: Bank, numbers: Tensor, far: Tensor, labels: Tensor) -> Tensor:
    """The loss as it is written down, for one snapshot."""
    unit = torch.nn.functional.normalize(anchors, dim=1)
    candidates = torch.cat([unit.detach(), bank.of(numbers)[:, 0], bank.of(far)[:, 0]])
    own = torch.zeros(BATCH, len(candidates), dtype=torch.bool)
    own[:, :BATCH].fill_diagonal_(True)
    chances = (unit @ candidates.T / TEMPERATURE).masked_fill(own, -1e6).log_softmax(dim=1)
    total = chances.new_zeros(())
    for weight, key, others in ((UNSUPERVISED, numbers, far), (SUPERVISED, labels[numbers], labels[far])):
        positive = (key[:, None] == torch.cat([key, key, others])) & ~own
        chosen = torch.where(positive, chances, 0.0)
        means = chosen.sum(dim=1) / positive.sum(dim=1).clamp(min=1)
        total = total - weight * means.sum() / (chosen != 0).sum().clamp(min=1)
    return total


if __name__ == "__main__":
    main()
