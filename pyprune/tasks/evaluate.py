# SPDX-License-Identifier: Apache-2.0
"""Run a classifier over labelled examples and count; models for answers go on to :mod:`pyprune.tasks.answers`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pyprune.errors import InputError, NumericsError
from pyprune.tasks import metrics
from pyprune.tasks.labels import class_names, gold_classes
from pyprune.tasks.loading import Examples
from pyprune.tasks.registry import METRICS


class Progress(Protocol):
    """What a long call reports to (see :mod:`pyprune.progress` for the one on the terminal)."""

    def start(self, total: int, description: str) -> None: ...

    def advance(self, description: str) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class Evaluation:
    """Outcome of one evaluation.

    Attributes
    ----------
    metric, value : str, float
        The task's own number: accuracy, Matthews correlation or F1, as a fraction.
    accuracy : float
        Always there too: the share that is right.
    accuracy_is : str
        What that is called: ``"accuracy"``; of answers ``"exact match"``.
    correct, total : int
    interval : tuple of float
        Wilson 95 % interval of the accuracy.
    classes : tuple of dict
        For each class of the model: ``name``, ``total`` (rows of this class), ``correct``, ``predicted``.
    seconds : float
        Tokenizing and forward passes.
    source, sha256 : str
        Data that was evaluated.
    cut : int
        Rows longer than the `max_length` used.
    predictions : tuple of int
        Predicted class of every example, in the order of the data (not in ``to_dict``).
    gold : tuple of int
    right : tuple of bool
        Which predictions are right.
    """

    metric: str
    value: float
    accuracy: float
    correct: int
    total: int
    interval: tuple[float, float]
    classes: tuple[dict[str, Any], ...]
    seconds: float
    source: str
    sha256: str
    max_length: int
    cut: int
    predictions: tuple[Any, ...] = field(repr=False)
    gold: tuple[Any, ...] = field(repr=False)
    accuracy_is: str = "accuracy"

    @property
    def right(self) -> tuple[bool, ...]:
        """Which predictions are right."""
        return tuple(guess == truth for guess, truth in zip(self.predictions, self.gold, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record, without the predictions."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del record["predictions"], record["gold"]
        record["interval"] = list(self.interval)
        record["classes"] = [dict(entry) for entry in self.classes]
        return record

    def describe(self) -> str:
        """``"93.17 % (559 of 600, 95 % interval 90.9 to 94.9)"``, the task's own number first if it is another."""
        low, high = (100 * bound for bound in self.interval)
        text = f"{100 * self.accuracy:.2f} % ({self.correct} of {self.total}, 95 % interval {low:.1f} to {high:.1f})"
        return text if self.metric == "accuracy" else f"{self.metric} {self.value:.4f}, accuracy {text}"


