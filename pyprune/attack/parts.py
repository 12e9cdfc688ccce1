# SPDX-License-Identifier: Apache-2.0
"""Parts of TextAttack's recipes that read given files and ask in lockstep; imported after ``library.load``."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nltk
import numpy as np
import torch
from textattack.constraints import Constraint
from textattack.constraints.grammaticality import PartOfSpeech
from textattack.constraints.semantics.sentence_encoders import SentenceEncoder
from textattack.models.wrappers import ModelWrapper
from textattack.shared import AbstractWordEmbedding, WordEmbedding, attacked_text
from textattack.shared.utils import install, words_from_text
from textattack.transformations import WordSwapWordNet
from textattack.transformations.word_swaps import word_swap_homoglyph_swap
from torch import Tensor

from pyprune.attack.library import without_downloads
from pyprune.attack.lockstep import Lockstep
from pyprune.attack.tagging import Tags
from pyprune.errors import InputError

_NEAR = 50  # neighbours that any recipe asks for


class Victim(ModelWrapper):  # type: ignore[misc]
    """The model under attack, as goal functions call it: texts in, logits ``[texts, classes]`` out."""

    def __init__(self, model: Any, lockstep: Lockstep) -> None:
        self.model = model  # TextAttack looks at its class
        self._lockstep = lockstep

    def __call__(self, texts: Sequence[Any]) -> Tensor:
        return torch.stack(list(self._lockstep.ask("victim", list(texts))))


class Neighbours(AbstractWordEmbedding):  # type: ignore[misc]
    """Neighbours from a list; there are no vectors, so that no distance can be asked for."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self._words = sorted({*table, *(word for near in table.values() for word in near)})
        self._index = {word: index for index, word in enumerate(self._words)}
        self._near = table

    def word2index(self, word: str) -> int:
        return self._index[word]

    def index2word(self, index: int) -> str:
        return self._words[index]

    def nearest_neighbours(self, index: int, topn: int) -> list[int]:
        return [self._index[word] for word in self._near.get(self._words[index], ())[:topn]]

    def __getitem__(self, index: int) -> None:
        return None

    def get_mse_dist(self, a: int, b: int) -> float:
        raise NotImplementedError

    def get_cos_sim(self, a: int, b: int) -> float:
        raise NotImplementedError


class Vectors(WordEmbedding):  # type: ignore[misc]
    """TextAttack's vectors, whose own search for neighbours, where no table of them is given, does not run."""

    def nearest_neighbours(self, index: int, topn: int) -> list[int]:
        if self.nn_matrix is not None:
            near: list[int] = super().nearest_neighbours(index, topn)
            return near
        if index not in self._nn_cache:
            distances = np.linalg.norm(self.embedding_matrix - self.embedding_matrix[index], axis=1)
            distances[index] = -1.0  # itself first, then ties by place
            self._nn_cache[index] = np.argsort(distances, kind="stable")[1 : _NEAR + 1].tolist()
        found: list[int] = self._nn_cache[index][:topn]
        return found


def vectors(path: Path) -> Any:
    """Counter-fitted vectors: a text file (word and numbers on each line), or TextAttack's folder ``paragramcf``.

    Raises
    ------
    InputError
        The files are not that.
    """
    try:
        return _folder_of_vectors(path) if path.is_dir() else _file_of_vectors(path)
    except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} cannot be read as counter-fitted vectors", seen=str(error)) from None


def downloaded_vectors() -> Path:
    """Folder of the counter-fitted vectors in TextAttack's cache, fetched by TextAttack where it is not there yet."""
    install.TEXTATTACK_CACHE_DIR = os.environ.get("TA_CACHE_DIR") or os.path.expanduser("~/.cache/textattack")
    folder = Path(install.TEXTATTACK_CACHE_DIR, "word_embeddings", "paragramcf")
    if not folder.is_dir():
        if importlib.util.find_spec("requests") is None:
            raise InputError("the download of vectors needs the requests package", hint="pip install requests")
        install.requests = importlib.import_module("requests")
        try:
            install.download_from_s3("word_embeddings/paragramcf")
        except Exception as error:  # requests, urllib3 and zipfile each raise their own kinds
            raise InputError("the counter-fitted vectors could not be downloaded", seen=str(error)[:300]) from error
    return folder


def _file_of_vectors(path: Path) -> Any:
    words, rows = [], []
    with path.open(encoding="utf-8") as file:
        for line in file:
            word, *numbers = line.split(" ")
            words.append(word)
            rows.append(np.array(numbers, dtype=np.float32))
    return Vectors(np.stack(rows), {word: index for index, word in enumerate(words)}, dict(enumerate(words)))


