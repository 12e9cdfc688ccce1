# SPDX-License-Identifier: Apache-2.0
"""``train_prune`` of models that find answers: rows, all methods, contrasts, held-out rows, resuming, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import Stopping
from tiny_checkpoint import WORDS, build_tokenizer
from tiny_models import build_model
from torch import nn

import pyprune
from pyprune.errors import InputError
from pyprune.methods import TRAIN_RECIPES, train_prune
from pyprune.methods.train_parts import PLACES, accuracy, rows_of
from pyprune.patterns import kept_count
from pyprune.tasks import Examples, evaluate
from pyprune.training.rows import Rows

TRAINING = {"epochs": 1, "batch_size": 4, "rate": 1e-3}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def questions(count: int = 12) -> Examples:
    """Each word of a passage asks for itself."""
    passage = " ".join(WORDS[:count])
    places = tuple(((passage.index(f" {word} ".strip()), word),) for word in WORDS[:count])
    assert all(passage[at : at + len(word)] == word for ((at, word),) in places)
    return Examples(tuple(WORDS[:count]), (passage,) * count, None, "questions", "0" * 64, answers=places)


def qa(family: str = "bert", **settings: Any) -> Any:
    return build_model(family, "qa", layers=1, **settings)


def rows(tokenizer: Any, count: int = 12) -> Rows:
    return rows_of(questions(count), qa(), tokenizer, None)[0]


def test_rows_say_where_answers_are(tokenizer: Any) -> None:
    examples = questions()
    assert examples.answers is not None
    unknown = Examples(
        examples.texts, examples.pairs, None, "x", "", answers=(*examples.answers[:10], ((-1, "x"),), ())
    )
    found, told = rows_of(unknown, qa(), tokenizer, None)
    assert (len(found), told["left_out"]) == (10, 2)
    assert sorted(found.targets) == sorted(PLACES)
    assert found.labels is None
    for row in range(10):
        batch = found.batch(torch.tensor([row]))
        first, last = (int(batch[name]) for name in PLACES)
        assert tokenizer.decode(batch["input_ids"][0, first : last + 1]) == WORDS[row]
    assert set(found.inputs(torch.tensor([0]))) == {"input_ids", "attention_mask", "token_type_ids"}
    part = found.part([3, 5])
    assert part.targets["start_positions"].tolist() == found.targets["start_positions"][[3, 5]].tolist()
    assert part.sha256 != found.part([3, 6]).sha256
    others = Rows([{"input_ids": [1, 2]}], {"start_positions": [0], "end_positions": [1]})
    assert others.sha256 != Rows([{"input_ids": [1, 2]}], {"start_positions": [0], "end_positions": [0]}).sha256
    with pytest.raises(InputError, match="no answer has a place"):
        rows_of(Examples(("a",), ("b",), None, "x", "", answers=(((-1, "b"),),)), qa(), tokenizer, None)
    with pytest.raises(InputError, match="one of its end_positions"):
        Rows([{"input_ids": [1, 2]}], {"start_positions": [0], "end_positions": []})


def test_a_long_passage_gives_the_window_with_most_around_the_answer(tokenizer: Any) -> None:
    passage = " ".join(WORDS[:50])
    at = passage.index(f" {WORDS[25]} ") + 1
    examples = Examples((WORDS[25],), (passage,), None, "x", "", answers=(((at, WORDS[25]),),))
    found, _ = rows_of(examples, qa(), tokenizer, 28)
    batch = found.batch(torch.tensor([0]))
    (tokens,) = batch["input_ids"].shape[1:]
    assert tokens <= 28
    first = int(batch["start_positions"])
    assert tokenizer.decode(batch["input_ids"][0, first]) == WORDS[25]
    assert min(first - 3, tokens - 2 - first) >= 4  # windows overlap by a quarter: the nearer edge is never close


def test_how_many_are_right_is_counted(tokenizer: Any) -> None:
    found, model = rows(tokenizer), qa()
    right = 0
    with torch.no_grad():
        for row in range(len(found)):
            batch = found.batch(torch.tensor([row]))
            output = model(**{name: value for name, value in batch.items() if name not in PLACES})
            guesses = (output.start_logits.argmax(1), output.end_logits.argmax(1))
            right += all(int(guess) == int(batch[name]) for guess, name in zip(guesses, PLACES, strict=True))
    assert accuracy(found)(model) == right / len(found)


def test_a_model_learns_answers_and_keeps_the_best(tokenizer: Any) -> None:
    model = qa(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    before = evaluate(model, questions(), tokenizer=tokenizer)
    training = {"epochs": 60, "batch_size": 6, "rate": 1e-2}
    result = train_prune(
        model, questions(), tokenizer=tokenizer, method="imp", sparsity=0.3, training=training, held_out=questions()
    )
    after = evaluate(result.model, questions(), tokenizer=tokenizer)
    assert before.accuracy < 0.5 < after.accuracy == after.value == 1.0
    assert max(score for _, score in result.report["training"]["scores"]) == 1.0
    assert result.report["held_out"]["left_out"] == 0


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("method", TRAIN_RECIPES)
def test_methods(method: str, family: str, tokenizer: Any, tmp_path: Path) -> None:
    model, teacher = qa(family), qa(family, seed=3)
    result = train_prune(
        model,
        questions(),
        tokenizer=tokenizer,
        method=method,
        sparsity=0.6,
        teacher=teacher,
        training={**TRAINING, "epochs": 2},
        contrast=family == "bert",
        hidden=1.0,
    )
    report = result.report
    assert report["data"]["rows"] == 12
    if family == "bert":
        assert report["settings"]["loss"]["contrast"]["supervised"] == 0.0
    if method in ("movement", "smp", "imp"):
        for name, mask in result.masks.items():
            assert int(mask.sum()) == kept_count(mask.numel(), 0.6), name
    again: Any = pyprune.load(result.save(tmp_path / "pruned"), dense=result.units is None)
    batch = rows(tokenizer).inputs(torch.arange(3))
    if family == "distilbert":
        del batch["token_type_ids"]
    with torch.inference_mode():
        ours, theirs = again(**batch), result.model(**batch)
    assert torch.allclose(ours.start_logits, theirs.start_logits, atol=1e-5)
    assert torch.allclose(ours.end_logits, theirs.end_logits, atol=1e-5)


@pytest.mark.parametrize("method", ["movement", "grain"])
def test_a_stopped_run_goes_on_with_the_same_bits(method: str, tokenizer: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer": tokenizer, "method": method, "teacher": qa(seed=3), "contrast": True}
    options |= {"training": {**TRAINING, "epochs": 2}, "held_out": 0.25}
    whole = train_prune(qa(), questions(16), **options)
    options |= {"checkpoints": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train_prune(qa(), questions(16), progress=Stopping(5), **options)
    again = train_prune(qa(), questions(16), resume=True, **options)
    assert again.report["training"]["resumed"] == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_randomized_masks(tokenizer: Any) -> None:
    dense: nn.Module = qa()
    result = train_prune(
        dense,
        questions(16),
        tokenizer=tokenizer,
        method="randomized",
        sparsity=0.5,
        teacher=qa(seed=3),
        training=TRAINING,
        options={"levels": (0.5,), "candidates": 2, "pool": 2, "short_epochs": 0.5},
        held_out=0.25,
    )
    (level,) = result.report["training"]["levels"]
    assert len(level["scores"]) == 2
    assert all(0.0 <= score <= 1.0 for score in level["scores"])


def test_what_does_not_fit_is_said(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="a BertForQuestionAnswering and a BertForSequenceClassification"):
        train_prune(qa(), questions(), tokenizer=tokenizer, teacher=build_model("bert", layers=1))
    with pytest.raises(InputError, match="supervised term needs labels"):
        train_prune(
            qa(), questions(), tokenizer=tokenizer, teacher=qa(seed=3), contrast={"supervised": 1.0}, training=TRAINING
        )
    with pytest.raises(InputError, match="has no answers"):
        train_prune(qa(), Examples(("a",), ("b",), (1,), "x", ""), tokenizer=tokenizer)
    with pytest.raises(InputError, match="has no labels"):
        train_prune(build_model("bert", layers=1), questions(), tokenizer=tokenizer)
