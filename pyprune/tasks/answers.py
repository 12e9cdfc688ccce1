# SPDX-License-Identifier: Apache-2.0
"""Questions about passages, as SQuAD has them (Rajpurkar et al., EMNLP 2016): windows of tokens, spans, F1.

A passage that is longer than a model takes is read in windows that overlap; the answer is the best span of any.
"""

from __future__ import annotations

import re
import string
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.tasks import metrics
from pyprune.tasks.columns import Answer
from pyprune.tasks.evaluate import (
    Evaluation,
    Progress,
    accepted_inputs,
    check_finite,
    check_padding,
    judging,
    longest_input,
)
from pyprune.tasks.loading import Examples, without_rows

LONGEST = 384  # tokens of question and passage, unless more or fewer are asked for
LONGEST_ANSWER = 30  # tokens
_QUESTION, _OVERLAP = 64, 128  # tokens: of a question at most, from one window to the next
_LEAST = 24
_TOGETHER = 1000  # rows, as the tokenizer's own lists take a hundred times what is kept of them


@dataclass(frozen=True)
class Window:
    """What a model reads at once.

    Attributes
    ----------
    row : int
        Of the examples.
    inputs : dict of str to list of int
        What the tokenizer gives for each token.
    spans : Tensor of int32, shape (tokens, 2)
        Where the letters of each token begin and end in the passage; -1: it is none of the passage's.
    """

    row: int
    inputs: dict[str, list[int]]
    spans: Tensor


@dataclass(frozen=True)
class AnswerEvaluation(Evaluation):
    """Outcome of an evaluation on questions: ``value`` is F1, ``accuracy`` the share of exact matches.

    ``predictions`` are texts, ``gold`` for each question all texts that count as right.

    Attributes
    ----------
    unanswered : int
        Questions that have no answer (SQuAD 2.0) and were left out.
    """

    accuracy_is: str = "exact match"
    unanswered: int = 0

    @property
    def right(self) -> tuple[bool, ...]:
        """Which answers match exactly."""
        return tuple(exact(given, texts) for given, texts in zip(self.predictions, self.gold, strict=True))

    def describe(self) -> str:
        """``"F1 84.2 %, exact match 76.10 % (761 of 1000, 95 % interval 73.3 to 78.6)"``."""
        shares = [100 * value for value in (self.value, self.accuracy, *self.interval)]
        if self.metric != "f1":
            shares[0] = 100 * self.overlap
        f1, matched, low, high = shares
        counts = f"({self.correct} of {self.total}, 95 % interval {low:.1f} to {high:.1f})"
        left_out = f"; {self.unanswered} questions without an answer left out" if self.unanswered else ""
        return f"F1 {f1:.2f} %, exact match {matched:.2f} % {counts}{left_out}"

    @property
    def overlap(self) -> float:
        """F1, whatever ``metric`` is."""
        return _mean_overlap(self.predictions, self.gold)


def normalised(text: str) -> list[str]:
    """Words without case, punctuation and articles: what SQuAD's own evaluation compares.

    >>> normalised("The Amazon, a river!")
    ['amazon', 'river']
    """
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def exact(given: str, texts: Sequence[str]) -> bool:
    """Whether an answer is one of those that count as right.

    >>> exact("The Amazon!", ["amazon", "rain forest"])
    True
    """
    return any(normalised(given) == normalised(text) for text in texts)


def overlap(given: str, texts: Sequence[str]) -> float:
    """F1 of the words of an answer with those of the right one that fits best.

    >>> overlap("the green forest", ["forest", "a river"])
    0.6666666666666666
    """
    best = 0.0
    for text in texts:
        ours, theirs = normalised(given), normalised(text)
        if not ours or not theirs:
            best = max(best, float(ours == theirs))
            continue
        shared = sum((Counter(ours) & Counter(theirs)).values())
        best = max(best, 2 * shared / (len(ours) + len(theirs)))
    return best


