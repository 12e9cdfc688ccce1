# SPDX-License-Identifier: Apache-2.0
"""Which column of a table is what, and what its cells say: texts, labels, answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.tasks.readers import Table

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("question", "passage"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
TEXTS = ("text", "sentence", "content", "review", "document", "body", "comment", "tweet", "headline", "title")
LABELS = ("label", "labels", "gold_label", "class", "category", "target", "sentiment")
Answer = tuple[int, str]  # the letter of the passage at which it begins, or -1; its text


def choose_columns(
    table: Table, source: str, text: str | None, text_pair: str | None, label: str | None
) -> tuple[str, str | None, str | None]:
    """Columns of text, second text and label: those named, else those with common names."""
    by_lower = {name.lower(): name for name in table.columns}
    have = ", ".join(table.columns)
    for flag, name in (("--text", text), ("--text-pair", text_pair), ("--label", label)):
        if name is not None and name not in table.columns:
            raise InputError(
                f"{source} has no column {name!r}",
                asked=f"{flag} {name}",
                seen=f"columns: {have}",
                hint=f"{flag} COLUMN",
            )
    if label is None:
        label = next((by_lower[name] for name in LABELS if name in by_lower and by_lower[name] != text), None)
    if text is not None:
        return text, text_pair, label
    for first, second in PAIRS:
        if first in by_lower and second in by_lower and text_pair in (None, by_lower[second]):
            return by_lower[first], by_lower[second], label
    for name in TEXTS:
        if name in by_lower and by_lower[name] != text_pair:
            return by_lower[name], text_pair, label
    rest = [name for name in table.columns if name not in (label, text_pair)]
    if len(rest) == 1 and len(table.columns) > 1:
        return rest[0], text_pair, label
    raise InputError(
        f"{source}: which column holds the text?",
        seen=f"columns: {have}",
        hint=_column_hint(source, have),
    )


def _column_hint(source: str, have: str) -> str:
    suffix = Path(source).suffix.lower()
    if suffix == ".csv" and ("\t" in have or ";" in have):
        return "the fields of a .csv are separated by commas; with tabs name it .tsv, with semicolons convert it"
    if suffix in (".tsv", ".csv"):
        return "--text COLUMN (the first line has to name the columns; one bare text a line is .txt)"
    return "--text COLUMN, for pairs also --text-pair COLUMN"


def text_column(table: Table, source: str, name: str) -> list[str]:
    """A column whose every cell is text."""
    column = table.columns[name]
    for number, cell in zip(table.lines, column, strict=True):
        if not isinstance(cell, str):
            what = "nothing" if cell is None else f"{type(cell).__name__} {str(cell)[:40]}"
            raise InputError(
                f"{source}, {table.unit} {number}: column {name!r} holds no text",
                seen=what,
                hint=f"columns: {', '.join(table.columns)}; choose with --text COLUMN",
            )
    return column


def answers_column(
    table: Table, source: str, pairs: list[str] | None
) -> tuple[list[tuple[Answer, ...]] | None, list[str]]:
    """Answers to questions about passages if there is such a column, and what a person should know of them."""
    if pairs is None or "answers" not in table.columns:
        return None, []
    found, astray = [], 0
    for number, cell, passage in zip(table.lines, table.columns["answers"], pairs, strict=True):
        try:
            answers = _read_answers(cell)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{source}, {table.unit} {number}: its answers are not in SQuAD's layout",
                seen=f"{type(error).__name__}: {error}",
                hint='[{"text": "...", "answer_start": 17}, ...]; answer_start is the letter of the passage, or -1',
            ) from None
        placed = [(at, text) if at >= 0 and passage.startswith(text, at) else (-1, text) for at, text in answers]
        astray += sum(one != other for one, other in zip(answers, placed, strict=True))
        found.append(tuple(dict.fromkeys(placed)))
    notes = [f"{source}: {astray} answers are not at the letter that it says; their place is unknown"] if astray else []
    return found, notes


def _read_answers(cell: Any) -> list[Answer]:
    """A list of answers, or, as hub data sets have it, lists of texts and of places."""
    if isinstance(cell, dict):
        both = zip(cell["text"], cell["answer_start"], strict=True)
        cell = [{"text": text, "answer_start": place} for text, place in both]
    found = []
    for answer in cell or ():
        if not isinstance(answer["text"], str):
            raise TypeError(f"a text of type {type(answer['text']).__name__}")
        found.append((max(int(answer.get("answer_start", -1)), -1), answer["text"]))
    return found


def read_label(cell: Any) -> int | str | None:
    """Class number or name; None for a missing one (empty, null, NaN, and -1 as hub data sets mark it)."""
    if cell is None or cell != cell:
        return None
    if isinstance(cell, str):
        cell = cell.strip()
        try:
            cell = int(cell)
        except ValueError:
            return cell or None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, int):
        return None if cell == -1 else int(cell)
    return str(cell)
