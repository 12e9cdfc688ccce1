# SPDX-License-Identifier: Apache-2.0
"""Attack a classifier on labelled examples, and say how it withstands.

With an output folder ``pyprune attack`` leaves two files in it. ``attack.jsonl`` has one record for each example
(:mod:`pyprune.attack.records`). ``attack.json`` is the summary, one object:

``accuracy``, ``aua``, ``asr``
    Rates in 0 .. 1 (:func:`pyprune.attack.statistics.summarise`); asr may be null.
``intervals``
    Of these three by name, each ``[low, high]``, Wilson, 95 %; asr's may be null.
``total``, ``succeeded``, ``failed``, ``skipped``
    Counts; the last three add up to the first.
``queries_mean``, ``words_changed``
    Queries of an attacked example; share of words changed by a success. May be null.
``recipe``, ``textattack``, ``seed``, ``max_length``
    The attack and the library's version.
``resources``
    List of objects: ``name``, ``kind`` ("original", "stand-in", "dropped", "given"), ``what``, ``source``, ``sha256``.
``model``, ``model_sha256``
    Name as it was given; hash of config and weights.
``source``, ``sha256``
    The data; hash of the rows that were attacked.
``attack``, ``settings``
    Hashes as in the records.
``seconds``, ``queries_per_second``
    Of the run that ended; resumed records cost it nothing.
``against``, ``comparison``
    Only with a second model: its summary, and what :func:`pyprune.attack.statistics.compare` says. Differences are the
    first model minus the second.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from pyprune.attack.recipes import RECIPES, Attacked, Attacker
from pyprune.attack.records import Journal, Record, digest
from pyprune.attack.resources import Resources
from pyprune.attack.statistics import summarise
from pyprune.attack.workers import Group, Outcomes, attack_groups, attack_in_processes
from pyprune.errors import InputError
from pyprune.files import write_atomically, write_error
from pyprune.methods.journal import model_sha256
from pyprune.tasks.evaluate import classes_of, longest_input
from pyprune.tasks.labels import gold_classes
from pyprune.tasks.loading import Examples

RECORDS = "attack.jsonl"
SUMMARY = "attack.json"


class Progress(Protocol):
    """What a long call reports to (see :mod:`pyprune.progress` for the one on the terminal)."""

    def start(self, total_steps: int, description: str) -> None: ...

    def advance(self, description: str) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class AttackResult:
    """How a model withstood.

    Attributes
    ----------
    summary : dict
        The keys listed above, without the last two.
    records : tuple of dict
        One for each example, in the order of the data (not in ``to_dict``).
    """

    summary: dict[str, Any]
    records: tuple[Record, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able summary, without the records."""
        return dict(json.loads(json.dumps(self.summary)))

    def save(self, folder: str | Path) -> Path:
        """Write the summary to ``attack.json`` in `folder`, where ``pyprune report`` looks for it; returns the file."""
        return write_summary(folder, self.to_dict())

    def describe(self) -> str:
        """``"Acc 95.00 %, Aua 11.67 %, Asr 87.72 % (50 of 57 attacks, 3 skipped)"``."""
        found = self.summary
        attacked = found["succeeded"] + found["failed"]
        asr = "no attack" if found["asr"] is None else f"Asr {100 * found['asr']:.2f} %"
        return (
            f"Acc {100 * found['accuracy']:.2f} %, Aua {100 * found['aua']:.2f} %, {asr} "
            f"({found['succeeded']} of {attacked} attacks, {found['skipped']} skipped)"
        )


