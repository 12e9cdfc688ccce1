# SPDX-License-Identifier: Apache-2.0
"""Every loss against a loop in float64, with its gradient; padding holds NaN."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.training import PUBLISHED, HiddenMaps, LogitsLoss, attention_loss, hidden_loss

ROWS, CLASSES = 5, 3
BATCH, TOKENS, STUDENT, TEACHER, HEADS = 3, 5, 4, 6, 2
KEEP = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


def random(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def logits_loop(loss: LogitsLoss, student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p_student, p_teacher = softmax(ours, loss.temperature), softmax(theirs, loss.temperature)
        target, guess = (p_teacher, p_student) if loss.direction == "forward" else (p_student, p_teacher)
        for p, q in zip(target, guess, strict=True):
            total += p * ((math.log(p) if loss.kind == "kl" else 0.0) - math.log(q))
    total *= loss.temperature**2 if loss.squared else 1.0
    return total / (len(student) * (student.shape[1] if loss.reduction == "mean" else 1))


ALL = [
    LogitsLoss(*choice)  # type: ignore[arg-type]
    for choice in itertools.product(
        (1.0, 2.5), ("kl", "cross_entropy"), ("forward", "reverse"), (False, True), ("batchmean", "mean")
    )
]


@pytest.mark.parametrize("loss", [*ALL, *PUBLISHED.values()], ids=str)
def test_logits(loss: LogitsLoss) -> None:
    student, teacher = (random(ROWS, CLASSES, seed=seed).double().requires_grad_() for seed in (0, 1))
    value, wanted = loss(student, teacher), logits_loop(loss, student, teacher)
    assert value.item() == pytest.approx(wanted, rel=1e-12)
    assert loss(student.float(), teacher.float()).item() == pytest.approx(wanted, rel=1e-5)
    value.backward()
    assert teacher.grad is None
    step, row, column = 1e-6, 2, 1
    moved = [student.detach().clone() for _ in range(2)]
    moved[0][row, column] += step
    moved[1][row, column] -= step
    slope = (logits_loop(loss, moved[0], teacher) - logits_loop(loss, moved[1], teacher)) / (2 * step)
    assert student.grad is not None
    assert float(student.grad[row, column]) == pytest.approx(slope, rel=1e-6)


def test_equal_models_have_no_divergence_and_half_precision_is_widened() -> None:
    loss = LogitsLoss(2.0, "kl", "forward", squared=True, reduction="batchmean")
    logits = random(ROWS, CLASSES, seed=2)
    assert float(loss(logits, logits)) == 0.0
    assert loss(logits.half(), logits.half()).dtype == torch.float32
    certain = torch.tensor([[0.0, -torch.inf]])  # a class that cannot be adds nothing
    assert float(loss(torch.zeros(1, 2), certain)) == pytest.approx(4 * math.log(2))


def test_what_cannot_be_compared_is_said() -> None:
    loss = PUBLISHED["cap"]
    with pytest.raises(InputError, match="same classes"):
        loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="temperature"):
        LogitsLoss(0.0, "kl", "forward", squared=True, reduction="mean")
    with pytest.raises(InputError, match="unknown 'sum'"):
        LogitsLoss(1.0, "kl", "forward", squared=True, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="layer by layer"):
        hidden_loss([torch.zeros(1, 1, 1)], [], keep=None)
    with pytest.raises(InputError, match="do not fit"):
        hidden_loss([torch.zeros(1, 1, 2)], [torch.zeros(1, 1, 3)], keep=None)
    with pytest.raises(InputError, match="do not fit"):
        attention_loss([torch.zeros(1, 1, 2, 2)], [torch.zeros(1, 2, 2, 2)], keep=None)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_hidden_states(masked: bool, mapped: bool) -> None:
    width = TEACHER if mapped else STUDENT
    student = [random(BATCH, TOKENS, STUDENT, seed=seed).double().requires_grad_() for seed in (3, 4)]
    teacher = [random(BATCH, TOKENS, width, seed=seed).double() for seed in (5, 6)]
    maps = None
    if mapped:
        maps = HiddenMaps(2, STUDENT, TEACHER).double()
        with torch.no_grad():
            maps.weight.copy_(random(2, TEACHER, STUDENT, seed=7))
            maps.bias.copy_(random(2, TEACHER, seed=8))
    keep = KEEP if masked else torch.ones_like(KEEP)
    wanted, gradient = 0.0, [torch.zeros_like(s) for s in student]
    for pair in range(2):
        total, count = 0.0, 0
        weight = maps.weight[pair].detach() if maps is not None else torch.eye(STUDENT, dtype=torch.float64)
        for b, t in itertools.product(range(BATCH), range(TOKENS)):
            if not keep[b, t]:
                continue
            count += width
            for f in range(width):
                value = maps.bias[pair, f].item() if maps is not None else 0.0
                value += sum(weight[f, c].item() * student[pair][b, t, c].item() for c in range(STUDENT))
                error = value - teacher[pair][b, t, f].item()
                total += error**2
                gradient[pair][b, t] += 2 * error * weight[f]
        wanted += total / count
        gradient[pair] /= count
    for tensors in (student, teacher):  # what is behind padding must not be read, forward or backward
        for tensor in tensors:
            tensor.data[~keep.bool()] = torch.nan
    loss = hidden_loss(student, teacher, keep=KEEP if masked else None, maps=maps)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    loss.backward()
    for pair in range(2):
        assert torch.allclose(student[pair].grad, gradient[pair], rtol=1e-10)  # type: ignore[arg-type]
    assert maps is None or (maps.weight.grad is not None and bool(maps.weight.grad.isfinite().all()))


def test_maps_begin_as_the_identity_and_move_no_random_state() -> None:
    state = torch.get_rng_state()
    maps = HiddenMaps(2, 4, 4)
    assert torch.equal(state, torch.get_rng_state())
    hidden = random(2, 3, 4, seed=9)
    assert torch.equal(maps(1, hidden), hidden)


@pytest.mark.parametrize("masked", [True, False])
def test_attentions(masked: bool) -> None:
    student = [random(BATCH, HEADS, TOKENS, TOKENS, seed=seed).double().requires_grad_() for seed in (1, 2)]
    teacher = [random(BATCH, HEADS, TOKENS, TOKENS, seed=seed).double() for seed in (3, 4)]
    keep = KEEP if masked else torch.ones_like(KEEP)
    wanted = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        total, count = 0.0, 0
        for b, h, q, k in itertools.product(range(BATCH), range(HEADS), range(TOKENS), range(TOKENS)):
            if keep[b, q] and keep[b, k]:
                total += (ours[b, h, q, k] - theirs[b, h, q, k]).item() ** 2
                count += 1
        wanted += total / count
    dead = ~(keep.bool()[:, None, :, None] & keep.bool()[:, None, None, :]).expand(-1, HEADS, -1, -1)
    for tensor in teacher + student:
        tensor.data[dead] = torch.nan
    loss = attention_loss(student, teacher, keep=KEEP if masked else None)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    loss.backward()
    for ours in student:
        assert ours.grad is not None
        assert bool((ours.grad[dead] == 0).all())
