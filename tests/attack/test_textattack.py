# SPDX-License-Identifier: Apache-2.0
"""The real recipes beside plain TextAttack, on a tiny model; skipped where TextAttack is not installed."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import WORDS, build_checkpoint, build_sentences, build_tokenizer

from pyprune import attack, tasks
from pyprune.attack import library
from pyprune.attack.recipes import RECIPES, Attacker, names_of
from pyprune.attack.resources import Resources
from pyprune.commands.checkpoints import open_model
from pyprune.errors import InputError

pytestmark = pytest.mark.skipif(
    bool(library.missing()), reason="TextAttack is not installed: pyprune attack --install-line"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_model(str(build_checkpoint(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Resources:
    """Stop words, neighbours of the tiny words, a tiny sentence encoder and a tiny masked language model."""
    folder = tmp_path_factory.mktemp("resources")
    (folder / "nltk_data" / "corpora" / "stopwords").mkdir(parents=True)
    (folder / "nltk_data" / "corpora" / "stopwords" / "english").write_text("ba\nbe\n")
    near = {word: [other for other in WORDS if other[1] == word[1] and other != word] for word in WORDS}
    (folder / "synonyms.json").write_text(json.dumps(near))
    build_checkpoint(folder / "sentence-encoder")
    build_checkpoint(folder / "masked-lm", head="masked_lm", vocab_size=len(build_tokenizer()))
    import nltk

    nltk.data.path.insert(0, str(folder / "nltk_data"))
    library.load()
    return Resources.of(folder)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, model: Any) -> tasks.Examples:
    """Sentences the model is right on, but for two."""
    texts = build_sentences(12, seed=4)
    with torch.inference_mode():
        batch = build_tokenizer()(texts, padding=True, return_tensors="pt")
        right = model(**batch).logits.argmax(dim=1).tolist()
    labels = [1 - label if row in (3, 7) else label for row, label in enumerate(right)]
    path = tmp_path_factory.mktemp("data") / "dev.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in zip(texts, labels, strict=True)))
    return tasks.load_texts(path, purpose="evaluation")


def plainly(recipe: str, model: Any, examples: tasks.Examples, seeds: list[int], names: dict[str, Any]) -> list[tuple]:
    """TextAttack's own loop and wrapper, one example after another."""
    from textattack.models.wrappers import HuggingFaceModelWrapper

    place, name = RECIPES[recipe]
    module = importlib.import_module(f"textattack.attack_recipes.{place}")
    with names_of(module, names):
        built = getattr(module, name).build(HuggingFaceModelWrapper(model, build_tokenizer()))
    found = []
    for text, label, seed in zip(examples.texts, examples.labels or (), seeds, strict=True):
        random.seed(seed)
        np.random.seed(seed)
        result = built.attack(text, int(label or 0))
        kind = type(result).__name__.removesuffix("AttackResult")
        found.append((kind, result.perturbed_result.attacked_text.text, result.num_queries))
    return found


KINDS = {"succeeded": "Successful", "failed": "Failed", "skipped": "Skipped"}


def test_deepwordbug_is_that_of_textattack(model: Any, examples: tasks.Examples, files: Resources) -> None:
    state = random.getstate()
    labels = [int(label or 0) for label in examples.labels or ()]
    seeds = list(range(len(labels)))
    attacker = Attacker("deepwordbug", model, build_tokenizer(), files)
    ours: dict[int, Any] = dict(attacker.attack(examples.texts, labels, seeds))
    assert random.getstate() == state
    found = [(KINDS[ours[row].outcome], ours[row].perturbed, ours[row].queries) for row in range(len(labels))]
    assert found == plainly("deepwordbug", model, examples, seeds, {})
    assert sorted(row for row in ours if ours[row].outcome == "skipped") == [3, 7]
    assert len(set(found)) > 2


def test_bert_attack_is_that_of_textattack(model: Any, examples: tasks.Examples, files: Resources) -> None:
    """Masked language model and sentence encoder through the lockstep, and as plain calls."""
    import functools

    from textattack.constraints.semantics.sentence_encoders import SentenceEncoder
    from textattack.transformations import WordSwapMaskedLM
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(files.encoder).eval()

    class Plain(SentenceEncoder):  # type: ignore[misc]
        def encode(self, sentences: list[str]) -> torch.Tensor:
            batch = build_tokenizer()(sentences, padding=True, return_tensors="pt")
            with torch.no_grad():
                states = encoder(**batch).last_hidden_state
            keep = batch["attention_mask"].unsqueeze(-1)
            return (states * keep).sum(1) / keep.sum(1)

    masked = functools.partial(
        WordSwapMaskedLM,
        masked_language_model=open_model(str(files.masked_lm)),
        tokenizer=build_tokenizer(),
        max_length=64,
    )
    labels = [int(label or 0) for label in examples.labels or ()]
    seeds = [0] * len(labels)
    attacker = Attacker("bert-attack", model, build_tokenizer(), files)
    ours: dict[int, Any] = dict(attacker.attack(examples.texts, labels, seeds))
    found = [(KINDS[ours[row].outcome], ours[row].perturbed, ours[row].queries) for row in range(len(labels))]
    names = {"UniversalSentenceEncoder": Plain, "WordSwapMaskedLM": masked}
    assert found == plainly("bert-attack", model, examples, seeds, names)
    assert [entry["kind"] for entry in attacker.resources] == ["original", "stand-in", "given"]


