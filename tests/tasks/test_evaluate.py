# SPDX-License-Identifier: Apache-2.0
"""Evaluation: right counts in the order of the data, independent of batches; labels by number or by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_checkpoint import LABELS, build_sentences, build_tokenizer
from tiny_models import build_model

from pyprune.errors import InputError, NumericsError
from pyprune.tasks import Examples, evaluate, find_task
from pyprune.tasks.labels import class_names, gold_classes


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture
def model() -> Any:
    return build_model(structured=True, id2label=dict(enumerate(LABELS)), num_labels=2)


def make(texts: list[str], labels: list[Any] | None, **settings: Any) -> Examples:
    pairs = settings.pop("pairs", None)
    lines = tuple(range(2, len(texts) + 2))
    return Examples(tuple(texts), pairs, tuple(labels) if labels else None, "data.tsv", "0" * 64, lines, **settings)


def one_by_one(model: Any, tokenizer: Any, examples: Examples) -> list[int]:
    guesses = []
    with torch.no_grad():
        for row, text in enumerate(examples.texts):
            pair = examples.pairs[row] if examples.pairs else None
            encoded = tokenizer(text, pair, return_tensors="pt", truncation=True, max_length=64)
            guesses.append(int(model(**encoded).logits.argmax()))
    return guesses


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("paired", [False, True])
def test_counts_do_not_depend_on_the_batch_size(model: Any, tokenizer: Any, batch_size: int, paired: bool) -> None:
    texts = build_sentences(41)
    pairs = tuple(build_sentences(41, seed=9)) if paired else None
    examples = make(texts, [index % 2 for index in range(41)], pairs=pairs)
    found = evaluate(model, examples, tokenizer=tokenizer, batch_size=batch_size)
    expected = one_by_one(model, tokenizer, examples)
    assert list(found.predictions) == expected
    assert len(set(expected)) == 2, "a model that says the same to everything would test nothing"
    assert found.correct == sum(guess == index % 2 for index, guess in enumerate(expected))
    assert found.accuracy == found.value == found.correct / 41
    assert found.interval[0] < found.accuracy < found.interval[1]
    assert [entry["total"] for entry in found.classes] == [21, 20]
    assert sum(entry["correct"] for entry in found.classes) == found.correct
    assert [entry["name"] for entry in found.classes] == list(LABELS)
    assert "predictions" not in found.to_dict()


def test_the_training_flag_and_weights_are_left_alone(model: Any, tokenizer: Any) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, make(build_sentences(4), [0, 1, 0, 1]), tokenizer=tokenizer)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_long_rows_are_cut_and_counted(model: Any, tokenizer: Any) -> None:
    texts = [*build_sentences(3), " ".join(["ba"] * 500)]
    found = evaluate(model, make(texts, [0, 1, 0, 1]), tokenizer=tokenizer)
    assert (found.max_length, found.cut) == (64, 1)
    shorter = evaluate(model, make(texts, [0, 1, 0, 1]), tokenizer=tokenizer, max_length=4)
    assert shorter.cut >= 1
    with pytest.raises(InputError, match="1 to 64"):
        evaluate(model, make(texts, [0, 1, 0, 1]), tokenizer=tokenizer, max_length=65)


def test_progress_is_told_every_row(model: Any, tokenizer: Any) -> None:
    calls: list[Any] = []

    class Recorder:
        def start(self, total: int, description: str) -> None:
            calls.append(total)

        def advance(self, description: str) -> None:
            calls.append(1)

        def finish(self) -> None:
            calls.append("end")

    evaluate(model, make(build_sentences(5), [0] * 5), tokenizer=tokenizer, batch_size=2, progress=Recorder())
    assert calls == [5, 1, 1, 1, 1, 1, "end"]


def test_metrics(model: Any, tokenizer: Any) -> None:
    examples = make(build_sentences(40), [index % 2 for index in range(40)])
    cola = evaluate(model, replace(examples, task=find_task("cola")), tokenizer=tokenizer)
    assert cola.metric == "matthews"
    assert cola.accuracy == evaluate(model, examples, tokenizer=tokenizer).accuracy
    assert "matthews" in cola.describe()
    assert evaluate(model, examples, tokenizer=tokenizer, metric="f1").metric == "f1"
    with pytest.raises(InputError, match="accuracy, matthews, f1"):
        evaluate(model, examples, tokenizer=tokenizer, metric="bleu")


class Config:
    def __init__(self, *names: str) -> None:
        self.id2label = dict(enumerate(names))


@pytest.mark.parametrize(
    ("names", "labels", "stated", "expected"),
    [
        (("negative", "positive"), [1, 0], (), [1, 0]),
        (("negative", "positive"), ["Positive", "negative "], (), [1, 0]),
        (("not_entailment", "entailment"), ["not entailment", "Entailment"], (), [0, 1]),
        # numbers of the data set mean its own order of names, not the model's (MNLI)
        (("contradiction", "entailment", "neutral"), [0, 1, 2], ("entailment", "neutral", "contradiction"), [1, 2, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2], ("entailment", "neutral", "contradiction"), [0, 1, 2]),
        (("LABEL_0", "LABEL_1"), ["neg", "pos"], ("neg", "pos"), [0, 1]),
        (("LABEL_0", "LABEL_1"), ["LABEL_1", "label_0"], (), [1, 0]),
        # classes that are called by numbers
        (("1", "2"), [1, 2], (), [0, 1]),
        (("neg", "pos"), [0, 1], ("negative", "positive"), [0, 1]),
    ],
)
def test_labels(names: tuple[str, ...], labels: list[Any], stated: tuple[str, ...], expected: list[int]) -> None:
    examples = make(["x"] * len(labels), labels, label_names=stated)
    assert gold_classes(examples, Config(*names), len(names)) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "has no labels, and evaluation needs them"),
        ([0, None], "line 3: this row has no label"),
        ([0, 2], r"line 3: label 2 is not one of the model's classes\n.*0 \(negative\), 1 \(positive\)"),
        (["positive", "neutral"], "line 3: label 'neutral' is not one"),
        ([0, "0.5"], "line 3: label '0.5'"),
    ],
)
def test_labels_that_do_not_fit(model: Any, tokenizer: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(model, make(["ba", "be"], labels), tokenizer=tokenizer)


def test_class_names_of_a_config_without_names() -> None:
    assert class_names(object(), 2) == ["LABEL_0", "LABEL_1"]


def test_models_that_are_not_classifiers(tokenizer: Any, tiny: Callable[..., Any]) -> None:
    examples = make(["ba"], [0])
    with pytest.raises(InputError, match="a BertForMaskedLM"):
        evaluate(tiny(head="masked_lm"), examples, tokenizer=tokenizer)
    with pytest.raises(InputError, match="single-label"):
        evaluate(tiny(num_labels=1), examples, tokenizer=tokenizer)
    with pytest.raises(InputError, match="single-label"):
        evaluate(tiny(problem_type="multi_label_classification"), examples, tokenizer=tokenizer)


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_other_families_at_their_longest(tokenizer: Any, tiny: Callable[..., Any], family: str) -> None:
    # RoBERTa's positions start after the padding index: 66 of them hold 64 tokens
    found = evaluate(tiny(family), make([" ".join(["ba"] * 200)], [0]), tokenizer=tokenizer)
    assert found.max_length == 64


def test_outputs_that_are_not_finite(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        evaluate(model, make(["ba"], [0]), tokenizer=tokenizer)
