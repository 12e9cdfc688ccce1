# SPDX-License-Identifier: Apache-2.0
"""Texts, pairs of texts and labels from a file, a folder or a data set of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.tasks import hub
from pyprune.tasks.columns import Answer, answers_column, choose_columns, read_label, text_column
from pyprune.tasks.readers import READERS, Table, read_table
from pyprune.tasks.registry import TASKS, Task

# what people call the file of a split
_SPLIT_FILES = {
    "train": ("train",),
    "evaluation": ("validation", "valid", "dev", "val", "test"),
}


@dataclass(frozen=True)
class Examples:
    """Texts ready for a tokenizer.

    Attributes
    ----------
    texts : tuple of str
    pairs : tuple of str, optional
        Second text of each row, for tasks on pairs.
    labels : tuple of (int, str or None), optional
        As the source has them: class numbers, class names, or None where a row has none.
        None: the source has no label column.
    source : str
        File, or hub data set with configuration and split.
    sha256 : str
        Hash of texts, pairs and labels after any `limit`; the same rows give the same hash in any file format.
    lines : tuple of int
        Line (or row) of the source each example comes from.
    unit : str
        ``"line"`` or ``"row"``.
    label_names : tuple of str
        Names of class 0, 1, ... where the source states them, else ().
    task : Task, optional
    answers : tuple of tuple of (int, str), optional
        To a question of ``texts`` about a passage of ``pairs``: the letter of the passage at which each begins, or -1
        where that is not known, and its text. None: the source has no answers.
    notes : tuple of str
        What a person should know about the reading, in plain words.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[int | str | None, ...] | None
    source: str
    sha256: str
    lines: tuple[int, ...] = field(repr=False, default=())
    unit: str = "line"
    label_names: tuple[str, ...] = ()
    task: Task | None = None
    answers: tuple[tuple[Answer, ...], ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def inputs(self) -> list[str] | list[tuple[str, str]]:
        """What :func:`pyprune.prune` takes as `data`: texts, or pairs of texts."""
        if self.pairs is None:
            return list(self.texts)
        return list(zip(self.texts, self.pairs, strict=True))


def load_texts(
    path_or_name: str | Path,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    task: Task | None = None,
    purpose: str = "train",
) -> Examples:
    """Load texts, and labels where there are any.

    Parameters
    ----------
    path_or_name : str or Path
        A file (.txt .tsv .csv .jsonl .json .parquet), a folder that holds such files named by split, a task name
        (``"sst2"``), or a data set on the hub (``"owner/name"`` or ``"owner/name:configuration"``).
    text, text_pair, label : str, optional
        Column names. Left out, they are those of `task`, or guessed from common names.
    split : str, optional
        Split of a hub data set or folder; by default the one that fits `purpose`.
    limit : int, optional
        Draw this many rows at random (without replacement, in their original order).
    seed : int
        Of that draw. Global random state is not touched.
    task : Task, optional
        Column names, label meaning and metric.
    purpose : {"train", "evaluation"}
        Which split to take where the source has several.

    Raises
    ------
    InputError
        With the file and line, the columns that exist and the flags to pass.

    Examples
    --------
    >>> examples = load_texts("reviews.tsv", limit=256)            # doctest: +SKIP
    >>> pyprune.prune(model, examples.inputs, tokenizer=tokenizer)  # doctest: +SKIP
    """
    if limit is not None and limit < 1:
        raise InputError("limit has to be at least 1", seen=str(limit))
    table, source, names, task, from_hub = _locate(str(path_or_name), task, split, purpose)
    if from_hub and task is not None:
        text, text_pair, label = text or task.text, text_pair or task.text_pair or None, label or task.label or None
    text, text_pair, label = choose_columns(table, source, text, text_pair, label)

    texts = text_column(table, source, text)
    pairs = text_column(table, source, text_pair) if text_pair else None
    labels = [read_label(cell) for cell in table.columns[label]] if label else None
    answers, notes = answers_column(table, source, pairs)

    keep = [row for row, value in enumerate(texts) if value.strip()]
    if not keep:
        raise InputError(f"{source}: every cell of column {text!r} is empty")
    if len(keep) < len(texts):
        blank = len(texts) - len(keep)
        notes.append(f"{source}: left out {blank} {'row' if blank == 1 else 'rows'} without text")
    if labels is not None and task is not None and task.skip_unlabelled:
        labelled = [row for row in keep if labels[row] is not None]
        if len(labelled) < len(keep):
            notes.append(
                f"{source}: left out {len(keep) - len(labelled)} rows without label, as is usual for this task"
            )
        keep = labelled
    if limit is not None and limit < len(keep):
        keep = sorted(random.Random(seed).sample(keep, limit))

    picked_texts = tuple(texts[row] for row in keep)
    picked_pairs = tuple(pairs[row] for row in keep) if pairs is not None else None
    picked_labels = tuple(labels[row] for row in keep) if labels is not None else None
    if picked_labels is not None and all(value is None for value in picked_labels):
        picked_labels = None
        notes.append(f"{source}: column {label!r} holds no labels")
    picked_answers = tuple(answers[row] for row in keep) if answers is not None else None
    return Examples(
        texts=picked_texts,
        pairs=picked_pairs,
        labels=picked_labels,
        answers=picked_answers,
        source=source,
        sha256=_digest(picked_texts, picked_pairs, picked_labels, picked_answers),
        lines=tuple(table.lines[row] for row in keep),
        unit=table.unit,
        label_names=names.get(label or "", ()) or (task.labels if task is not None else ()),
        task=task,
        notes=tuple(notes),
    )


def shared_rows(examples: Examples, others: Examples) -> list[int]:
    """Rows of ``examples`` whose text is also in ``others``, whatever the label; case and white space do not matter."""
    seen = {_plain(others, row) for row in range(len(others))}
    return [row for row in range(len(examples)) if _plain(examples, row) in seen]


def without_rows(examples: Examples, rows: Sequence[int]) -> Examples:
    """The examples but for these rows.

    Raises
    ------
    InputError
        Nothing would be left.
    """
    keep = sorted(set(range(len(examples))) - set(rows))
    if not keep:
        raise InputError(f"{examples.source}: no row would be left")

    def pick(column: Sequence[Any] | None) -> Any:
        return tuple(column[row] for row in keep) if column else column

    names = ("texts", "pairs", "labels", "answers")
    left: dict[str, Any] = {name: pick(getattr(examples, name)) for name in names}
    return replace(examples, **left, lines=pick(examples.lines), sha256=_digest(*left.values()))


def _plain(examples: Examples, row: int) -> tuple[str, ...]:
    parts = (examples.texts[row],) if examples.pairs is None else (examples.texts[row], examples.pairs[row])
    return tuple(" ".join(part.split()).casefold() for part in parts)


def _locate(
    name: str, task: Task | None, split: str | None, purpose: str
) -> tuple[Table, str, dict[str, tuple[str, ...]], Task | None, bool]:
    path = Path(name).expanduser()
    if path.is_dir():
        found = _split_file(path, split, purpose)
        return read_table(found), str(found), {}, task, False
    if path.exists():
        if split is not None:
            raise InputError(
                f"{path} is one file, it has no splits", asked=f"split {split!r}", hint="leave --split out"
            )
        return read_table(path), str(path), {}, task, False
    if path.suffix.lower() in READERS:
        raise InputError(f"there is no file {name}", seen=_nearby(path), hint="check the path")
    known = TASKS.get(name.lower().replace("-", "_"))
    if known is not None:
        wanted = split or (known.train if purpose == "train" else known.evaluation)
        table, source, names = hub.read_hub(known.hub, known.config, wanted, purpose)
        return table, source, names, known, True
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise InputError(
            f"there is no file or folder {name}", seen=_nearby(path), hint=f"a path, or a task: {', '.join(TASKS)}"
        )
    repository, _, config = name.partition(":")
    table, source, names = hub.read_hub(repository, config, split, purpose)
    return table, source, names, task, True


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    try:
        files = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in READERS)
    except OSError as error:
        return f"the folder {folder} cannot be listed: {error.strerror}"
    if not files:
        return f"no data file in {folder.resolve()}"
    return f"in {folder.resolve()}: {', '.join(files[:8])}{', ...' if len(files) > 8 else ''}"


def _split_file(folder: Path, split: str | None, purpose: str) -> Path:
    stems = (split,) if split is not None else _SPLIT_FILES[purpose]
    for stem in stems:
        for suffix in READERS:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    raise InputError(
        f"the folder {folder} has no file for the split {' or '.join(stems)}",
        seen=_nearby(folder / "x"),
        hint=f"pass the file itself, or name one {stems[0]}.tsv",
    )


def _digest(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    labels: Sequence[int | str | None] | None,
    answers: Sequence[Sequence[Answer]] | None,
) -> str:
    digest = hashlib.sha256()
    for row, value in enumerate(texts):
        record: list[Any] = [value, *(None if column is None else column[row] for column in (pairs, labels))]
        if answers is not None:
            record.append(answers[row])
        digest.update(json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n")
    return digest.hexdigest()