def test_what_is_dropped_and_what_stands_in_is_stated(model: Any, examples: tasks.Examples, files: Resources) -> None:
    alone = Resources(nltk_data=files.nltk_data, synonyms=files.synonyms)
    attacker = Attacker("textbugger", model, build_tokenizer(), alone)
    assert [(entry["name"], entry["kind"]) for entry in attacker.resources] == [
        ("stopwords", "original"),
        ("synonyms", "stand-in"),
        ("encoder", "dropped"),
    ]
    names = {type(entry).__name__ for entry in attacker._constraints}
    assert names == {"RepeatModification", "StopwordModification"}
    whole = Attacker("textbugger", model, build_tokenizer(), files)
    assert [entry["kind"] for entry in whole.resources] == ["original", "stand-in", "stand-in"]
    constraint = whole._constraints[-1]
    assert (constraint.threshold, constraint.metric) == (0.8, "angular")  # the recipe's own
    assert len(dict(whole.attack(examples.texts[:4], [0, 1, 0, 1], [0, 1, 2, 3]))) == 4


def test_models_share_what_is_known_of_sentences(model: Any, files: Resources) -> None:
    """Attackers of the same resources have one encoder, as long as the resources live and threads are the same."""

    def encoder(resources: Resources) -> Any:
        return Attacker("textbugger", model, build_tokenizer(), resources)._channels["encoder"]

    first, threads = encoder(files), torch.get_num_threads()
    assert encoder(files) is first
    assert encoder(Resources(files.nltk_data, files.synonyms, Path(f"{files.encoder}/."), download=True)) is not first
    torch.set_num_threads(threads + 1)
    try:
        assert encoder(files) is not first
    finally:
        torch.set_num_threads(threads)
    assert encoder(files) is first


def test_encodings_of_an_earlier_run_change_nothing(
    model: Any, examples: tasks.Examples, files: Resources, tmp_path: Path
) -> None:
    """Without a file, with an empty one, and with all encodings from the file."""
    found = []
    for cache in (None, tmp_path, tmp_path):
        resources = Resources(files.nltk_data, files.synonyms, files.encoder, cache=cache)
        options: dict[str, Any] = {"tokenizer": build_tokenizer(), "recipe": "textbugger", "resources": resources}
        found.append(attack.run(model, examples, **options).records)
    assert found[0] == found[1] == found[2]
    assert len(list(tmp_path.glob("*.sqlite"))) == 1


def test_a_run_resumed_by_the_real_attacker(
    model: Any, examples: tasks.Examples, files: Resources, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "tokenizer": build_tokenizer(),
        "recipe": "deepwordbug",
        "resources": files,
        "together": 5,
    }
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    result = attack.run(model, examples, records=whole, **options)
    assert result.summary["skipped"] == 2
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:3] + lines[6:7] + [lines[8][:20]]))
    attack.run(model, examples, records=cut, resume=True, **options)
    assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_workers_give_the_same_records(model: Any, examples: tasks.Examples, files: Resources) -> None:
    options: dict[str, Any] = {
        "tokenizer": build_tokenizer(),
        "recipe": "deepwordbug",
        "resources": files,
        "together": 5,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each of the workers has: the number is part of the settings
    try:
        alone = attack.run(model, examples, **options)
        assert attack.run(model, examples, workers=2, **options).records == alone.records
    finally:
        torch.set_num_threads(threads)


def test_vectors_are_read_from_both_forms(
    model: Any, tmp_path: Path, files: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    from pyprune.attack import parts

    rows = np.array([[1, 0], [0.9, 0.1], [0, 1], [-1, 0]], dtype=np.float32)
    words = ["good", "fine", "odd", "bad"]
    text = tmp_path / "counter-fitted-vectors.txt"
    text.write_text("".join(f"{w} {r[0]} {r[1]}\n" for w, r in zip(words, rows, strict=True)))
    folder = tmp_path / "paragramcf"
    folder.mkdir()
    np.save(folder / "paragram.npy", rows)
    (folder / "wordlist.pickle").write_bytes(pickle.dumps({word: row for row, word in enumerate(words)}))
    for path in (text, folder):
        found = parts.vectors(path)
        index = found.word2index("good")
        assert [found.index2word(near) for near in found.nearest_neighbours(index, 2)] == ["fine", "odd"]
        assert found.get_cos_sim("good", "bad") == -1.0
    # a folder that TextAttack has fetched before is used without a network
    monkeypatch.setenv("TA_CACHE_DIR", str(tmp_path))
    (tmp_path / "word_embeddings").mkdir()
    cached = folder.rename(tmp_path / "word_embeddings" / "paragramcf")
    resources = Resources(nltk_data=files.nltk_data, download=True)
    attacker = Attacker("textbugger", model, build_tokenizer(), resources)
    assert [entry["kind"] for entry in attacker.resources] == ["original", "original", "dropped"]
    assert attacker.resources[1]["source"] == str(cached)
    folder = cached
    (folder / "wordlist.pickle").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(InputError, match="names pathlib"):
        parts.vectors(folder)


def test_loggers_of_others_go_on(tmp_path: Path) -> None:
    # in a process of its own: here TextAttack is imported already
    code = (
        "import logging; on, off = logging.getLogger('on'), logging.getLogger('off'); off.disabled = True\n"
        "from pyprune.attack import library; library.load()\n"
        "assert (on.disabled, off.disabled) == (False, True), (on.disabled, off.disabled)"
    )
    (tmp_path / "corpora" / "stopwords").mkdir(parents=True)
    (tmp_path / "corpora" / "stopwords" / "english").write_text("ba\n")
    environment = os.environ | {"NLTK_DATA": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
