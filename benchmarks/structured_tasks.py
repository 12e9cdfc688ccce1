# SPDX-License-Identifier: Apache-2.0
"""Tasks of the benchmark of structured pruning: text to calibrate on, and what a model is worth on labelled rows."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

import pyprune
from pyprune.errors import InputError
from pyprune.structured import compact
from pyprune.tasks import evaluate, load_texts
from pyprune.tasks.loading import Examples, without_rows
from pyprune.units import Units

BATCH = 64
LONGEST = 192  # tokens of question and passage, as the models here are trained


class Classification:
    """Sentences with labels.

    Parameters
    ----------
    model : str
        Folder of the checkpoint.
    train, evaluate : str
        Files: what is calibrated on, without its labels; what models are judged by.
    rows : int, optional
        Judge by so many rows, drawn once for all models.
    held_out : bool
        Judge by rows of ``train`` instead, which are then not calibrated on: for settings to be chosen by.
    """

    def __init__(self, model: str, train: str, evaluate: str, rows: int | None = None, held_out: bool = False) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.model = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        examples = load_texts(train)
        if held_out:
            chosen = sorted(random.Random(1).sample(range(len(examples)), rows or 1000))
            self.examples = _rows(examples, chosen)
            examples = without_rows(examples, chosen)
        else:
            self.examples = load_texts(evaluate, limit=rows, purpose="evaluation")
        self.calibration: Any = examples
        encoded = self.tokenizer(list(self.examples.texts), truncation=True, max_length=128)
        self._encoded = [{key: encoded[key][row] for key in encoded} for row in range(len(self.examples))]
        self._gold = torch.tensor([int(label) for label in self.examples.labels or () if label is not None])
        self._dense = self._logits(self.model)

    def judge(self, model: nn.Module) -> dict[str, Any]:
        """Accuracy; how often it says what the dense model says; mean divergence from what that predicts, in nats."""
        logits = self._logits(model)
        correct = int((logits.argmax(1) == self._gold).sum())
        terms = nn.functional.kl_div(logits.log_softmax(1), self._dense.softmax(1), reduction="none")
        return {
            "accuracy": correct / len(logits),
            "correct": correct,
            "total": len(logits),
            "agreement": float((logits.argmax(1) == self._dense.argmax(1)).double().mean()),
            "divergence": float(terms.sum(1).mean()),
        }

    @torch.inference_mode()
    def _logits(self, model: nn.Module) -> Tensor:
        order = sorted(range(len(self._encoded)), key=lambda row: len(self._encoded[row]["input_ids"]))
        found = []
        for begin in range(0, len(order), BATCH):
            rows = [self._encoded[row] for row in order[begin : begin + BATCH]]
            found.append(model(**self.tokenizer.pad(rows, return_tensors="pt")).logits.double())
        return torch.cat(found)[torch.argsort(torch.tensor(order))]


class Answers:
    """Questions about passages, in SQuAD's layout; parameters as for :class:`Classification`."""

    def __init__(self, model: str, train: str, evaluate: str, rows: int | None = None, held_out: bool = False) -> None:
        from transformers import AutoModelForQuestionAnswering, AutoTokenizer

        self.model = AutoModelForQuestionAnswering.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        questions, judged = load_texts(train), load_texts(train if held_out else evaluate, purpose="evaluation")
        chosen = list(range(len(judged)))
        if held_out or rows is not None:
            chosen = sorted(random.Random(1).sample(chosen, min(rows or 1000, len(judged))))
        self.calibration: Any = without_rows(questions, chosen) if held_out else questions
        self._judged = _rows(judged, chosen)

    def judge(self, model: nn.Module) -> dict[str, Any]:
        """F1 and exact match."""
        found = evaluate(model, self._judged, tokenizer=self.tokenizer, batch_size=BATCH, max_length=LONGEST)
        return {"f1": found.value, "exact": found.accuracy, "total": found.total}


def small(model: nn.Module, units: Units) -> nn.Module:
    """The pruned model without its zeros, made fast where there is a faster way."""
    cut = compact(model, units).eval()
    try:
        fast: nn.Module = pyprune.optimize(cut)
    except InputError:
        return cut
    return fast


def _rows(examples: Examples, chosen: list[int]) -> Examples:
    return without_rows(examples, sorted(set(range(len(examples))) - set(chosen)))
