# SPDX-License-Identifier: Apache-2.0
"""What methods that train have in common before and after the training: rows, held-out rows, checks, their report."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.methods import accounting
from pyprune.methods.report import Clock, circumstances
from pyprune.models import Adapter
from pyprune.tasks import answers
from pyprune.tasks.evaluate import accepted_inputs, answers_questions, classes_of, longest_input
from pyprune.tasks.labels import gold_classes
from pyprune.tasks.loading import Examples
from pyprune.training.distillation import predictions
from pyprune.training.loop import Training
from pyprune.training.rows import Rows

LONGEST = 128  # tokens of a row, unless more are asked for; of a question with its passage see `answers`
PLACES = ("start_positions", "end_positions")
_BATCH = 64
_SPLIT_SEED = 7_368_787


def settings_of(default: Training, given: Training | Mapping[str, Any] | None) -> Training:
    """Settings as they are, or a method's own with those that are to differ."""
    if isinstance(given, Training):
        return given
    try:
        return replace(default, **dict(given or {}))
    except TypeError as error:
        raise InputError("a setting that a training does not know", seen=str(error)) from None


def check_teacher(model: Any, teacher: Any) -> None:
    """Raise where a teacher does not fit the model."""
    if teacher is None:
        return
    if answers_questions(model) != answers_questions(teacher):
        seen = f"a {type(model).__name__} and a {type(teacher).__name__}"
        raise InputError("the teacher does not fit the model", seen=seen)
    for name in ("vocab_size", "num_labels"):
        ours, theirs = (getattr(m.config, name, None) for m in (model, teacher))
        if ours != theirs:
            raise InputError(
                "the teacher does not fit the model",
                seen=f"{name} {theirs} of the teacher, {ours} of the model",
                hint="a teacher with the same tokenizer, fine-tuned for the same labels",
            )


def rows_of(data: Any, model: Any, tokenizer: Any, max_length: int | None) -> tuple[Rows, dict[str, Any]]:
    """Token ids of text with classes or answers, and what a report says of it; rows as they are."""
    if isinstance(data, Rows):
        return data, {}
    if not isinstance(data, Examples):
        raise InputError(
            "training needs labelled text", seen=type(data).__name__, hint="pyprune.tasks.load_texts(path), or Rows"
        )
    if tokenizer is None:
        raise InputError("text needs a tokenizer", hint="tokenizer=AutoTokenizer.from_pretrained(path)")
    longest = answers.LONGEST if answers_questions(model) else LONGEST
    limit = longest_input(model, tokenizer, None)
    length = min(limit, longest) if max_length is None else longest_input(model, tokenizer, max_length)
    told = {"source": data.source, "source_sha256": data.sha256, "max_length": length}
    if answers_questions(model):
        rows = _question_rows(data, model, tokenizer, length)
        return rows, told | {"left_out": len(data) - len(rows)}
    labels = gold_classes(data, model.config, classes_of(model))
    pairs = None if data.pairs is None else list(data.pairs)
    output = tokenizer(list(data.texts), pairs, truncation=True, max_length=length, padding=False)
    accepted = accepted_inputs(model)
    names = [name for name in output if name in accepted]
    encoded = [{name: output[name][row] for name in names} for row in range(len(data))]
    return Rows(encoded, labels, {"input_ids": int(tokenizer.pad_token_id)}), told


def _question_rows(data: Examples, model: Any, tokenizer: Any, length: int) -> Rows:
    """Of each question whose answer has a known place the window with most of the passage around it."""
    data, accepted = answers.answered(data), accepted_inputs(model)
    assert data.answers is not None
    best: dict[int, tuple[int, dict[str, list[int]], tuple[int, int]]] = {}
    for window in answers.windows(tokenizer, data, length):
        spot = answers.target(window, data.answers[window.row])
        if spot is None:
            continue
        inside = (window.spans[:, 0] >= 0).nonzero().flatten()
        around = int(min(spot[0] - inside[0], inside[-1] - spot[1]))
        if window.row not in best or around > best[window.row][0]:
            best[window.row] = (around, {n: ids for n, ids in window.inputs.items() if n in accepted}, spot)
    if not best:
        raise InputError(
            f"{data.source}: no answer has a place in its passage that is known",
            hint='"answer_start" of each answer: at which letter of the passage it begins',
        )
    found = [best[row] for row in sorted(best)]
    places = {name: [spot[side] for _, _, spot in found] for side, name in enumerate(PLACES)}
    return Rows([inputs for _, inputs, _ in found], places, {"input_ids": int(tokenizer.pad_token_id)})


