# SPDX-License-Identifier: Apache-2.0
"""What folders of models say, side by side: one page of HTML, the same as Markdown and JSON.

``collect`` reads folders, whatever is missing or damaged in them, into a :class:`Document` of checked values;
``make_sections`` turns it into tables, ``draw`` into pictures, ``to_html`` and ``to_markdown`` write both down.
"""

from __future__ import annotations

from pyprune.report.collect import collect
from pyprune.report.document import Document
from pyprune.report.html import to_html
from pyprune.report.markdown import to_markdown
from pyprune.report.plots import draw
from pyprune.report.sections import make_sections

__all__ = ["Document", "collect", "draw", "make_sections", "to_html", "to_markdown"]
