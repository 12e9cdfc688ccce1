# SPDX-License-Identifier: Apache-2.0
"""A report as one page of HTML: tables, pictures and a style sheet inside, nothing fetched, nothing run."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyprune.report.document import Document
from pyprune.report.sections import Section, Table
from pyprune.report.svg import Figure


class Markup(str):
    """Text that is HTML already; any other text is escaped by :func:`tag`."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """An element.

    >>> print(tag("p", "a < b", class_="x"))
    <p class="x">a &lt; b</p>
    """
    told = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(text)}"' for key, text in attributes.items())
    inner = "".join(child if isinstance(child, Markup) else html.escape(child) for child in children)
    return Markup(f"<{name}{told}>{inner}</{name}>")


def to_html(
    document: Document,
    sections: Sequence[Section],
    figures: Mapping[str, Sequence[Figure]],
    notes: Sequence[str] = (),
) -> str:
    """The page.

    Parameters
    ----------
    document : Document
    sections : sequence of Section
    figures : mapping of str to sequence of Figure
        By the key of their section.
    notes : sequence of str
        Said at the top.
    """
    shown = [section for section in sections if section.key != "masks" or figures.get("masks")]
    count = len(document.models)
    made = f"{count} model{'' if count == 1 else 's'}, {document.created}, pyprune {document.pyprune}"
    head = tag(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        # Should any text ever get past the escaping, it can neither run nor fetch.
        Markup(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
            'img-src data:">'
        ),
        tag("title", "Pruning report"),
        tag("style", Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))),
    )
    links = [tag("li", tag("a", section.title, href=f"#{section.key}")) for section in shown]
    body = tag(
        "body",
        tag("header", tag("h1", "Pruning report"), tag("p", made), *(tag("p", n, class_="warning") for n in notes)),
        tag("nav", tag("ul", *links), aria_label="Contents"),
        tag("main", *(_section(section, figures.get(section.key, ())) for section in shown)),
        tag("footer", "Intervals are at 95 %. A dash means that nothing is known."),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _section(section: Section, figures: Sequence[Figure]) -> Markup:
    words = [tag("p", line, class_="warning") if section.warns else tag("p", line) for line in section.words]
    tables = [_table(table, f"{section.key}-table-{number}") for number, table in enumerate(section.tables, start=1)]
    if section.folded:
        tables = [_details("Tables" if len(tables) > 1 else "Table", *tables)]
    pictures = [_figure(figure) for figure in figures]
    # Of many pictures the first is enough at first sight.
    pictures[1:] = [_details(f.title, picture) for f, picture in zip(figures[1:], pictures[1:], strict=True)]
    title = f"{section.key}-title"
    heading = tag("h2", section.title, id=title)
    return tag("section", heading, *words, *pictures, *tables, id=section.key, aria_labelledby=title)


def _details(title: str, *children: str) -> Markup:
    return tag("details", tag("summary", title), *children)


def _figure(figure: Figure) -> Markup:
    scroll = tag("div", Markup(figure.svg), class_="wide", tabindex="0", role="group", aria_label=figure.title)
    return tag("figure", scroll, tag("figcaption", f"{figure.title}."))


def _table(table: Table, key: str) -> Markup:
    kinds = ["number" if table.numbers(column) else "word" for column in range(len(table.header))]
    head = tag(
        "tr", *(tag("th", text, scope="col", class_=kind) for text, kind in zip(table.header, kinds, strict=True))
    )
    rows = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in table.rows
    ]
    caption = tag("caption", tag("span", table.caption), id=key)
    whole = tag("table", caption, tag("thead", head), tag("tbody", *rows))
    # What is wider than the page is scrolled, by keyboard too.
    return tag("div", whole, class_="wide", tabindex="0", role="region", aria_labelledby=key)
