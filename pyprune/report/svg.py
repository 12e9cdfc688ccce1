# SPDX-License-Identifier: Apache-2.0
"""From a matplotlib figure to SVG that can stand inside a page, beside others: no outside names, no clash of ids."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

# Stand-ins that matplotlib takes; the page's own colours come in their place.
INK, RULE = "#010203", "#040506"
_PAGE = {INK: "currentColor", RULE: "var(--rule)"}
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Figure:
    """A picture: its name in the page, what it shows in a few words and in numbers, and the SVG element."""

    key: str
    title: str
    description: str
    svg: str


@contextmanager
def styled() -> Iterator[None]:
    """Within it matplotlib writes text as text, takes no name for a formula, and gives the same ids every time."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "pyprune",
        "text.parse_math": False,
        "font.family": ["sans-serif"],
        "axes.unicode_minus": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's own font lacks: the reader's has them
        yield


def finish(figure: Any, key: str, title: str, description: str) -> Figure:
    """Write a figure down.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    key : str
        Unlike that of any other picture of the page; what is no letter, digit or hyphen becomes a code.
    title, description : str
        For those who do not see it.
    """
    prefix = re.sub(r"[^A-Za-z0-9-]", lambda found: f"_{ord(found[0]):x}", key)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    # The metadata name places on the web; a style sheet inside a picture would hold for the whole page.
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        _own_names(element, prefix)
        _page_colours(element)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("style", f"max-width: {6.2 * figure.get_figwidth():.0f}rem")  # letters of one size in all pictures
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-desc")
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{prefix}-{tag}"})
        child.text = text
        root.insert(place, child)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    return Figure(prefix, title, description, ElementTree.tostring(root, encoding="unicode"))


def _own_names(element: Any, prefix: str) -> None:
    for name, value in list(element.attrib.items()):
        if name == "id":
            element.set(name, f"{prefix}-{value}")
        elif name.endswith("href") and value.startswith("#"):
            element.set(name, f"#{prefix}-{value[1:]}")
        else:
            element.set(name, re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value))


def _page_colours(element: Any) -> None:
    for name, value in list(element.attrib.items()):
        for stand_in, own in _PAGE.items():
            if stand_in in value:
                value = value.replace(stand_in, own)
        element.set(name, value)