def held_out_rows(
    held_out: Examples | Rows | float | None, rows: Rows, model: Any, tokenizer: Any, length: int | None, seed: int
) -> tuple[Rows, Rows | None, dict[str, Any] | None]:
    """Rows to train on, rows to choose by, and what a report says of those; a number takes that part of the first."""
    if held_out is None:
        return rows, None, None
    if not isinstance(held_out, (int, float)):
        found, told = rows_of(held_out, model, tokenizer, length)
    else:
        if not 0.0 < held_out < 1.0 or len(rows) < 2:
            raise InputError("a part of the rows is held out, above 0 and below 1", seen=f"{held_out} of {len(rows)}")
        count = min(max(round(held_out * len(rows)), 1), len(rows) - 1)
        taken = set(random.Random(_SPLIT_SEED + seed).sample(range(len(rows)), count))
        found, told = rows.part(sorted(taken)), {"part": float(held_out)}
        rows = rows.part([row for row in range(len(rows)) if row not in taken])
    if not found.targets:
        raise InputError("rows that are held out need labels, or places of answers")
    return rows, found, told | {"rows": len(found), "sha256": found.sha256}


def accuracy(rows: Rows) -> Callable[[nn.Module], float]:
    """How much of these rows a model has right; with one output its squared distance, negative.

    An answer is right if both its tokens are.
    """
    order = torch.argsort(torch.tensor(rows.lengths), stable=True)

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        device = next(model.parameters()).device
        total = 0.0
        for numbers in torch.split(order, _BATCH):
            output = model(**{name: value.to(device) for name, value in rows.inputs(numbers).items()})
            gold = {name: values[numbers].to(device) for name, values in rows.targets.items()}
            if "labels" not in gold:
                starts, ends = (gold[name] for name in PLACES)
                places = predictions(output, rows.inputs(numbers)["attention_mask"].to(device))
                found = [logits.argmax(dim=1) for logits in places]
                total += int(((found[0] == starts) & (found[1] == ends)).sum())
                continue
            labels, logits = gold["labels"], output.logits
            if logits.shape[-1] == 1:
                total -= float((logits[:, 0].float() - labels.float()).square().sum())
            else:
                total += int((logits.argmax(dim=1) == labels).sum())
        return total / len(rows)

    return score


@contextmanager
def eager_attention(models: Sequence[Any], *, wanted: bool) -> Iterator[None]:
    """An attention that gives its probabilities, where they are wanted; afterwards that which there was."""
    able = [model for model in models if hasattr(model, "set_attn_implementation")] if wanted else []
    before = [getattr(model.config, "_attn_implementation", None) for model in able]
    for model in able:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for model, kind in zip(able, before, strict=True):
            if kind is not None:
                model.set_attn_implementation(kind)


def named(model: Any, sha256: str | None) -> dict[str, Any]:
    """What a report says of a teacher."""
    return {"name": str(getattr(model.config, "_name_or_path", "") or ""), "sha256": sha256}


def report_of(
    method: str,
    model: Any,
    adapter: Adapter,
    masks: Mapping[str, Tensor],
    training: Mapping[str, Any],
    clock: Clock,
    *,
    sha256: str,
    embeddings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """JSON-able; ``training`` has ``seconds`` and what else there is to say of it; ``embeddings``: of factored ones."""
    device = next(model.parameters()).device
    layers = [
        {
            "name": name,
            "rows": mask.shape[0],
            "cols": mask.shape[1],
            "kept": int(mask.sum()),
            "sparsity": 1.0 - int(mask.sum()) / mask.numel(),
        }
        for name, mask in masks.items()
    ]
    removed = sum(int((~mask).sum()) for mask in masks.values())
    counts = accounting.count(model, adapter, removed, _units(model, adapter, masks), 0.0)
    del counts["encoder_macs"]  # there is no one length
    if embeddings is not None:
        sizes = embeddings["parameters"]
        for name in ("encoder_and_embeddings", "all_parameters"):
            counts[name] = {key: value + sizes["before"] - sizes["after"] for key, value in counts[name].items()}
    more = {} if embeddings is None else {"embeddings": dict(embeddings)}
    return {
        "method": method,
        **circumstances(model, adapter, sha256=sha256, device=device),
        "layers": layers,
        "sparsity": {name: entry["removed"] / entry["total"] for name, entry in counts.items()},
        "counts": counts,
        "training": {name: value for name, value in training.items() if name != "seconds"},
        "seconds": clock.seconds({"training": training["seconds"]}),
        "memory": clock.memory(device),
        "notes": [],
        **more,
    }


def _units(model: Any, adapter: Adapter, masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Heads and neurons that nothing reads any more."""
    found = {"removed": 0, "total": 0}
    for index, block in enumerate(adapter.blocks(model)):
        prefix = adapter.block_name(model, index)
        own = {name: masks[f"{prefix}.{name}"] for name in adapter.linears(block)}
        for key, count in accounting.units(model, adapter, own).items():
            found[key] += count
    return found