def answered(examples: Examples) -> Examples:
    """The questions that have an answer.

    Raises
    ------
    InputError
        None has.
    """
    without = [row for row, texts in enumerate(examples.answers or ()) if not texts]
    if examples.answers is None or len(without) == len(examples):
        raise InputError(
            f"{examples.source} has no answers, and they are needed",
            hint='SQuAD\'s layout, or a column "answers": [{"text": "...", "answer_start": 17}] in each row',
        )
    return without_rows(examples, without) if without else examples


def windows(tokenizer: Any, examples: Examples, length: int) -> Iterator[Window]:
    """All windows of all rows, row by row; a question is cut to 64 tokens, a third of a window or more is passage.

    Raises
    ------
    InputError
        The rows have no passages, the tokenizer does not say where tokens come from, or a window is too short.
    """
    if examples.pairs is None:
        raise InputError(
            f"{examples.source} has no passages",
            seen="one text in each row",
            hint='a question and its context in each row: columns "question" and "context", or SQuAD\'s layout',
        )
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("answers need a fast tokenizer, which knows where tokens come from", hint="use_fast=True")
    check_padding(tokenizer)
    if length < _LEAST:
        raise InputError(f"windows of {length} tokens are too short for questions", hint=f"at least {_LEAST}")
    return _windows(tokenizer, examples, length)


