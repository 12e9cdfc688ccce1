# SPDX-License-Identifier: Apache-2.0
"""Answers: reading them, windows and spans against brute force, F1 and exact match, what does not fit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import WORDS, build_tokenizer
from tiny_models import build_model
from torch import nn

from pyprune.errors import InputError, NumericsError
from pyprune.tasks import Examples, evaluate, load_texts, without_rows
from pyprune.tasks.answers import AnswerEvaluation, Window, best_span, exact, overlap, target, windows
from pyprune.tasks.metrics import compare


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def squad(path: Path, passages: list[tuple[str, list[tuple[str, list[tuple[int, str]]]]]]) -> Path:
    """A file of passages, each with questions and their answers."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {"question": question, "id": "x", "answers": [{"answer_start": a, "text": t} for a, t in answers]}
                for question, answers in questions
            ],
        }
        for context, questions in passages
    ]
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def questions(count: int, words: int = 12, seed: int = 0) -> Examples:
    """Of passages of so many words one word or two are the answer."""
    draw = random.Random(seed)
    texts, pairs, answers = [], [], []
    for _ in range(count):
        passage = draw.choices(WORDS, k=words)
        first = draw.randrange(words - 1)
        text = " ".join(passage[first : first + draw.randint(1, 2)])
        begin = len(" ".join(passage[:first])) + (first > 0)
        texts.append(" ".join(draw.choices(WORDS, k=3)))
        pairs.append(" ".join(passage))
        answers.append(((begin, text),))
    return Examples(tuple(texts), tuple(pairs), None, "questions", "0" * 64, answers=tuple(answers))


def test_answers_are_read_from_both_layouts(tmp_path: Path) -> None:
    passage = "he was near it"
    path = squad(tmp_path / "a.json", [(passage, [("where?", [(7, "near it"), (-1, "far"), (7, "near it")])])])
    found = load_texts(path)
    assert found.answers == (((7, "near it"), (-1, "far")),)
    flat = [
        {
            "question": "where?",
            "context": passage,
            "answers": {"text": ["near it", "far"], "answer_start": [7, -1]},
        }
    ]
    (tmp_path / "b.json").write_text(json.dumps(flat))
    again = load_texts(tmp_path / "b.json")
    assert again.answers == found.answers
    assert again.sha256 == found.sha256
    other = load_texts(squad(tmp_path / "c.json", [(passage, [("where?", [(7, "near")])])]))
    assert other.sha256 != found.sha256
    assert load_texts(squad(tmp_path / "d.json", [("a b", [("w?", []), ("v?", [(0, "a")])])])).answers == (
        (),
        ((0, "a"),),
    )


def test_an_answer_that_is_elsewhere_has_no_known_place(tmp_path: Path) -> None:
    found = load_texts(squad(tmp_path / "a.json", [("he was near it", [("where?", [(8, "near it")])])]))
    assert found.answers == (((-1, "near it"),),)
    assert found.notes == (
        f"{tmp_path / 'a.json'}: 1 answers are not at the letter that it says; their place is unknown",
    )


@pytest.mark.parametrize("answers", [7, [{"answer_start": 1}], [{"text": 3}], {"text": ["a"], "answer_start": []}])
def test_answers_in_another_layout_are_told(tmp_path: Path, answers: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"question": "q", "context": "a b", "answers": answers}]))
    with pytest.raises(InputError, match=r"row 1: its answers are not in SQuAD's layout"):
        load_texts(tmp_path / "a.json")


def test_rows_taken_out_take_their_answers(tmp_path: Path) -> None:
    examples = questions(5)
    assert examples.answers is not None
    left = without_rows(examples, [1, 3])
    assert left.answers == tuple(examples.answers[row] for row in (0, 2, 4))
    limited = load_texts(
        squad(tmp_path / "a.json", [("a b c d", [(f"{n}?", [(2 * n, "abcd"[n])]) for n in range(4)])]), limit=2
    )
    for text, answers in zip(limited.texts, limited.answers or (), strict=True):
        assert answers == ((2 * int(text[0]), "abcd"[int(text[0])]),)


def test_words_that_count() -> None:
    assert overlap("a river bank", ["the bank", "sea"]) == pytest.approx(2 / 3)
    assert exact("An oil crisis.", ["x", "oil crisis"])
    assert not exact("", ["x"])
    assert overlap("", ["x"]) == 0.0
    assert overlap("the", ["a"]) == 1.0  # nothing is left of both
    assert overlap("b b", ["b"]) == pytest.approx(2 / 3)


