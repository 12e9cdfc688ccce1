# SPDX-License-Identifier: Apache-2.0
"""Losses of a student against its teacher.

Papers agree on little more than their names, so that temperature, direction, factor and reduction are always said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyprune.errors import InputError

Kind = Literal["kl", "cross_entropy"]
Direction = Literal["forward", "reverse"]
Reduction = Literal["batchmean", "mean"]


@dataclass(frozen=True)
class LogitsLoss:
    """Distance of two softmax distributions over the last dimension.

    With ``p = softmax(logits / temperature)`` the forward ``kl`` is ``Σ p_T (log p_T − log p_S)`` and the forward
    ``cross_entropy`` is ``−Σ p_T log p_S``; reverse, teacher and student change places.

    Parameters
    ----------
    temperature : float
        Above 0, of both.
    kind : {"kl", "cross_entropy"}
        The same gradients forward: cross entropy has the teacher's entropy in it, so that it does not end at zero.
    direction : {"forward", "reverse"}
    squared : bool
        Times ``temperature²``, which keeps gradients in size as the temperature grows.
    reduction : {"batchmean", "mean"}
        Sum over classes and mean over rows; or mean over rows and classes, which is smaller by the number of classes.

    Examples
    --------
    >>> loss = LogitsLoss(2.0, kind="kl", direction="forward", squared=True, reduction="batchmean")
    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> round(float(loss(student, teacher)), 4)
    0.4438
    """

    temperature: float
    kind: Kind
    direction: Direction
    squared: bool
    reduction: Reduction

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError("a temperature is above 0", seen=str(self.temperature))
        for value, known in (
            (self.kind, ("kl", "cross_entropy")),
            (self.direction, ("forward", "reverse")),
            (self.reduction, ("batchmean", "mean")),
        ):
            if value not in known:
                raise InputError(f"unknown {value!r}", hint=" or ".join(map(repr, known)))

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of logits ``[rows, classes]``, in float32 at least; no gradient reaches the teacher."""
        if student.shape != teacher.shape:
            raise InputError(
                "student and teacher do not have the same classes",
                seen=f"{list(student.shape)} and {list(teacher.shape)}",
                hint="a teacher fine-tuned for the same task",
            )
        ours, theirs = (_wide(logits) / self.temperature for logits in (student, teacher.detach()))
        ours, theirs = ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
        target, guess = (theirs, ours) if self.direction == "forward" else (ours, theirs)
        gap = -guess if self.kind == "cross_entropy" else target - guess
        total = torch.where(target == -torch.inf, 0.0, target.exp() * gap).sum()
        rows = max(ours.shape[:-1].numel(), 1)
        count = rows if self.reduction == "batchmean" else rows * ours.shape[-1]
        return total * ((self.temperature**2 if self.squared else 1.0) / count)


# As the official code of each has it.
PUBLISHED = {
    "randomized": LogitsLoss(1.0, "cross_entropy", "forward", squared=False, reduction="mean"),
    "cap": LogitsLoss(1.0, "kl", "forward", squared=True, reduction="batchmean"),
    "movement": LogitsLoss(2.0, "kl", "forward", squared=True, reduction="batchmean"),
    "grain": LogitsLoss(8.0, "cross_entropy", "forward", squared=False, reduction="batchmean"),
    "kprune": LogitsLoss(2.0, "kl", "forward", squared=True, reduction="batchmean"),
}


class HiddenMaps(nn.Module):
    """One learned linear map for each pair of hidden states that are compared, from student to teacher.

    Parameters
    ----------
    count : int
    student, teacher : int
        Features. Where they are equal a map begins as the identity, else with its ones on the diagonal.

    Examples
    --------
    >>> maps = HiddenMaps(2, 4, 4)
    >>> hidden = torch.ones(1, 3, 4)
    >>> bool(torch.equal(maps(1, hidden), hidden))
    True
    """

    def __init__(self, count: int, student: int, teacher: int) -> None:
        super().__init__()
        # Filled at once, so that no random state is moved.
        self.weight = nn.Parameter(torch.eye(teacher, student).repeat(count, 1, 1))
        self.bias = nn.Parameter(torch.zeros(count, teacher))

    def forward(self, index: int, hidden: Tensor) -> Tensor:
        """``[..., student]`` to ``[..., teacher]``, with the map of a pair."""
        return nn.functional.linear(hidden, self.weight[index], self.bias[index])


