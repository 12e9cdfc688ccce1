# SPDX-License-Identifier: Apache-2.0
"""The page stands alone and is well made, shows what the document says, and takes no text for markup."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up import model_record

from pyprune import report
from pyprune.errors import InputError
from pyprune.result import load_report

Folder = Callable[..., Path]
VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = """<script>alert(1)</script>"'&`|$\\no_1$\x00\u202e](javascript:1)"""


class Page(HTMLParser):
    """Elements with their attributes, checked to be nested well, and the text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def write(*folders: Path, benches: tuple[Path, ...] = ()) -> tuple[str, str]:
    document = report.collect(folders, benches)
    sections = report.make_sections(document)
    return report.to_html(document, sections, report.draw(document)), report.to_markdown(document, sections)


def check(text: str) -> Page:
    """What has to hold of every page."""
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id twice"
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name.endswith(("href", "src")):
                assert value.startswith(("#", "data:image/png;base64,")), value[:80]
                assert not value.startswith("#") or value[1:] in ids, value
            if name in ("aria-labelledby", "aria-describedby"):
                assert set(value.split()) <= set(ids), value
            for reference in re.findall(r"url\(([^)]*)\)", value):
                assert reference[0] == "#"
                assert reference[1:] in ids, reference
    (style,) = [words for tag, words in page.words if tag == "style"]
    assert "url(" not in style
    assert "@import" not in style
    assert page.all("html")[0]["lang"] == "en"
    assert [tag for tag, _ in page.elements].count("h1") == 1
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert svg["viewbox"]
    described = re.findall(r"<svg[^>]*>\s*<title[^>]*>[^<]+</title>\s*<desc[^>]*>[^<]+</desc>", text)
    assert text.count("<svg") == len(described)
    return page


def test_a_whole_page(made: Path, attacked: Folder, tmp_path: Path) -> None:
    bench = tmp_path / "record.json"
    record = model_record((8, "real", {"dense eager": 0.02, "pruned optimize": 0.005}))
    bench.write_text(json.dumps(record | {"verdict": ["four times as fast"]}), encoding="utf-8")
    pruned = [made / "magnitude-50", made / "akr-75"]
    html, markdown = write(made / "dense", *pruned, attacked(), benches=(bench,))
    page = check(html)
    assert len(page.all("svg")) == 4  # accuracy, errors, two maps of masks
    assert len([a for a in page.all("image") if a["xlink:href"].startswith("data:")]) >= 12
    cells = [words for tag, words in page.words if tag in ("td", "th", "span")]
    model = report.collect(pruned).models[-1]
    assert model.judged is not None
    assert model.judged.accuracy is not None
    for text in (
        f"{100 * model.judged.accuracy.value:.2f} %",
        "75.00 %",
        "20.00 % (13.3 to 28.9)",
        "4.00 ×",
        "textfooler",
        model.data["calibration, sha256"],
    ):
        assert any(text in cell for cell in cells), text
        assert text in markdown
    assert "four times as fast" in html
    used = "What the attack used: synonyms: stand-in, a list, sha256 efefefefefef."
    assert used in html
    assert used in markdown
    # the same tables in both
    assert len(re.findall(r"^\| -", markdown, re.MULTILINE)) == len(page.all("table"))
    for line in markdown.splitlines():
        assert not line.startswith("|") or line.endswith(" |")


def test_robustness_without_evaluations(made: Path, copied: Folder, attacked: Folder, tmp_path: Path) -> None:
    """Accuracy is then that of the rows that were attacked, in the table and in the picture, and dense is a line."""
    dense, pruned = attacked("dense", model_sha256=load_report(made / "akr-75")["model"]["sha256"]), copied()
    told = load_report(pruned)
    del told["evaluation"]
    (pruned / "pyprune.json").write_text(json.dumps(told), encoding="utf-8")
    shutil.copy(attacked("second", accuracy=0.5, aua=0.125) / "attack.json", pruned)
    html, markdown = write(dense, pruned)
    check(html)
    overview = next(line for line in markdown.splitlines() if line.startswith("| copy"))
    assert "| 50.00 % (40.4 to 59.6) | 12.50 %" in overview
    (said,) = re.findall(r"<desc[^>]*>([^<]*at 0 % zeros[^<]*)</desc>", html)
    assert "accuracy: dense at 0 % zeros 80.0 %, akr at 75 % zeros 50.0 %" in said
    assert "accuracy under attack: dense at 0 % zeros 20.0 %, akr at 75 % zeros 12.5 %" in said


def test_resources_that_differ(attacked: Folder) -> None:
    """Each attack then has its own in the table."""
    _, markdown = write(attacked(), attacked("other", resources=[{"name": "synonyms", "kind": "original"}]))
    assert "What the attack used" not in markdown
    assert re.search(r"^\| attacked \|.* synonyms: stand-in, a list, sha256 efefefefefef \|$", markdown, re.MULTILINE)
    assert re.search(r"^\| other \|.* synonyms: original \|$", markdown, re.MULTILINE)
    assert "The attacks differ in their resources" in markdown


def test_no_text_is_markup(copied: Folder, attacked: Folder, tmp_path: Path) -> None:
    layers = [
        {"name": f"{HOSTILE}.{index}.query", "rows": 4, "cols": 4, "kept": 8, "error": 0.1 + index}
        for index in range(2)
    ]
    texts = {"method": HOSTILE, "notes": [HOSTILE], "settings": {HOSTILE: HOSTILE}, "sparsity": {HOSTILE: 0.5}}
    evaluation = {"pruned": {"metric": "accuracy", "accuracy": 0.5, "source": HOSTILE, "total": 9}}
    hostile = copied(to="_$<i>", layers=layers, evaluation=evaluation, **texts)
    again = copied(to="other", **(texts | {"sparsity": {"linear_weights": 0.5}, "evaluation": evaluation}))
    bench = tmp_path / "record.json"
    record = model_record((1, 128, {f"dense {HOSTILE}": 0.02}), verdict=[HOSTILE])
    bench.write_text(json.dumps(record), encoding="utf-8")
    html, markdown = write(
        hostile,
        again,
        attacked(recipe=HOSTILE, resources=[{"name": HOSTILE, "kind": HOSTILE, "what": HOSTILE}]),
        benches=(bench,),
    )
    check(html)
    assert "&lt;script&gt;alert(1)" in html
    assert "<script" not in html + markdown
    assert "\x00" not in html + markdown
    assert "\u202e" not in html + markdown
    # rows of Markdown keep their columns, and nothing in them is a link
    width: dict[int, set[int]] = {}
    table = 0
    for line in markdown.splitlines():
        if line.startswith("|"):
            width.setdefault(table, set()).add(len(re.findall(r"(?<!\\)\|", line)))
        else:
            table += 1
    assert all(len(found) == 1 for found in width.values())
    assert not re.search(r"(?<!\\)\]\(", markdown)


def test_pages_of_what_is_missing(copied: Folder, tmp_path: Path) -> None:
    folder = copied()
    (folder / "pyprune.json").write_text("{", encoding="utf-8")
    (folder / "pyprune_masks.safetensors").write_bytes(b"{")
    html, markdown = write(folder)
    page = check(html)
    assert page.all("svg") == []
    for text in (html, markdown):
        assert "pyprune.json cannot be read" in text
        assert "the masks cannot be read" in text
    assert "Where weights are kept" not in html


def test_drawn_twice_is_the_same(made: Path) -> None:
    document = report.collect([made / "akr-75"])
    assert report.draw(document) == report.draw(document)


def test_errors_that_have_no_place_on_the_axis(copied: Folder) -> None:
    layers = [{"name": f"layer.{index}.query", "error": error} for index, error in enumerate((0.0, 0.5, None))]
    check(write(copied(layers=layers))[0])
    html = write(copied(to="zero", layers=layers[:1]))[0]
    assert "Error of each layer, from" not in html


def test_many_models_and_blocks(copied: Folder) -> None:
    layers = [{"name": f"layer.{index}.query", "error": 0.1} for index in range(60)]
    folders = [copied(to=f"number-{index}", layers=layers) for index in range(9)]
    check(write(*folders)[0])


def test_without_matplotlib(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    document = report.collect([made / "akr-75"])
    with pytest.raises(InputError, match=r"need matplotlib(.|\n)*pyprune\[report\]"):
        report.draw(document)
    check(report.to_html(document, report.make_sections(document), {}, ["no pictures"]))


def test_the_style_is_legible() -> None:
    """Text on its background: at least 4.5 to 1, the ratio that WCAG asks for, in light and in dark."""
    style = Path(report.__file__).with_name("style.css").read_text(encoding="utf-8")

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    themes: list[dict[str, Any]] = [
        dict(re.findall(r"--(\w+): #(\w{6})", block)) for block in style.split("@media")[:2]
    ]
    for theme in themes:
        for ink in ("ink", "soft", "mark"):
            for ground in ("page", "band"):
                bright, dim = sorted((luminance(theme[ink]), luminance(theme[ground])), reverse=True)
                assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, ground)