def test_best_spans() -> None:
    spans = torch.tensor([(-1, -1), (-1, -1), (0, 3), (4, 8), (9, 12)])
    starts, ends = torch.tensor([9.0, 9, 0, 2, 1, 9]), torch.tensor([9.0, 9, 5, 0, 3, 9])
    # The best end lies before the best start, and questions and padding do not count.
    assert best_span(starts, ends, spans) == (5.0, 0, 3)
    assert best_span(starts, ends - 5.0 * (torch.arange(6) == 2), spans) == (5.0, 4, 12)
    assert best_span(starts, ends, torch.full((5, 2), -1))[1:] == (0, 0)
    generator = torch.Generator().manual_seed(0)
    starts, ends = torch.randn(60, generator=generator), torch.randn(60, generator=generator)
    every = torch.tensor([(-1, -1), *((at, at + 1) for at in range(57))])
    allowed = [(a, b) for a in range(1, 58) for b in range(a, min(a + 30, 58))]
    first, last = max(allowed, key=lambda pair: float(starts[pair[0]] + ends[pair[1]]))
    assert best_span(starts, ends, every)[1:] == (first - 1, last)


def test_targets() -> None:
    answers = [(-1, "far"), (4, "near it")]
    spans = torch.tensor([(-1, -1), (-1, -1), (-1, -1), (0, 3), (4, 8), (9, 11)])
    assert target(Window(0, {}, spans), answers) == (4, 5)
    assert target(Window(0, {}, spans[:5]), answers) is None
    assert target(Window(0, {}, spans[5:]), answers) is None
    assert target(Window(0, {}, spans), [(-1, "far")]) is None


@pytest.mark.parametrize("words", [5, 40, 100])
def test_windows_hold_every_answer_at_its_letters(tokenizer: Any, words: int) -> None:
    examples = questions(12, words)
    assert examples.pairs is not None
    assert examples.answers is not None
    every = list(windows(tokenizer, examples, 32))
    assert {window.row for window in every} == set(range(12))
    assert max(len(window.inputs["input_ids"]) for window in every) <= 32
    assert (len(every) > 12) == (words > 20)
    whole = set()
    for window in every:
        spot = target(window, examples.answers[window.row])
        assert len(window.spans) == len(window.inputs["input_ids"])
        if spot is not None:
            whole.add(window.row)
            (begin, _), (_, end) = (window.spans[at].tolist() for at in spot)
            assert examples.pairs[window.row][begin:end] == examples.answers[window.row][0][1]
    assert whole == set(range(12))


def test_long_questions_leave_room_for_the_passage(tokenizer: Any) -> None:
    long = Examples((" ".join(["ba"] * 300),), ("be " * 10 + "bo",), None, "x", "", answers=(((30, "bo"),),))
    every = list(windows(tokenizer, long, 24))
    assert sum(target(window, ((30, "bo"),)) is not None for window in every) >= 1
    with pytest.raises(InputError, match="too short for questions"):
        windows(tokenizer, long, 23)


