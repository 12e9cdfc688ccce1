# SPDX-License-Identifier: Apache-2.0
"""What a model predicts, by the kind of its head, and losses that need no labels of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyprune.errors import InputError

Predictions = tuple[Tensor, ...]  # one [rows, classes], or starts and ends of answers [rows, tokens]

_NEVER = -1e4  # logit of padding as the start or end of an answer: probability zero, and finite in differences


class Objective:
    """Losses of one model's predictions, summed over rows.

    Parameters
    ----------
    model : nn.Module
        With a head for classification of sequences (one label each), regression, or question answering.

    Attributes
    ----------
    kind : str
        ``"classification"``, ``"regression"`` or ``"answers"``.

    Raises
    ------
    InputError
        Another head.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        name = type(model).__name__
        problem = getattr(config, "problem_type", None)
        if name.endswith("ForQuestionAnswering"):
            self.kind = "answers"
        elif name.endswith("ForSequenceClassification") and problem != "multi_label_classification":
            self.kind = "regression" if problem == "regression" or config.num_labels == 1 else "classification"
        else:
            raise InputError(
                "no objective for this model's predictions",
                seen=name if problem is None else f"{name}, problem_type {problem!r}",
                hint="a model for sequence classification, regression or question answering",
            )

    @property
    def first_only(self) -> bool:
        """Whether the head reads the first token of the last hidden states and no other."""
        return self.kind != "answers"

    def read(self, output: Any, keep: Tensor) -> Predictions:
        """Predictions in a model's output; ``keep`` ``[rows, tokens]`` is False for padding."""
        if self.kind == "answers":
            return tuple(logits.masked_fill(~keep, _NEVER) for logits in (output.start_logits, output.end_logits))
        return (output.logits,)

    def divergence(self, student: Predictions, teacher: Predictions, temperature: float) -> Tensor:
        """``T² KL(softmax(teacher/T) ‖ softmax(student/T))``; for regression the squared difference.

        Starts and ends of answers count half each.
        """
        if self.kind == "regression":
            return (student[0] - teacher[0]).square().sum()
        losses = [
            functional.kl_div(
                (ours / temperature).log_softmax(dim=1),
                (theirs / temperature).log_softmax(dim=1),
                reduction="sum",
                log_target=True,
            )
            for ours, theirs in zip(student, teacher, strict=True)
        ]
        return temperature**2 * torch.stack(losses).mean()

    def against(self, student: Predictions, labels: Predictions) -> Tensor:
        """Loss against given labels: classes ``[rows]``, numbers ``[rows]``, or starts and ends of answers ``[rows]``.

        Cross entropy, or for regression half the squared distance.
        """
        if self.kind == "regression":
            return 0.5 * (student[0] - labels[0].reshape(student[0].shape)).square().sum()
        pairs = zip(student, labels, strict=True)
        return torch.stack([functional.cross_entropy(logits, gold, reduction="sum") for logits, gold in pairs]).mean()

    def sampled(self, student: Predictions, generator: torch.Generator) -> Tensor:
        """Loss against labels drawn from the model's own predictions; squares of its gradients are Fisher information.

        Cross entropy, or for regression half the squared distance to a label with noise of variance one.
        """
        losses = []
        for logits in student:
            if self.kind == "regression":
                noise = torch.randn(logits.shape, generator=generator).to(logits.device)
                losses.append(0.5 * (logits - logits.detach() - noise).square().sum())
                continue
            chances = logits.detach().double().softmax(dim=1).cpu()
            labels = torch.multinomial(chances, 1, generator=generator).squeeze(1).to(logits.device)
            losses.append(functional.cross_entropy(logits, labels, reduction="sum"))
        return torch.stack(losses).mean()
