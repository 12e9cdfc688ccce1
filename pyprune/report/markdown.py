# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown: all of its tables, none of its pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyprune.report.document import Document
from pyprune.report.sections import Section, Table

_SPECIAL = re.compile(r"[\\`*_\[\]|~$]")


def to_markdown(document: Document, sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """The document in GitHub's Markdown; what models and files are called stays text, whatever is in it.

    Parameters
    ----------
    document : Document
    sections : sequence of Section
    notes : sequence of str
        Said at the top.
    """
    count = len(document.models)
    parts = [
        "# Pruning report",
        f"{count} model{'' if count == 1 else 's'}, {document.created}, pyprune {_plain(document.pyprune)}",
        *(_plain(note) for note in notes),
    ]
    for section in sections:
        if section.key == "masks":
            continue  # nothing but pictures
        parts.append(f"## {section.title}")
        parts += [f"- {_plain(line)}" if len(section.words) > 1 else _plain(line) for line in section.words]
        for table in section.tables:
            parts += [_plain(table.caption), _table(table)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    rule = ["---:" if table.numbers(column) else "---" for column in range(len(table.header))]
    lines = [_row([_plain(cell) for cell in table.header]), _row(rule)]
    return "\n".join([*lines, *(_row([_plain(cell) for cell in row]) for row in table.rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Text that no renderer takes for markup."""
    entities = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = _SPECIAL.sub(lambda found: f"\\{found[0]}", entities)
    # An underscore inside a word is no emphasis.
    escaped = re.sub(r"(?<=\w)\\_(?=\w)", "_", escaped)
    return f"\\{escaped}" if escaped[:1] in tuple("#+-=") else escaped