def _folder_of_vectors(path: Path) -> Any:
    matrix = np.load(path / "paragram.npy")
    near = np.load(path / "nn.npy") if (path / "nn.npy").is_file() else None
    with (path / "wordlist.pickle").open("rb") as file:
        index = _NoClasses(file).load()
    if not isinstance(index, dict) or len(index) != len(matrix):
        raise ValueError(f"wordlist.pickle does not name the {len(matrix)} rows of paragram.npy")
    return Vectors(matrix, index, {number: word for word, number in index.items()}, near)


class _NoClasses(pickle.Unpickler):
    """Reads dictionaries of strings and numbers; whatever would import something is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}")


class Encoder(SentenceEncoder):  # type: ignore[misc]
    """Similarity of sentences by the encoder that is given; the arguments are those of ``UniversalSentenceEncoder``."""

    def __init__(
        self,
        threshold: float = 0.8,
        large: bool = False,
        metric: str = "angular",
        *,
        lockstep: Lockstep,
        **options: Any,
    ) -> None:
        super().__init__(threshold=threshold, metric=metric, **options)
        self._lockstep = lockstep

    def encode(self, sentences: list[str]) -> Tensor:
        return torch.stack(list(self._lockstep.ask("encoder", sentences)))

    def _score_list(self, starting_text: Any, transformed_texts: Any) -> Tensor:
        if not self.skip_text_shorter_than_window:
            scores: Tensor = super()._score_list(starting_text, transformed_texts)
            return scores
        # short texts get 1, whatever is computed for them
        long = [row for row, text in enumerate(transformed_texts) if text.num_words >= self.window_size]
        scores = torch.ones(len(transformed_texts))
        if long:
            scores[long] = super()._score_list(starting_text, [transformed_texts[row] for row in long])
        return scores


class Tagger(PartOfSpeech):  # type: ignore[misc]
    """The recipe's tagger, loaded once and asked once for each word in its context."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        mapped = functools.partial(nltk.tag.map_tag, "en-ptb", self.tagset)
        self._tags = Tags(nltk.tag.PerceptronTagger(), mapped)

    def _get_pos(self, before_ctx: list[str], word: str, after_ctx: list[str]) -> str:
        context = (*before_ctx, word, *after_ctx)
        return self._tags.at(context, context.index(word))


class WordNet(WordSwapWordNet):  # type: ignore[misc]
    """The recipe's synonyms, looked up once for each word."""

    def __init__(self, language: str = "eng") -> None:
        with without_downloads(nltk):
            super().__init__(language)
        self._synonyms = functools.lru_cache(maxsize=2**16)(super()._get_replacement_words)

    def _get_replacement_words(self, word: str, random: bool = False) -> list[str]:
        return list(self._synonyms(word))


@contextlib.contextmanager
def without_list_of_homoglyphs() -> Iterator[None]:
    """The wheel of TextAttack 0.3.11 lacks a list that TextBugger's homoglyph swap opens and never reads from."""
    if Path(attacked_text.__file__).with_name("intentional_homoglyphs.txt").is_file():
        yield
        return
    word_swap_homoglyph_swap.open = lambda *_, **__: io.StringIO()
    try:
        yield
    finally:
        del word_swap_homoglyph_swap.open


class Nothing(Constraint):  # type: ignore[misc]
    """Stands for a constraint that is dropped, while a recipe is built."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__(compare_against_original=True)

    def _check_constraint(self, transformed_text: Any, reference_text: Any) -> bool:
        return True


class MaskedModel:
    """A masked language model that is asked in lockstep, as recipes call it."""

    def __init__(self, model: Any, lockstep: Lockstep) -> None:
        self.config = model.config
        self._lockstep = lockstep

    def to(self, *_: Any) -> MaskedModel:
        return self

    def eval(self) -> MaskedModel:
        return self

    def __call__(self, **inputs: Tensor) -> Sequence[Tensor]:
        return list(self._lockstep.ask("masked-lm", [inputs]))


def masked_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of the longest text's tokens: recipes pad to the model's limit and read real tokens alone."""
    width = int(inputs["attention_mask"].sum(dim=1).max())
    device = next(model.parameters()).device
    with torch.inference_mode():
        output: Tensor = model(**{name: tensor[:, :width].to(device) for name, tensor in inputs.items()}).logits
    return output.float().cpu().clone()


@functools.lru_cache(maxsize=2**18)
def _words(text: str) -> tuple[str, ...]:
    return tuple(words_from_text(text))


def remember_words() -> None:
    """Let TextAttack split each piece of text into words once: it does so again for every word of every candidate."""
    attacked_text.words_from_text = lambda text: list(_words(text))
