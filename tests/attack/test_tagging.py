# SPDX-License-Identifier: Apache-2.0
"""Tags of single words are those that NLTK's tagger gives the whole context."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pyprune.attack.tagging import Tags

WORDS = ("can", "dog", "run", "runs", "old-time", "1999", "12th", "The", "the", "odd", "x", "can't")


@pytest.fixture(scope="module")
def tagger() -> Any:
    """Trained on random sentences whose tags follow from the word and the tag before, with exceptions."""
    perceptron = pytest.importorskip("nltk.tag.perceptron")
    draw = random.Random(5)
    sentences = []
    for _ in range(60):
        tag, sentence = "X", []
        for word in draw.choices(WORDS, k=draw.randint(1, 8)):
            tag = draw.choice("AB") if word == "can" else "ABCD"[(len(word) + (tag == "B")) % 4]
            sentence.append((word, tag))
        sentences.append(sentence)
    state = random.getstate()
    random.seed(1)
    made = perceptron.PerceptronTagger(load=False)
    made.train(sentences, nr_iter=2)
    made.tagdict["odd"] = "D"
    random.setstate(state)
    return made


def test_tags_are_those_of_the_whole_context(tagger: Any) -> None:
    tags = Tags(tagger, str.lower)
    draw = random.Random(6)
    seen = set()
    for _ in range(400):
        context = tuple(draw.choices((*WORDS, "unseen", "Dog"), k=draw.randint(1, 8)))
        index = draw.randrange(len(context))
        tag = tags.at(context, index)
        assert tag == tagger.tag(list(context))[index][1].lower()
        seen.add(tag)
    assert seen == {"a", "b", "c", "d"}


def test_equal_sums_take_the_last_tag(tagger: Any) -> None:
    """A word of which nothing is known, without the constant feature."""
    weights = dict(tagger.model.weights)
    tagger.model.weights.clear()
    try:
        assert Tags(tagger, str.lower).at(("new",), 0) == tagger.tag(["new"])[0][1].lower() == "d"
    finally:
        tagger.model.weights.update(weights)
