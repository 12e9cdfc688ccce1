# SPDX-License-Identifier: Apache-2.0
"""NLTK's perceptron tagger with the same tags, sooner: no tag is computed twice, and none that nobody reads.

The tagger goes from left to right. A tag follows from the word, two words on either side and the two tags before, by
the largest sum of weights over features (Collins 2002, an averaged perceptron).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


class Tags:
    """Tags of single words in their context.

    Parameters
    ----------
    tagger : nltk.tag.PerceptronTagger
    mapped : callable
        Takes a tag of the tagger, gives the one that is asked for.
    """

    def __init__(self, tagger: Any, mapped: Callable[[str], str]) -> None:
        self._tagger = tagger
        # among equal sums the last tag of the alphabet is taken
        self._classes = sorted(tagger.classes, reverse=True)
        self._place = {tag: place for place, tag in enumerate(self._classes)}
        self._weights: dict[str, Any] = {}
        self._mapped = functools.lru_cache(maxsize=None)(mapped)
        self._predict = functools.lru_cache(maxsize=2**18)(self._predicted)
        self._tag_at = functools.lru_cache(maxsize=2**18)(self._tag_of)

    def at(self, context: tuple[str, ...], index: int) -> str:
        """Tag of the word at `index` of `context`."""
        return str(self._tag_at(context[: index + 3], index))  # two words after it are read

    def _tag_of(self, context: tuple[str, ...], index: int) -> str:
        tagger = self._tagger
        before, before_that = tagger.START
        padded = tagger.START + [tagger.normalize(word) for word in context] + tagger.END
        tag = ""
        for place, word in enumerate(context[: index + 1]):
            tag = tagger.tagdict.get(word) or self._predict(word, tuple(padded[place : place + 5]), before, before_that)
            before_that, before = before, tag
        return str(self._mapped(tag))

    def _predicted(self, word: str, near: tuple[str, ...], before: str, before_that: str) -> str:
        # the words around stand where the tagger looks for those around the first word of a sentence
        features = self._tagger._get_features(0, word, near, before, before_that)
        sums = np.zeros(len(self._classes))
        for name in features:  # each counts once; in their order, which decides the last bits
            if name in self._tagger.model.weights:
                sums += self._weights_of(name)
        return str(self._classes[int(sums.argmax())])

    def _weights_of(self, feature: str) -> Any:
        """Weights of all classes, zeros where there are none."""
        if feature not in self._weights:
            row = np.zeros(len(self._classes))
            for tag, weight in self._tagger.model.weights[feature].items():
                row[self._place[tag]] = weight
            self._weights[feature] = row
        return self._weights[feature]