def _windows(tokenizer: Any, examples: Examples, length: int) -> Iterator[Window]:
    assert examples.pairs is not None
    most = min(_QUESTION, length // 2)
    for begin in range(0, len(examples), _TOGETHER):
        some = slice(begin, begin + _TOGETHER)
        found = tokenizer(
            _cut(tokenizer, [text.strip() for text in examples.texts[some]], most),
            list(examples.pairs[some]),
            truncation="only_second",
            max_length=length,
            stride=min(_OVERLAP, length // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = [name for name in found if name not in ("offset_mapping", "overflow_to_sample_mapping")]
        for index, row in enumerate(found["overflow_to_sample_mapping"]):
            spans = torch.tensor(found["offset_mapping"][index], dtype=torch.int32)
            passage = torch.tensor([part == 1 for part in found.sequence_ids(index)])
            spans[~passage] = -1
            yield Window(begin + int(row), {name: found[name][index] for name in names}, spans)


def _cut(tokenizer: Any, texts: list[str], most: int) -> list[str]:
    every = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [text[: spans[most - 1][1]] if len(spans) > most else text for text, spans in zip(texts, every, strict=True)]


def target(window: Window, answers: Sequence[Answer]) -> tuple[int, int] | None:
    """First and last token of the first answer whose place is known; None if it is not whole in the window.

    >>> window = Window(0, {}, torch.tensor([[-1, -1], [0, 5], [6, 8], [9, 13], [-1, -1]]))
    >>> target(window, [(-1, "it"), (6, "is here")]), target(window, [(9, "here too")])
    ((2, 3), None)
    """
    begin, text = next((answer for answer in answers if answer[0] >= 0), (-1, ""))
    if begin < 0:
        return None
    end = begin + len(text)
    first, last = window.spans.T
    inside = ((first < end) & (last > begin)).nonzero().flatten().tolist()
    if not inside or int(first[inside[0]]) > begin or int(last[inside[-1]]) < end:
        return None
    return inside[0], inside[-1]


def best_span(starts: Tensor, ends: Tensor, spans: Tensor) -> tuple[float, int, int]:
    """The largest sum of a start's and an end's logit ``[tokens]``, and the letters from the one to the other.

    Both are the passage's (``spans``, see :class:`Window`), and at most 30 tokens apart.
    """
    count, inside = len(spans), (spans[:, 0] >= 0).to(starts.device)
    starts, ends = (logits[:count].float().masked_fill(~inside, -torch.inf) for logits in (starts, ends))
    sums = starts[:, None] + ends[None, :]
    allowed = torch.ones_like(sums, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    sums = sums.masked_fill(~allowed, -torch.inf)
    first, last = divmod(int(sums.argmax()), count)
    best = float(sums[first, last])
    if best == -torch.inf:  # a passage without a token
        return best, 0, 0
    return best, int(spans[first, 0]), int(spans[last, 1])


def evaluate_answers(
    model: Any,
    examples: Examples,
    *,
    tokenizer: Any,
    batch_size: int = 64,
    max_length: int | None = None,
    metric: str | None = None,
    progress: Progress | None = None,
) -> AnswerEvaluation:
    """Evaluate a model for question answering; parameters as for :func:`pyprune.tasks.evaluate`.

    Raises
    ------
    InputError
        No passages, no answers, another metric than ``"f1"`` or ``"accuracy"`` (exact match).
    NumericsError
        The model's outputs are not finite.
    """
    total, examples = len(examples), answered(examples)
    assert examples.answers is not None
    metric = metric or "f1"
    if metric not in ("f1", "accuracy"):
        raise InputError(f"answers are not judged by {metric}", hint="f1, or accuracy: exact matches")
    if batch_size < 1:
        raise InputError("batch_size has to be at least 1", seen=str(batch_size))
    begin = time.perf_counter()
    length = min(longest_input(model, tokenizer, None), LONGEST)
    length = length if max_length is None else longest_input(model, tokenizer, max_length)
    every = list(windows(tokenizer, examples, length))
    given = _answered(model, tokenizer, examples, every, batch_size, progress)
    seconds = time.perf_counter() - begin
    gold = tuple(tuple(text for _, text in answers) for answers in examples.answers)
    matched = sum(exact(text, texts) for text, texts in zip(given, gold, strict=True))
    share = matched / len(gold)
    return AnswerEvaluation(
        metric=metric,
        value=_mean_overlap(given, gold) if metric == "f1" else share,
        accuracy=share,
        correct=matched,
        total=len(gold),
        interval=metrics.wilson(matched, len(gold)),
        classes=(),
        seconds=seconds,
        source=examples.source,
        sha256=examples.sha256,
        max_length=length,
        cut=0,
        predictions=tuple(given),
        gold=gold,
        unanswered=total - len(examples),
    )


def _mean_overlap(given: Sequence[str], gold: Sequence[Sequence[str]]) -> float:
    return sum(overlap(text, texts) for text, texts in zip(given, gold, strict=True)) / len(gold)


def _answered(
    model: Any,
    tokenizer: Any,
    examples: Examples,
    every: Sequence[Window],
    batch_size: int,
    progress: Progress | None,
) -> list[str]:
    assert examples.pairs is not None
    best: list[tuple[float, int, int]] = [(-torch.inf, 0, 0)] * len(examples)
    with judging(model, len(every), progress) as advance:
        for picked, batch in _batches(model, tokenizer, every, batch_size):
            output = model(**batch)
            starts, ends = output.start_logits, output.end_logits
            check_finite(f"{len(picked)} windows", starts, ends)
            for place, window in enumerate(picked):
                best[window.row] = max(best[window.row], best_span(starts[place], ends[place], window.spans))
                advance()
    return [passage[begin:end] for passage, (_, begin, end) in zip(examples.pairs, best, strict=True)]


def _batches(
    model: Any, tokenizer: Any, every: Sequence[Window], batch_size: int
) -> Iterator[tuple[list[Window], dict[str, Tensor]]]:
    """Windows of like length together, the longest first."""
    accepted, device = accepted_inputs(model), next(model.parameters()).device
    order = sorted(every, key=lambda window: -len(window.inputs["input_ids"]))
    for begin in range(0, len(order), batch_size):
        picked = order[begin : begin + batch_size]
        # Logits are told apart by their distance from the first one.
        batch = tokenizer.pad([window.inputs for window in picked], return_tensors="pt", padding_side="right")
        yield picked, {name: value.to(device) for name, value in batch.items() if name in accepted}