def evaluate(
    model: Any,
    examples: Examples,
    *,
    tokenizer: Any,
    batch_size: int = 64,
    max_length: int | None = None,
    metric: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a sequence classifier, or a model that answers questions about passages.

    Batches are formed by length (little padding, so much less work); the outcome does not depend on the batch size
    beyond the last bits of the logits, and the order of the data is restored. The model's training flag is put back.

    Parameters
    ----------
    model : transformers model for sequence classification or question answering
        Used on the device and in the precision it is in.
    examples : Examples
        With labels; of questions, with passages and answers.
    tokenizer : transformers tokenizer
    batch_size : int
    max_length : int, optional
        Tokens kept of each row; by default what the model can take. Of passages: tokens of a window (default 384).
    metric : {"accuracy", "matthews", "f1"}, optional
        By default that of the examples' task, else accuracy; of answers F1.
    progress : optional
        Receives ``start(total, text)``, ``advance(text)``, ``finish()``.

    Returns
    -------
    Evaluation
        Of answers a :class:`pyprune.tasks.answers.AnswerEvaluation`.

    Raises
    ------
    InputError
        No labels, labels the model does not have, or a model of another kind.
    NumericsError
        The model's outputs are not finite.
    """
    if answers_questions(model):
        from pyprune.tasks.answers import evaluate_answers

        return evaluate_answers(
            model,
            examples,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            metric=metric,
            progress=progress,
        )
    classes = classes_of(model)
    if batch_size < 1:
        raise InputError("batch_size has to be at least 1", seen=str(batch_size))
    metric = metric or (examples.task.metric if examples.task is not None else "accuracy")
    if metric not in METRICS:
        raise InputError(f"metric {metric!r} is not known", hint=f"one of {', '.join(METRICS)}")
    if metric == "f1" and classes != 2:
        raise InputError("f1 is for two classes", seen=f"a model with {classes} classes", hint="metric accuracy")
    gold = gold_classes(examples, model.config, classes)

    begin = time.perf_counter()
    length = longest_input(model, tokenizer, max_length)
    encoded, cut = _encode(tokenizer, examples, length)
    predicted = _predict(model, tokenizer, encoded, batch_size, progress)
    seconds = time.perf_counter() - begin

    counts = metrics.confusion(gold, predicted, classes)
    share = metrics.accuracy(counts)
    correct = sum(counts[k][k] for k in range(classes))
    value = {"accuracy": lambda: share, "matthews": lambda: metrics.matthews(counts), "f1": lambda: metrics.f1(counts)}
    return Evaluation(
        metric=metric,
        value=value[metric](),
        accuracy=share,
        correct=correct,
        total=len(gold),
        interval=metrics.wilson(correct, len(gold)),
        classes=tuple(
            {
                "name": name,
                "total": sum(counts[index]),
                "correct": counts[index][index],
                "predicted": sum(row[index] for row in counts),
            }
            for index, name in enumerate(class_names(model.config, classes))
        ),
        seconds=seconds,
        source=examples.source,
        sha256=examples.sha256,
        max_length=length,
        cut=cut,
        predictions=tuple(predicted),
        gold=tuple(gold),
    )


def answers_questions(model: Any) -> bool:
    """Whether a model finds answers in passages."""
    return type(model).__name__.endswith("ForQuestionAnswering")


def classes_of(model: Any) -> int:
    """Number of classes of a single-label sequence classifier; an :class:`InputError` for any other model."""
    config = model.config
    name = type(model).__name__
    if not name.endswith("ForSequenceClassification"):
        raise InputError(
            "only sequence classifiers and models that answer questions can be evaluated",
            seen=f"a {name}",
            hint="a model saved from AutoModelForSequenceClassification or AutoModelForQuestionAnswering",
        )
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise InputError(
            "only single-label classification can be evaluated",
            seen=f"{config.num_labels} output(s), problem_type {config.problem_type!r}",
        )
    return int(config.num_labels)


def longest_input(model: Any, tokenizer: Any, asked: int | None) -> int:
    """Tokens of a row that model and tokenizer take, or as many as are asked for if they do."""
    config = model.config
    limit = int(getattr(config, "max_position_embeddings", None) or 512)
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        # their positions start after the padding index
        limit -= int(config.pad_token_id) + 1
    own = getattr(tokenizer, "model_max_length", None)
    if own is not None and own < limit:
        limit = int(own)
    if asked is None:
        return limit
    if not 1 <= asked <= limit:
        raise InputError(f"max_length {asked} is out of range", hint=f"1 to {limit} for this model")
    return asked


def accepted_inputs(model: Any) -> set[str]:
    """Names of what a model takes: DistilBERT takes no token_type_ids, and some tokenizers give them all the same."""
    return set(inspect.signature(model.forward).parameters)


def check_padding(tokenizer: Any) -> None:
    """Raise where rows of different lengths could not be put together."""
    if tokenizer.pad_token is None:
        raise InputError("the tokenizer has no padding token", hint="tokenizer.pad_token = ...")


@contextmanager
def judging(model: Any, total: int, progress: Progress | None) -> Iterator[Callable[[], None]]:
    """Within it a model is in evaluation mode and makes no graph; call what it yields for each of ``total`` parts."""
    was_training = model.training
    model.eval()
    if progress is not None:
        progress.start(total, "evaluating")

    def advance() -> None:
        if progress is not None:
            progress.advance("evaluating")

    try:
        with torch.inference_mode():
            yield advance
    finally:
        model.train(was_training)
        if progress is not None:
            progress.finish()


def check_finite(what: str, *outputs: Tensor) -> None:
    """Raise NumericsError where outputs of a batch of so many rows or windows hold NaN or infinity."""
    if not all(bool(torch.isfinite(values).all()) for values in outputs):
        raise NumericsError(
            "the model's outputs are not finite",
            seen=f"NaN or infinity in a batch of {what}",
            hint="check the weights; load fp16 weights in float32 on a CPU",
        )


def _encode(tokenizer: Any, examples: Examples, length: int) -> tuple[list[dict[str, list[int]]], int]:
    check_padding(tokenizer)
    pairs = list(examples.pairs) if examples.pairs is not None else None
    output = tokenizer(list(examples.texts), pairs, truncation=True, max_length=length, padding=False)
    cut = sum(bool(entry.overflowing) for entry in (getattr(output, "encodings", None) or ()))
    names = list(output.keys())
    return [{name: output[name][row] for name in names} for row in range(len(examples))], cut


def _predict(
    model: Any, tokenizer: Any, encoded: Sequence[dict[str, list[int]]], batch_size: int, progress: Progress | None
) -> list[int]:
    # longest first: an out-of-memory shows at once, and the time left is never too optimistic
    order = sorted(range(len(encoded)), key=lambda row: (-len(encoded[row]["input_ids"]), row))
    predicted = [0] * len(encoded)
    device = next(model.parameters()).device
    accepted = accepted_inputs(model)
    with judging(model, len(order), progress) as advance:
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = tokenizer.pad([encoded[row] for row in rows], return_tensors="pt")
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name in accepted}
            logits: Tensor = model(**inputs).logits
            check_finite(f"{len(rows)} rows", logits)
            for row, guess in zip(rows, logits.argmax(dim=-1).tolist(), strict=True):
                predicted[row] = int(guess)
                advance()
    return predicted