class Knowing(nn.Module):
    """Sees the answer: its logits are highest where the given words begin and end first in a window."""

    def __init__(self, tokenizer: Any, answers: dict[str, str]) -> None:
        super().__init__()
        self.inner = build_model("bert", "qa")
        self.config = self.inner.config
        self.tokenizer, self.answers = tokenizer, answers

    def forward(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Any:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        for row, ids in enumerate(input_ids.tolist()):
            split = ids.index(3)
            wanted = self.answers[self.tokenizer.decode(ids[1:split])]
            tokens = self.tokenizer(wanted, add_special_tokens=False)["input_ids"]
            for at in range(split + 1, len(ids) - len(tokens) + 1):
                if ids[at : at + len(tokens)] == tokens:
                    output.start_logits[row, at] += 50.0
                    output.end_logits[row, at + len(tokens) - 1] += 50.0
                    break
        return output


class KnowingForQuestionAnswering(Knowing):
    pass


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_model_that_knows_is_right_in_every_window(tokenizer: Any, batch_size: int) -> None:
    examples = questions(9, 90)
    assert examples.answers is not None
    known = {text: answers[0][1] for text, answers in zip(examples.texts, examples.answers, strict=True)}
    assert len(known) == 9
    model = KnowingForQuestionAnswering(tokenizer, known)
    found = evaluate(model, examples, tokenizer=tokenizer, batch_size=batch_size, max_length=40)
    assert isinstance(found, AnswerEvaluation)
    assert found.metric == "f1"
    assert found.value == found.accuracy == 1.0
    assert (found.correct, found.total, found.unanswered) == (9, 9, 0)
    assert found.right == (True,) * 9
    assert "predictions" not in found.to_dict()
    json.dumps(found.to_dict())
    worse = evaluate(
        KnowingForQuestionAnswering(tokenizer, {text: "zzz" for text in known}), examples, tokenizer=tokenizer
    )
    assert worse.value < 1.0
    told = compare(found, worse)
    assert told["only_first_right"] == 9 - worse.correct
    assert told["only_second_right"] == 0


def test_scores_are_means_over_questions(tokenizer: Any) -> None:
    model, examples = build_model("bert", "qa"), questions(15)
    found = evaluate(model, examples, tokenizer=tokenizer)
    assert examples.answers is not None
    shares = [overlap(g, [t for _, t in a]) for g, a in zip(found.predictions, examples.answers, strict=True)]
    assert found.value == pytest.approx(sum(shares) / 15)
    assert 0 < found.value < 1
    as_share = evaluate(model, examples, tokenizer=tokenizer, metric="accuracy")
    assert as_share.value == as_share.accuracy == found.accuracy
    assert as_share.describe() == found.describe()


def test_padding_on_the_left_changes_nothing(tokenizer: Any) -> None:
    model, examples = build_model("bert", "qa"), questions(7)
    left = build_tokenizer()
    left.padding_side = "left"
    found = evaluate(model, examples, tokenizer=left, batch_size=7)
    assert found.predictions == evaluate(model, examples, tokenizer=tokenizer, batch_size=1).predictions


@pytest.mark.parametrize("together", [1, 5, 12])
def test_windows_do_not_depend_on_how_many_rows_are_cut_up_together(
    tokenizer: Any, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = questions(12, 40)
    whole = list(windows(tokenizer, examples, 32))
    monkeypatch.setattr("pyprune.tasks.answers._TOGETHER", together)
    again = list(windows(tokenizer, examples, 32))
    assert [window.row for window in whole] == [window.row for window in again]
    for one, other in zip(whole, again, strict=True):
        assert one.inputs["input_ids"] == other.inputs["input_ids"]
        assert torch.equal(one.spans, other.spans)


def test_questions_without_an_answer_are_left_out_and_counted(tokenizer: Any) -> None:
    examples = questions(4)
    assert examples.answers is not None
    half = Examples(examples.texts, examples.pairs, None, "x", "", answers=(*examples.answers[:3], ()))
    found = evaluate(build_model("bert", "qa"), half, tokenizer=tokenizer)
    assert isinstance(found, AnswerEvaluation)
    assert (found.total, found.unanswered) == (3, 1)
    assert found.describe().endswith("1 questions without an answer left out")


def test_what_does_not_fit_is_told(tokenizer: Any) -> None:
    model, examples = build_model("bert", "qa"), questions(3)
    with pytest.raises(InputError, match="has no answers"):
        evaluate(model, Examples(examples.texts, examples.pairs, None, "x", ""), tokenizer=tokenizer)
    with pytest.raises(InputError, match="has no answers"):
        evaluate(model, Examples(("a",), ("b",), None, "x", "", answers=((),)), tokenizer=tokenizer)
    with pytest.raises(InputError, match="has no passages"):
        evaluate(model, Examples(("a",), None, None, "x", "", answers=(((0, "a"),),)), tokenizer=tokenizer)
    with pytest.raises(InputError, match="not judged by matthews"):
        evaluate(model, examples, tokenizer=tokenizer, metric="matthews")
    with pytest.raises(InputError, match="batch_size"):
        evaluate(model, examples, tokenizer=tokenizer, batch_size=0)
    bare = build_tokenizer()
    bare.pad_token = None
    with pytest.raises(InputError, match="no padding token"):
        evaluate(model, examples, tokenizer=bare)
    with torch.no_grad():
        model.qa_outputs.bias.fill_(float("nan"))  # type: ignore[union-attr,operator,arg-type]
    with pytest.raises(NumericsError, match="not finite"):
        evaluate(model, examples, tokenizer=tokenizer)