def hidden_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    keep: Tensor | None,
    maps: HiddenMaps | None = None,
) -> Tensor:
    """``Σ over pairs of the mean over tokens and features of (map(H_S) − H_T)²``.

    Parameters
    ----------
    student, teacher : sequence of Tensor, shape (batch, tokens, features)
        The pairs, in order.
    keep : Tensor of bool or int, shape (batch, tokens), optional
        Real tokens: others are not read, so that NaN there does no harm. None: padding counts as well, as in the
        official code of randomized masks.
    maps : HiddenMaps, optional
        One for each pair. None: features are compared as they are.

    Returns
    -------
    Tensor
        A scalar, float32 at least. No gradient reaches the teacher.
    """
    _same_length(student, teacher)
    keep = None if keep is None else keep.to(student[0].device)
    total = _wide(student[0]).new_zeros(())
    for index, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        if keep is not None:  # before anything else: NaN times a gradient of zero would be NaN
            ours = torch.where(keep[..., None].bool(), ours, 0.0)
        mapped = ours if maps is None else maps(index, ours)
        if mapped.shape != theirs.shape:
            raise InputError(
                "hidden states of student and teacher do not fit",
                seen=f"{list(mapped.shape)} and {list(theirs.shape)}",
                hint="maps=HiddenMaps(pairs, features of the student, features of the teacher)",
            )
        total = total + _mean_square(mapped, theirs, None if keep is None else keep[..., None])
    return total


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], *, keep: Tensor | None) -> Tensor:
    """``Σ over layers of the mean of (A_S − A_T)²`` of attention probabilities.

    Parameters
    ----------
    student, teacher : sequence of Tensor, shape (batch, heads, tokens, tokens)
        Layers, in order.
    keep : Tensor of bool or int, shape (batch, tokens), optional
        Real tokens: pairs of a real query and a real key are compared. None: all pairs, padding included.
    """
    _same_length(student, teacher)
    real = None
    if keep is not None:
        real = (keep.bool()[:, None, :, None] & keep.bool()[:, None, None, :]).to(student[0].device)
    total = _wide(student[0]).new_zeros(())
    for ours, theirs in zip(student, teacher, strict=True):
        if ours.shape != theirs.shape:
            raise InputError(
                "attentions of student and teacher do not fit", seen=f"{list(ours.shape)} and {list(theirs.shape)}"
            )
        total = total + _mean_square(ours, theirs, real)
    return total


def _mean_square(ours: Tensor, theirs: Tensor, keep: Tensor | None) -> Tensor:
    """Mean of squared differences where ``keep``, which broadcasts to them, is True."""
    ours, theirs = _wide(ours), _wide(theirs.detach().to(ours.device))
    if keep is None:
        return (ours - theirs).square().mean()
    keep = keep.bool().to(ours.device)
    ours, theirs = (torch.where(keep, value, 0.0) for value in (ours, theirs))
    count = keep.sum() * (ours.numel() // keep.numel())
    return (ours - theirs).square().sum() / count.clamp(min=1)


def _same_length(student: Sequence[Any], teacher: Sequence[Any]) -> None:
    if not student or len(student) != len(teacher):
        raise InputError(
            "student and teacher are compared layer by layer", seen=f"{len(student)} and {len(teacher)} layers"
        )


def _wide(value: Tensor) -> Tensor:
    """Float32 at least: sums over classes and features lose digits in half precision."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()
