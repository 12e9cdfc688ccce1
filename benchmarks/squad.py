# SPDX-License-Identifier: Apache-2.0
"""Question answering in SQuAD's layout: reading, spans of answers, F1 and exact match, and fine-tuning a small model.

    python benchmarks/squad.py MODEL train.json OUTPUT --epochs 3 --bf16

starts from the encoder of MODEL, whatever its head, keeps the embeddings as they are, and writes a checkpoint that
`bench_structured.py --answers` prunes. `--bf16` rounds the products of training to bfloat16; weights stay float32.
Answers whose place in the passage is not stated (`answer_start` -1) are left out of training; they count for F1 and
exact match.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError

LONGEST = 192  # tokens of question and passage, as the models here are trained
LONGEST_ANSWER = 30


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes
    ----------
    question, context : str
    answers : tuple of str
        All that count as right.
    start : int
        Where the first answer whose place is known begins in the context; -1 if none is known.
    text : str
        That answer.
    """

    question: str
    context: str
    answers: tuple[str, ...]
    start: int
    text: str


def read(path: str | Path) -> list[Question]:
    """All questions of a file."""
    try:
        articles = json.loads(Path(path).read_text(encoding="utf-8"))["data"]
        return [
            _question(entry, paragraph["context"])
            for article in articles
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not in SQuAD's layout", seen=f"{type(error).__name__}: {error}") from None


def _question(entry: Any, context: str) -> Question:
    answers = [(int(answer["answer_start"]), str(answer["text"])) for answer in entry["answers"]]
    start, text = next((answer for answer in answers if answer[0] >= 0), (-1, ""))
    return Question(str(entry["question"]).strip(), context, tuple(text for _, text in answers), start, text)


def normalised(text: str) -> list[str]:
    """Words without case, punctuation and articles: what SQuAD's own evaluation compares."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def exact(predicted: str, answers: Sequence[str]) -> float:
    """1 if it is one of the answers.

    >>> exact("The Amazon!", ["amazon", "rain forest"])
    1.0
    """
    return float(any(normalised(predicted) == normalised(answer) for answer in answers))


def overlap(predicted: str, answers: Sequence[str]) -> float:
    """F1 of words with the answer that fits best.

    >>> overlap("the green forest", ["forest", "a river"])
    0.6666666666666666
    """
    best = 0.0
    for answer in answers:
        ours, theirs = normalised(predicted), normalised(answer)
        shared = sum((Counter(ours) & Counter(theirs)).values())
        if shared:
            best = max(best, 2 * shared / (len(ours) + len(theirs)))
    return best


def encode(tokenizer: Any, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Token ids of question and passage, with ``context``: for every token its letters in the passage, or None."""
    found = tokenizer(
        [each.question for each in questions],
        [each.context for each in questions],
        truncation="only_second",
        max_length=LONGEST,
        return_offsets_mapping=True,
    )
    rows = []
    for index in range(len(questions)):
        parts = found.sequence_ids(index)
        row = {key: found[key][index] for key in found if key != "offset_mapping"}
        spans = zip(parts, found["offset_mapping"][index], strict=True)
        rows.append({**row, "context": [tuple(span) if part == 1 else None for part, span in spans]})
    return rows


def batches(tokenizer: Any, rows: Sequence[dict[str, Any]], size: int) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Numbers of rows and their padded inputs, rows of one length together."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
    for begin in range(0, len(order), size):
        numbers = order[begin : begin + size]
        plain = [{key: value for key, value in rows[row].items() if key != "context"} for row in numbers]
        yield numbers, tokenizer.pad(plain, return_tensors="pt")


def best_span(starts: Tensor, ends: Tensor, spans: Sequence[tuple[int, int] | None]) -> tuple[int, int]:
    """Letters of the passage from the best start to the best end, at most 30 tokens, from logits ``[tokens]``."""
    inside = torch.tensor([span is not None for span in spans])
    count = len(spans)
    starts, ends = (logits[:count].masked_fill(~inside, -torch.inf) for logits in (starts, ends))
    sums = starts[:, None] + ends[None, :]
    allowed = torch.ones(count, count, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    first, last = divmod(int(sums.masked_fill(~allowed, -torch.inf).argmax()), count)
    begin, end = spans[first], spans[last]
    return (0, 0) if begin is None or end is None else (begin[0], end[1])


@torch.inference_mode()
def score(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], rows: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """``f1`` and ``exact`` match, both from 0 to 1."""
    predicted = [""] * len(rows)
    for numbers, batch in batches(tokenizer, rows, 32):
        output = model(**batch)
        for place, row in enumerate(numbers):
            begin, end = best_span(output.start_logits[place], output.end_logits[place], rows[row]["context"])
            predicted[row] = questions[row].context[begin:end]
    pairs = list(zip(predicted, (each.answers for each in questions), strict=True))
    return {"f1": sum(overlap(*p) for p in pairs) / len(pairs), "exact": sum(exact(*p) for p in pairs) / len(pairs)}


def targets(row: dict[str, Any], question: Question) -> tuple[int, int] | None:
    """First and last token of the answer; None if its place is unknown or cut off."""
    if question.start < 0:
        return None
    begin, end = question.start, question.start + len(question.text)
    inside = [at for at, span in enumerate(row["context"]) if span and span[0] < end and span[1] > begin]
    if not inside or row["context"][inside[-1]][1] < end:
        return None
    return inside[0], inside[-1]


def train(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
    bf16: bool = False,
) -> None:
    """Fine-tune all but the embeddings: AdamW, warm-up of 6 % and linear decay; batches of like lengths, shuffled."""
    encoded = encode(tokenizer, questions)
    known = [(row, spot) for row, each in zip(encoded, questions, strict=True) if (spot := targets(row, each))]
    rows = [row for row, _ in known]
    spots = torch.tensor([spot for _, spot in known])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    every = list(batches(tokenizer, rows, batch))
    steps = epochs * len(every)
    warm = max(1, round(0.06 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    model.train()
    torch.manual_seed(seed)
    order, step, loss_sum = random.Random(seed), 0, 0.0
    for _ in range(epochs):
        order.shuffle(every)
        for numbers, inputs in every:
            starts, ends = spots[numbers].T
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**inputs, start_positions=starts, end_positions=ends).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            step, loss_sum = step + 1, loss_sum + float(loss.detach())
            if step % 20 == 0 or step == steps:
                print(f"step {step} of {steps}, mean loss {loss_sum / step:.3f}", flush=True)
    model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune and save."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint whose encoder is taken")
    parser.add_argument("data", help="questions to train on")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, help="so many questions only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)  # of the new head
    model = AutoModelForQuestionAnswering.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    questions = read(options.data)[: options.rows]
    train(
        model,
        tokenizer,
        questions,
        epochs=options.epochs,
        rate=options.rate,
        batch=options.batch,
        seed=options.seed,
        bf16=options.bf16,
    )
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
