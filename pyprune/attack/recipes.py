# SPDX-License-Identifier: Apache-2.0
"""TextAttack's recipes, built by TextAttack from the resources that are here.

A recipe's own ``build`` is called: goal function, ranking, constraints, thresholds and search are what it says. While
it runs, the names by which it takes vectors, sentence encoder, tagger and masked language model stand for classes that
read the given files, ask in lockstep and keep what they have computed (:mod:`pyprune.attack.parts`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from pyprune.attack import library
from pyprune.attack.encodings import Encodings
from pyprune.attack.lockstep import Lockstep
from pyprune.attack.queries import Text, TextModel, logits, mean_of_tokens
from pyprune.attack.records import digest
from pyprune.attack.resources import NEEDS, Resources, check, prepare_nltk, read_neighbours, sha256_of, statement
from pyprune.backends import instructions
from pyprune.errors import InputError
from pyprune.tasks.evaluate import longest_input
from pyprune.version import __version__

# Name: module and class of TextAttack.
RECIPES = {
    "textfooler": ("textfooler_jin_2019", "TextFoolerJin2019"),
    "textbugger": ("textbugger_li_2018", "TextBuggerLi2018"),
    "pwws": ("pwws_ren_2019", "PWWSRen2019"),
    "deepwordbug": ("deepwordbug_gao_2018", "DeepWordBugGao2018"),
    "bert-attack": ("bert_attack_li_2020", "BERTAttackLi2020"),
    "bae": ("bae_garg_2019", "BAEGarg2019"),
}
_VECTORS = "counter-fitted vectors (Mrkšić et al. 2016)"
_ENCODER = "Universal Sentence Encoder (Cer et al. 2018)"
# Sentence encoders by the hash of their files and the number of threads.
_ENCODERS: WeakKeyDictionary[Resources, dict[tuple[str, int], TextModel]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Attacked:
    """Outcome of one attack, in TextAttack's words.

    Attributes
    ----------
    outcome : {"succeeded", "failed", "skipped"}
        Skipped: the model is wrong without an attack.
    perturbed : Text
        What the search ended with; the text itself where it was skipped.
    queries : int
        Of the goal function.
    score, perturbed_score : float
        Goal function before and after: one minus the probability of the true class.
    prediction : int
        Class that the model gives the perturbed text.
    words, changed : int
        Words of the text, and how many are another one in the perturbed text.
    """

    outcome: str
    perturbed: Text
    queries: int
    score: float
    perturbed_score: float
    prediction: int
    words: int
    changed: int


class Attacker:
    """A recipe and a model, ready to attack many texts side by side.

    Parameters
    ----------
    recipe : str
        A key of `RECIPES`.
    model, tokenizer : transformers sequence classifier and fast tokenizer
    resources : Resources
    columns : tuple of str
        Names of the first and second text, where texts are pairs; some recipes change "hypothesis" alone.
    max_length : int, optional
        Tokens of a text.

    Attributes
    ----------
    resources : list of dict
        What each resource is (:func:`pyprune.attack.resources.statement`).
    textattack : str
        Its version.

    Raises
    ------
    InputError
        TextAttack is not installed, or the recipe lacks something it cannot do without.
    """

    def __init__(
        self,
        recipe: str,
        model: Any,
        tokenizer: Any,
        resources: Resources,
        *,
        columns: tuple[str, str] = ("premise", "hypothesis"),
        max_length: int | None = None,
    ) -> None:
        library.check_installed()
        check(recipe, resources)
        import nltk

        self.resources = prepare_nltk(recipe, resources, nltk)
        library.load()
        from importlib.metadata import version

        from pyprune.attack import parts

        self.textattack = version("textattack")
        self._columns = columns
        self._victim = TextModel(model, tokenizer, logits, max_length)
        self._channels: dict[str, Callable[[list[Any]], Sequence[Any]]] = {"victim": self._victim}
        self._lockstep = Lockstep(lambda channel, questions: self._channels[channel](questions))
        parts.remember_words()
        replaced = {
            "PartOfSpeech": parts.Tagger,
            "WordSwapWordNet": parts.WordNet,
            **self._synonyms(recipe, resources),
            **self._encoder(recipe, resources),
            **self._masked_lm(recipe, resources),
        }
        place, name = RECIPES[recipe]
        module = importlib.import_module(f"textattack.attack_recipes.{place}")
        with names_of(module, replaced), parts.without_list_of_homoglyphs():
            self._recipe = getattr(module, name).build(parts.Victim(model, self._lockstep))
        self._constraints = [
            *self._recipe.pre_transformation_constraints,
            *(entry for entry in self._recipe.constraints if not isinstance(entry, parts.Nothing)),
        ]

    def attack(
        self, texts: Sequence[Text], gold: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Attacked]]:
        """Attack all `texts` side by side, and yield ``(index, outcome)`` as each is done.

        The outcome is a function of `texts`, `gold` and `seeds` together, not of what was attacked before.
        """
        for channel in self._channels.values():
            if isinstance(channel, TextModel):
                channel.begin_group()
        attacks = [functools.partial(self._attack, text, truth) for text, truth in zip(texts, gold, strict=True)]
        return self._lockstep.run(attacks, seeds)

    def _attack(self, text: Text, truth: int) -> Attacked:
        from textattack import Attack
        from textattack.attack_results import SkippedAttackResult, SuccessfulAttackResult

        goal = copy.copy(self._recipe.goal_function)
        goal.batch_size = sys.maxsize  # the whole question at once: TextModel makes the batches
        search = copy.copy(self._recipe.search_method)
        attack = Attack(goal, self._constraints, self._recipe.transformation, search)
        pair = text if isinstance(text, str) else OrderedDict(zip(self._columns, text, strict=True))
        result = attack.attack(pair, truth)
        before, after = result.original_result, result.perturbed_result
        outcome = "failed"
        if isinstance(result, SkippedAttackResult):
            outcome = "skipped"
        elif isinstance(result, SuccessfulAttackResult):
            outcome = "succeeded"
        return Attacked(
            outcome=outcome,
            perturbed=after.attacked_text.tokenizer_input,
            queries=int(result.num_queries),
            score=float(before.score),
            perturbed_score=float(after.score),
            prediction=int(after.output),
            words=before.attacked_text.num_words,
            changed=len(before.attacked_text.all_words_diff(after.attacked_text)),
        )

    def _synonyms(self, recipe: str, resources: Resources) -> dict[str, Any]:
        if "synonyms" not in NEEDS[recipe]:
            return {}
        from textattack.transformations import WordSwapEmbedding

        from pyprune.attack import parts

        path = resources.synonyms
        if path is not None and path.suffix == ".json":
            embedding: Any = parts.Neighbours(read_neighbours(path))
            what = f"a list of neighbours in the place of the {_VECTORS}; cosines are not checked"
            self.resources.append(statement("synonyms", "stand-in", what, path, sha256_of(path)))
            return {
                "WordSwapEmbedding": functools.partial(WordSwapEmbedding, embedding=embedding),
                "WordEmbeddingDistance": parts.Nothing,
            }
        path = path or parts.downloaded_vectors()
        embedding = parts.vectors(path)
        self.resources.append(statement("synonyms", "original", _VECTORS, path, sha256_of(path)))
        from textattack.constraints.semantics import WordEmbeddingDistance

        return {
            "WordSwapEmbedding": functools.partial(WordSwapEmbedding, embedding=embedding),
            "WordEmbeddingDistance": functools.partial(WordEmbeddingDistance, embedding=embedding),
        }

    def _encoder(self, recipe: str, resources: Resources) -> dict[str, Any]:
        if "encoder" not in NEEDS[recipe]:
            return {}
        from textattack.constraints.semantics.sentence_encoders import UniversalSentenceEncoder

        from pyprune.attack import parts

        path = resources.encoder
        has_hub = importlib.util.find_spec("tensorflow_hub") is not None
        if path is not None and (path / "config.json").is_file():
            sha256 = sha256_of(path)
            self._channels["encoder"] = _shared_encoder(resources, path, sha256)
            what = f"mean of the last states of a {_type_of(path)} in the place of the {_ENCODER}"
            self.resources.append(statement("encoder", "stand-in", what, path, sha256))
        elif path is not None or (resources.download and has_hub):
            if resources.cache is not None:
                raise InputError(f"encodings of the {_ENCODER} are not kept in files", hint="without --cache")
            if not has_hub:
                raise InputError(
                    f"{path} needs tensorflow_hub", hint="pip install tensorflow_hub, or a transformers model"
                )
            original = UniversalSentenceEncoder()
            if path is not None:
                original._tfhub_url = str(path)
            self._channels["encoder"] = lambda texts: list(torch.as_tensor(original.encode(texts)))
            self.resources.append(statement("encoder", "original", _ENCODER, path or original._tfhub_url))
        else:
            what = f"no {_ENCODER}: candidates are not held to a similarity of sentences"
            self.resources.append(statement("encoder", "dropped", what))
            return {"UniversalSentenceEncoder": parts.Nothing}
        return {"UniversalSentenceEncoder": functools.partial(parts.Encoder, lockstep=self._lockstep)}

    def _masked_lm(self, recipe: str, resources: Resources) -> dict[str, Any]:
        if "masked-lm" not in NEEDS[recipe]:
            return {}
        from textattack.transformations import WordSwapMaskedLM

        from pyprune.attack import parts
        from pyprune.commands.checkpoints import open_model, open_tokenizer

        name = str(resources.masked_lm)
        model, tokenizer = open_model(name, head="ForMaskedLM"), open_tokenizer(name)
        self._channels["masked-lm"] = lambda questions: [parts.masked_logits(model, inputs) for inputs in questions]
        folder = Path(name)
        self.resources.append(
            statement(
                "masked-lm", "given", f"a {type(model).__name__}", name, sha256_of(folder) if folder.is_dir() else None
            )
        )
        return {
            "WordSwapMaskedLM": functools.partial(
                WordSwapMaskedLM,
                masked_language_model=parts.MaskedModel(model, self._lockstep),
                tokenizer=tokenizer,
                max_length=min(512, longest_input(model, tokenizer, None)),
            )
        }


def _shared_encoder(resources: Resources, path: Path, sha256: str) -> TextModel:
    """The encoder of `resources`, which keeps its encodings as long as they live: other models meet many of them."""
    encoders = _ENCODERS.setdefault(resources, {})
    threads = torch.get_num_threads()  # they may divide sums otherwise
    if (sha256, threads) not in encoders:
        encoders[sha256, threads] = _sentence_encoder(path, resources.cache, sha256, threads)
    return encoders[sha256, threads]


def _sentence_encoder(path: Path, cache: Path | None, sha256: str, threads: int) -> TextModel:
    from transformers import AutoModel

    from pyprune.commands.checkpoints import open_tokenizer

    try:
        model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True).float().eval()
    except (OSError, ValueError, KeyError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"{path}: the sentence encoder cannot be opened", seen=text) from error
    encoder = TextModel(model, open_tokenizer(str(path)), mean_of_tokens)
    if cache is not None:
        if not encoder.keeps:
            raise InputError(
                f"encodings of a {_type_of(path)} cannot be kept in files: their last bits depend on the batch",
                hint="without --cache",
            )
        about = {
            "encoder": sha256,
            "max_length": encoder.max_length,
            "threads": threads,
            "instructions": instructions(),
            "torch": str(torch.__version__),
            "pyprune": __version__,
        }
        encoder.stored = Encodings(cache, digest(about))
    return encoder


def _type_of(path: Path) -> str:
    from transformers import AutoConfig

    return str(AutoConfig.from_pretrained(path, local_files_only=True).model_type)


@contextlib.contextmanager
def names_of(module: Any, values: dict[str, Any]) -> Iterator[None]:
    """Names of a module that stand for something else while the block runs; those it does not have are passed over."""
    before = {name: getattr(module, name) for name in values if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
