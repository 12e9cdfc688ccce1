# SPDX-License-Identifier: Apache-2.0
"""Queries per second of pyprune.attack beside TextAttack's own loop: same model, recipe, rows and resources, in turns.

"as it is" is TextAttack's recipe and its wrapper of transformers models: every query is padded to the length that the
tokenizer states, and NLTK's tagger is read from its files for every candidate. "helped" is the same with texts padded
to --max-length tokens and the tagger read once. TextAttack takes one row after another; both sides start anew in every
round, with nothing known of earlier ones. Outcome, perturbed text and queries of each row have to be the same on both
sides, or the benchmark stops. Loading is not in the times. Seconds of the processor, of all threads together, stand
beside those of the clock: on a machine that is not idle they are the steadier ones.

    python benchmarks/bench_attack.py --model MODEL --data dev.tsv --resources DIR --threads 2

The recipes need TextAttack: `pyprune attack --install-line` prints the command that installs it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Report, arguments
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from pyprune import demo, tasks
from pyprune.attack import library
from pyprune.attack.recipes import RECIPES, Attacker, names_of
from pyprune.attack.resources import Resources
from pyprune.errors import PypruneError
from pyprune.tasks.evaluate import classes_of
from pyprune.tasks.labels import gold_classes

TOGETHER = 32  # rows side by side, the default of `pyprune attack`
OUTCOMES = {"SuccessfulAttackResult": "succeeded", "FailedAttackResult": "failed", "SkippedAttackResult": "skipped"}
Found = list[tuple[str, Any, int]]


def main() -> int:
    options = arguments(__doc__ or "", rounds=3, add=flags)
    try:
        library.check_installed()
        with tempfile.TemporaryDirectory() as folder:
            measure(quick(options, Path(folder)) if options.quick else options)
    except PypruneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=str(demo.model_folder()), help="a classifier (default: the demo's)")
    parser.add_argument("--data", default=str(demo.test_file()), help="labelled rows (default: the demo's)")
    parser.add_argument("--resources", help="folder with what the recipe needs (docs/attacks.md)")
    parser.add_argument("--recipe", default="textfooler", choices=("textfooler", "textbugger", "deepwordbug"))
    parser.add_argument("--rows", type=int, default=60, help="rows attacked, helped (default: %(default)s)")
    parser.add_argument("--rows-as-it-is", type=int, default=10, help="0: leave it out (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text (default: %(default)s)")


def quick(options: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """A few rows of the demo and resources made from its words; its model is the sentence encoder, too."""
    stop = folder / "nltk_data" / "corpora" / "stopwords"
    stop.mkdir(parents=True)
    (stop / "english").write_text("the\na\nof\n", encoding="utf-8")
    words = sorted({word for text in tasks.load_texts(str(demo.test_file())).texts for word in text.lower().split()})
    near = {word: words[place + 1 : place + 4] for place, word in enumerate(words)}
    (folder / "synonyms.json").write_text(json.dumps(near), encoding="utf-8")
    (folder / "sentence-encoder").symlink_to(demo.model_folder())
    options.recipe, options.resources, options.rows, options.rows_as_it_is = "textbugger", str(folder), 4, 2
    return options


def measure(options: argparse.Namespace) -> None:
    """Both baselines, each beside ours on its rows."""
    report = Report("attack", write_file=not options.no_write)
    if options.go_on:
        report.resume()
    model = AutoModelForSequenceClassification.from_pretrained(options.model).float().eval()
    for helped, rows in ((True, options.rows), (False, options.rows_as_it_is)):
        if rows < 1:
            continue
        examples = tasks.load_texts(options.data, limit=rows, seed=0, purpose="evaluation")
        gold = gold_classes(examples, model.config, classes_of(model))
        rounds = options.rounds if helped else 1
        case = {"recipe": options.recipe, "textattack": "helped" if helped else "as it is", "rows": rows}
        report.record({**case, **compare(options, model, examples.texts, gold, helped, rounds)})
    report.write()


def compare(
    options: argparse.Namespace, model: Any, texts: Sequence[str], gold: Sequence[int], helped: bool, rounds: int
) -> dict[str, Any]:
    """Rounds in turns; queries per second of each side, their ratio, and what was attacked."""
    sides = {
        "pyprune": functools.partial(ours, options, model),
        "textattack": functools.partial(theirs, options, model),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Found] = {}
    for turn in range(rounds):
        for name in sorted(sides, reverse=bool(turn % 2)):
            found[name], taken, busy = sides[name](texts, gold, helped)
            seconds[name].append(taken)
            processor[name].append(busy)
            print(f"    {name}: {taken:.1f} s, of the processor {busy:.1f} s", flush=True)
        different = [row for row, (a, b) in enumerate(zip(*found.values(), strict=True)) if a != b]
        if different:
            row = different[0]
            raise PypruneError(
                f"outcomes differ in {len(different)} rows; {texts[row]!r}: {[f[row] for f in found.values()]}"
            )
    queries = sum(entry[2] for entry in found["pyprune"])
    rates = {name: queries / statistics.median(taken) for name, taken in seconds.items()}
    return {
        "queries": queries,
        "outcomes": {name: [entry[0] for entry in found["pyprune"]].count(name) for name in OUTCOMES.values()},
        "seconds": seconds,
        "queries_per_second": rates,
        "ratio": ratio(seconds),
        "processor_seconds": processor,
        "processor_ratio": ratio(processor),
    }


def ratio(seconds: dict[str, list[float]]) -> float:
    """TextAttack's time as a multiple of ours, the median over rounds."""
    pairs = zip(seconds["textattack"], seconds["pyprune"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def ours(options: argparse.Namespace, model: Any, texts: Sequence[str], gold: Sequence[int], _: bool) -> Any:
    """What was found, and the seconds it took."""
    resources = Resources.of(options.resources)  # a new one: an earlier round's encodings are not known
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    attacker = Attacker(options.recipe, model, tokenizer, resources, max_length=options.max_length)
    (clock, processor), found = now(), {}
    for start in range(0, len(texts), TOGETHER):
        group = slice(start, start + TOGETHER)
        count = len(texts[group])
        for place, outcome in attacker.attack(texts[group], gold[group], [0] * count):
            found[start + place] = (outcome.outcome, outcome.perturbed, outcome.queries)
    return [found[row] for row in range(len(texts))], now()[0] - clock, now()[1] - processor


def now() -> tuple[float, float]:
    """The clock and what the processor has done for this process, in seconds."""
    return time.perf_counter(), time.process_time()


def theirs(options: argparse.Namespace, model: Any, texts: Sequence[str], gold: Sequence[int], helped: bool) -> Any:
    """The same of TextAttack's loop."""
    library.load()
    from textattack.models.wrappers import HuggingFaceModelWrapper

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if helped:
        tokenizer.model_max_length = options.max_length
    with plain(options, helped) as module:
        built = getattr(module, RECIPES[options.recipe][1]).build(HuggingFaceModelWrapper(model, tokenizer))
        (clock, processor), found = now(), []
        for text, truth in zip(texts, gold, strict=True):
            random.seed(0)
            np.random.seed(0)
            result = built.attack(text, truth)
            after = result.perturbed_result.attacked_text.text
            found.append((OUTCOMES[type(result).__name__], after, result.num_queries))
        return found, now()[0] - clock, now()[1] - processor


@contextlib.contextmanager
def plain(options: argparse.Namespace, helped: bool) -> Iterator[Any]:
    """The module of the recipe, with the files of --resources in the place of what TextAttack would download."""
    import nltk
    from textattack.shared import attacked_text
    from textattack.shared.utils import words_from_text
    from textattack.transformations import WordSwapEmbedding

    from pyprune.attack import parts
    from pyprune.attack.resources import read_neighbours

    resources = Resources.of(options.resources)
    names: dict[str, Any] = {"UniversalSentenceEncoder": parts.Nothing, "WordEmbeddingDistance": parts.Nothing}
    if resources.synonyms is not None:
        embedding = parts.Neighbours(read_neighbours(resources.synonyms))
        names["WordSwapEmbedding"] = functools.partial(WordSwapEmbedding, embedding=embedding)
    if resources.encoder is not None:
        names["UniversalSentenceEncoder"] = functools.partial(sentence_encoder(), folder=str(resources.encoder))
    module = importlib.import_module(f"textattack.attack_recipes.{RECIPES[options.recipe][0]}")
    remembered, read_tagger = attacked_text.words_from_text, nltk.tag._get_tagger
    attacked_text.words_from_text = words_from_text
    if helped:
        nltk.tag._get_tagger = functools.lru_cache(read_tagger)
    try:
        with names_of(module, names), parts.without_list_of_homoglyphs():
            yield module
    finally:
        attacked_text.words_from_text, nltk.tag._get_tagger = remembered, read_tagger


def sentence_encoder() -> Any:
    """The stand-in encoder as one writes it for TextAttack: texts padded to the longest, real tokens averaged."""
    from textattack.constraints.semantics.sentence_encoders import SentenceEncoder

    class Plain(SentenceEncoder):  # type: ignore[misc]
        def __init__(
            self, threshold: float = 0.8, large: bool = False, metric: str = "angular", *, folder: str, **rest: Any
        ):
            super().__init__(threshold=threshold, metric=metric, **rest)
            self._encoder = AutoModel.from_pretrained(folder).float().eval()
            self._tokenizer = AutoTokenizer.from_pretrained(folder)

        def encode(self, sentences: list[str]) -> torch.Tensor:
            batch = self._tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                states = self._encoder(**batch).last_hidden_state
            keep = batch["attention_mask"].unsqueeze(-1)
            mean: torch.Tensor = (states * keep).sum(1) / keep.sum(1)
            return mean

    return Plain


if __name__ == "__main__":
    sys.exit(main())
