# SPDX-License-Identifier: Apache-2.0
"""The contrastive loss against a loop in float64, and banks: files, bounds, row numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pyprune.errors import InputError
from pyprune.training.contrastive import Bank, bank_loss, contrastive_loss, extra_rows

BATCH, DEPTH, MORE, FEATURES, TEMPERATURE = 4, 2, 5, 3, 0.3
ROWS = torch.tensor([7, 3, 9, 7])  # one row twice
FAR_ROWS = torch.tensor([0, 3, 5, 11, 9])  # and rows of the batch among the others
LABELS = torch.tensor([0, 1, 1, 0])
FAR_LABELS = torch.tensor([0, 1, 2, 1, 1])


def unit(*shape: int, seed: int) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1)


def loop(
    anchors: Tensor, near: Tensor, far: Tensor, unsupervised: float, supervised: float, normalisation: str
) -> float:
    """Candidate by candidate."""
    z = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in anchors.tolist()]
    candidates = [(z[j], int(ROWS[j]), int(LABELS[j]), j) for j in range(len(z))]
    for j, row in enumerate(near.tolist()):
        candidates += [(value, int(ROWS[j]), int(LABELS[j]), -1) for value in row]
    for j, row in enumerate(far.tolist()):
        candidates += [(value, int(FAR_ROWS[j]), int(FAR_LABELS[j]), -1) for value in row]
    sums, pairs, with_some = [0.0, 0.0], [0, 0], [0, 0]
    for i in range(len(z)):
        scores = [
            math.exp(sum(a * b for a, b in zip(z[i], value, strict=True)) / TEMPERATURE) if own != i else 0.0
            for value, _, _, own in candidates
        ]
        for term in (0, 1):
            wanted = int((ROWS, LABELS)[term][i])
            chances = [
                math.log(score / sum(scores))
                for score, candidate in zip(scores, candidates, strict=True)
                if candidate[3] != i and candidate[1 + term] == wanted
            ]
            if chances:
                sums[term] -= sum(chances) / len(chances)
                pairs[term] += len(chances)
                with_some[term] += 1
    counts = pairs if normalisation == "published" else with_some
    return unsupervised * sums[0] / counts[0] + supervised * sums[1] / counts[1]


@pytest.mark.parametrize("normalisation", ["published", "anchors"])
@pytest.mark.parametrize(("unsupervised", "supervised"), [(0.3, 3.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_loss_is_the_loop(normalisation: str, unsupervised: float, supervised: float) -> None:
    anchors = (2.5 * unit(BATCH, FEATURES, seed=0)).requires_grad_()
    near, far = unit(BATCH, DEPTH, FEATURES, seed=1), unit(MORE, DEPTH, FEATURES, seed=2)

    def loss(z: Tensor) -> Tensor:
        return contrastive_loss(
            z,
            ROWS,
            near,
            far,
            FAR_ROWS,
            labels=LABELS,
            far_labels=FAR_LABELS,
            temperature=TEMPERATURE,
            unsupervised=unsupervised,
            supervised=supervised,
            normalisation=normalisation,  # type: ignore[arg-type]
        )

    value = loss(anchors)
    weights = (unsupervised, supervised, normalisation)
    assert value.item() == pytest.approx(loop(anchors, near, far, *weights), rel=1e-12)
    value.backward()
    # Along an anchor's own direction nothing changes, and elsewhere something does.
    assert anchors.grad is not None
    assert torch.allclose((anchors.grad * anchors.detach()).sum(1), torch.zeros(BATCH, dtype=torch.float64), atol=1e-12)
    assert anchors.grad.norm() > 0.01
    half = loss(anchors.detach().half())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(value.item(), rel=5e-3)


def test_other_anchors_are_candidates_without_gradient() -> None:
    """The gradient of one anchor is that of its own scores only: here by differences, the candidates held."""
    near, far = unit(2, 1, FEATURES, seed=1), unit(MORE, 1, FEATURES, seed=2)
    anchors = unit(2, FEATURES, seed=3)
    rows = torch.tensor([1, 2])

    def loss(z: Tensor) -> Tensor:
        return contrastive_loss(
            z, rows, near, far, FAR_ROWS, labels=None, far_labels=None, temperature=TEMPERATURE,
            unsupervised=1.0, supervised=0.0, normalisation="anchors",
        )  # fmt: skip

    given = anchors.clone().requires_grad_()
    loss(given).backward()

    def first(z: Tensor) -> float:
        own = z / z.norm()
        scores = torch.cat([anchors[1:], near[:, 0], far[:, 0]]) @ own / TEMPERATURE
        return float(-scores.log_softmax(0)[1]) / 2

    assert given.grad is not None
    for feature in range(FEATURES):
        step = torch.zeros(FEATURES, dtype=torch.float64)
        step[feature] = 1e-6
        slope = (first(anchors[0] + step) - first(anchors[0] - step)) / 2e-6
        assert given.grad[0, feature].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_an_empty_bank_adds_nothing_and_supervision_needs_labels(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "b.safetensors", rows=12, features=FEATURES)
    anchors = unit(BATCH, FEATURES, seed=0).requires_grad_()
    options = {"temperature": 0.1, "unsupervised": 1.0, "normalisation": "published"}
    empty = (bank.of(ROWS), bank.of(FAR_ROWS), FAR_ROWS)
    loss = contrastive_loss(anchors, ROWS, *empty, labels=None, far_labels=None, supervised=0.0, **options)  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0.0
    assert anchors.grad is not None
    with pytest.raises(InputError, match="needs labels"):
        contrastive_loss(anchors, ROWS, *empty, labels=LABELS, far_labels=None, supervised=1.0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_candidates_are_looked_up_where_they_lie(tmp_path: Path, dtype: torch.dtype) -> None:
    """Two of three snapshots are there: what lies between is no candidate."""
    bank = Bank(tmp_path / "bank.safetensors", rows=12, features=FEATURES, snapshots=3, dtype=dtype)
    for seed in (1, 2):
        bank.put(torch.arange(12), unit(12, FEATURES, seed=seed).float())
        bank.finish()
    options = {"labels": LABELS, "far_labels": FAR_LABELS, "temperature": TEMPERATURE, "unsupervised": 0.3}
    options |= {"supervised": 3.0, "normalisation": "published"}
    values, gradients = [], []
    for looked_up in (False, True):
        anchors = unit(BATCH, FEATURES, seed=0).float().requires_grad_()
        candidates = bank.candidates(torch.cat([ROWS, FAR_ROWS]))
        assert (candidates.depth, candidates.values.shape) == (2, (36, FEATURES))
        both = (bank.of(ROWS), bank.of(FAR_ROWS))
        loss = (
            bank_loss(anchors, ROWS, candidates, FAR_ROWS, **options)  # type: ignore[arg-type]
            if looked_up
            else contrastive_loss(anchors, ROWS, *both, FAR_ROWS, **options)  # type: ignore[arg-type]
        )
        loss.backward()
        values.append(loss.item())
        gradients.append(anchors.grad)
    assert values[0] == pytest.approx(loop(unit(BATCH, FEATURES, seed=0), *both, 0.3, 3.0, "published"), rel=1e-5)
    assert values[0] == values[1]
    assert torch.equal(gradients[0], gradients[1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="labels that are classes"):
        bank_loss(anchors, ROWS, candidates, FAR_ROWS, **(options | {"labels": LABELS / 2}))  # type: ignore[arg-type]


def test_pairs_that_are_certain_are_not_counted() -> None:
    """``log p`` of an anchor that is its representation in the bank is 0 where the temperature is small."""
    near, far = unit(2, 1, FEATURES, seed=1).float(), unit(MORE, 1, FEATURES, seed=2).float()
    anchors = torch.cat([near[0], unit(1, FEATURES, seed=3).float()])
    rows = torch.tensor([1, 2])
    options = {"labels": None, "far_labels": None, "unsupervised": 1.0, "supervised": 0.0}
    losses = [
        contrastive_loss(anchors, rows, near, far, FAR_ROWS, temperature=1e-4, normalisation=name, **options).item()  # type: ignore[arg-type]
        for name in ("published", "anchors")
    ]
    assert losses[1] > 0.0
    assert losses[0] == 2 * losses[1]  # the sum is that of the second anchor, which is one pair, and one anchor of two


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_banks(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "bank.safetensors"
    bank = Bank(path, rows=6, features=4, snapshots=2, dtype=dtype)
    snapshots = [3 * unit(6, 4, seed=seed).float() for seed in range(3)]
    numbers = torch.tensor([5, 0, 3, 1, 2, 4])
    for count, snapshot in enumerate(snapshots, start=1):
        for part in numbers.split(4):
            bank.put(part, snapshot[part])
        assert bank.depth == min(count - 1, 2)
        bank.finish()
        assert bank.depth == min(count, 2)
    # The third has taken the place of the first.
    expected = torch.stack([snapshots[2], snapshots[1]], dim=1) / 3
    assert torch.allclose(
        bank.of(torch.tensor([4, 4, 0])), expected[[4, 4, 0]], atol=1e-7 if dtype.itemsize == 4 else 1e-3
    )
    again = Bank(path, rows=6, features=4, snapshots=2, dtype=dtype)
    assert again.finished == 3
    assert torch.equal(again.of(numbers), bank.of(numbers))
    assert set(load_file(path)) == {"finished", "representations"}
    with pytest.raises(InputError, match="another bank"):
        Bank(path, rows=6, features=5, snapshots=2, dtype=dtype)


def test_row_numbers(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank.safetensors", rows=70_000, features=1)
    rows = torch.tensor([2049, 65_537, 69_999])
    bank.put(rows, torch.tensor([[1.0], [-1.0], [1.0]]))
    bank.finish()
    assert bank.of(rows).flatten().tolist() == [1.0, -1.0, 1.0]
    assert float(bank.of(torch.tensor([2048]))) == 0.0
    with pytest.raises(InputError, match="int64"):
        bank.of(rows.float())
    with pytest.raises(InputError, match="int64"):
        bank.put(rows.int(), torch.ones(3, 1))
    with pytest.raises(InputError, match="not in the bank"):
        bank.of(torch.tensor([70_000]))
    with pytest.raises(InputError, match="do not fit the bank"):
        bank.put(rows, torch.ones(3, 2))
    with pytest.raises(InputError, match="float32 or float16"):
        Bank(tmp_path / "x", rows=1, features=1, dtype=torch.int8)


def test_extra_rows() -> None:
    found = extra_rows(10, 4, torch.Generator().manual_seed(0))
    assert found.dtype == torch.int64
    assert len(set(found.tolist())) == 4
    assert sorted(extra_rows(3, 4096, torch.Generator().manual_seed(0)).tolist()) == [0, 1, 2]