def run(
    model: Any,
    examples: Examples,
    *,
    tokenizer: Any,
    recipe: str = "textfooler",
    resources: Resources | None = None,
    records: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    together: int = 32,
    workers: int = 1,
    max_length: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    attacker: Callable[..., Any] = Attacker,
) -> AttackResult:
    """Attack every example by a recipe of TextAttack.

    Parameters
    ----------
    model, tokenizer : transformers sequence classifier and fast tokenizer
        Neither is changed.
    examples : Examples
        With labels.
    recipe : {"textfooler", "textbugger", "pwws", "deepwordbug", "bert-attack", "bae"}
    resources : Resources, optional
        Files the recipe needs.
    records : str or Path, optional
        File that each record is added to as it comes.
    resume : bool
        Go on with that file. The outcome is that of a run without a break.
    seed : int
        Of recipes that draw; each example has random numbers of its own.
    together : int
        Examples attacked side by side, whose queries share batches. Part of the settings.
    workers : int
        Processes. The threads of torch are divided among them; a script that asks for more than one needs
        ``if __name__ == "__main__":``.
    max_length : int, optional
        Tokens kept of each text; by default what the model can take.
    name : str, optional
        Of the model, for the summary.
    progress : optional
        Receives ``start(total, text)``, ``advance(text)``, ``finish()``.
    attacker : callable
        What makes the object that attacks; called with recipe, model, tokenizer and resources.

    Raises
    ------
    InputError
        TextAttack or a resource is missing, labels do not fit the model, or the records are of another run.
    NumericsError
        The model's outputs are not finite.
    """
    if recipe not in RECIPES:
        raise InputError(f"recipe {recipe!r} is not known", hint=f"one of {', '.join(RECIPES)}")
    for what, value in (("together", together), ("workers", workers)):
        if value < 1:
            raise InputError(f"{what} has to be at least 1", seen=str(value))
    gold = gold_classes(examples, model.config, classes_of(model))
    length = longest_input(model, tokenizer, max_length)
    threads = max(torch.get_num_threads() // workers, 1)
    make = functools.partial(
        attacker, recipe, model, tokenizer, resources or Resources(), columns=_columns(examples), max_length=length
    )
    ready = make()
    attack = {
        "recipe": recipe,
        "textattack": ready.textattack,
        "resources": [[entry["name"], entry["kind"], entry["sha256"]] for entry in ready.resources],
        "data": examples.sha256,
        "seed": seed,
        "max_length": length,
    }
    weights = model_sha256(model.config, sorted(model.state_dict().items()))
    settings = {**attack, "model": weights, "together": together, "threads": threads, "torch": str(torch.__version__)}
    hashes = {"attack": digest(attack), "settings": digest(settings)}

    begin, queries = time.perf_counter(), 0
    with Journal(Path(records) if records is not None else None, hashes["settings"], resume=resume) as journal:
        texts = examples.inputs
        groups = _groups(texts, gold, seed, together, journal)
        alone = workers == 1
        outcomes = attack_groups(ready, groups) if alone else attack_in_processes(make, groups, workers, threads)
        with closing(_watched(outcomes, sum(len(group.indices) for group in groups), progress)) as watched:
            for index, outcome in watched:
                queries += outcome.queries
                line = examples.lines[index] if examples.lines else index + 1
                journal.add({"index": index, "line": line, **_record(texts[index], gold[index], outcome), **hashes})
        kept = journal.finish()
    seconds = time.perf_counter() - begin
    summary = {
        **summarise(kept),
        "recipe": recipe,
        "textattack": ready.textattack,
        "resources": ready.resources,
        "seed": seed,
        "max_length": length,
        "model": name,
        "model_sha256": weights,
        "source": examples.source,
        "sha256": examples.sha256,
        **hashes,
        "seconds": seconds,
        "queries_per_second": queries / seconds,
    }
    return AttackResult(summary=summary, records=tuple(kept))


def write_summary(folder: str | Path, summary: dict[str, Any]) -> Path:
    """Write ``attack.json``, whole or not at all."""
    path = Path(folder).expanduser() / SUMMARY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, path.parent, "the summary") from error
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode() + b"\n", "the summary")
    return path


def _columns(examples: Examples) -> tuple[str, str]:
    task = examples.task
    if task is not None and task.text and task.text_pair:
        return task.text, task.text_pair
    return "premise", "hypothesis"


def _groups(texts: Sequence[Any], gold: Sequence[int], seed: int, together: int, journal: Journal) -> list[Group]:
    """Groups with an example that has no record yet, whole: who shares a batch must not depend on a break."""
    found = []
    for begin in range(0, len(texts), together):
        rows = range(begin, min(begin + together, len(texts)))
        if all(row in journal.records for row in rows):
            continue
        found.append(
            Group(
                indices=tuple(rows),
                texts=tuple(texts[row] for row in rows),
                gold=tuple(gold[row] for row in rows),
                seeds=tuple(seed * 1_000_003 + row for row in rows),
            )
        )
    return found


def _watched(outcomes: Outcomes, total: int, progress: Progress | None) -> Outcomes:
    if progress is not None:
        progress.start(total, "attacking")
    try:
        with closing(outcomes):
            for found in outcomes:
                yield found
                if progress is not None:
                    progress.advance("attacking")
    finally:
        if progress is not None:
            progress.finish()


def _record(text: Any, gold: int, outcome: Attacked) -> Record:
    return {
        "text": _plain(text),
        "perturbed": _plain(outcome.perturbed),
        "gold": gold,
        "prediction": outcome.prediction,
        "outcome": outcome.outcome,
        "queries": outcome.queries,
        "score": outcome.score,
        "perturbed_score": outcome.perturbed_score,
        "words": outcome.words,
        "changed": outcome.changed,
    }


def _plain(text: Any) -> Any:
    return text if isinstance(text, str) else list(text)
