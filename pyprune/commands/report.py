# SPDX-License-Identifier: Apache-2.0
"""``pyprune report``: folders of models side by side, as one page of HTML, as Markdown and as JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pyprune.commands import common
from pyprune.errors import InputError

_EPILOG = """\
examples:
  pyprune report magnitude-50 akr-50 akr-70 --output report.html
      one page that needs neither network nor JavaScript: tables and pictures of three pruned models
  pyprune report MODEL akr-50 --bench results/model.json --output report.html --markdown report.md
      the dense model too, and the latency that `pyprune bench model` measured
  pyprune report akr-50 akr-70 --json
      the same for machines

A DIR holds what `pyprune prune` or `pyprune soup` wrote, a plain checkpoint, or records only. In each, attack.json and
the record of `pyprune bench model` are shown if they are there; what is missing or damaged is said in the report.
Pictures need matplotlib: pip install 'pyprune[report]'.
"""


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    parser = commands.add_parser(
        "report",
        help="models side by side: one page of HTML, Markdown, JSON",
        description="Put what is known of models side by side: sparsity, size, layer errors, accuracy, robustness, "
        "latency, settings, data.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", help="folders of models or of their records")
    parser.add_argument("--bench", metavar="FILE", action="append", default=[], help="record of pyprune bench model")
    out = parser.add_argument_group("output (at least one, or --json)")
    out.add_argument("--output", type=Path, metavar="FILE.html", help="one self-contained page")
    out.add_argument("--markdown", type=Path, metavar="FILE.md", help="the tables as Markdown")
    common.add_general(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, write, print."""
    files = [path for path in (arguments.output, arguments.markdown) if path is not None]
    if not files and not arguments.json:
        arguments.parser.error("pass --output FILE.html, --markdown FILE.md or --json")

    from pyprune import report
    from pyprune.files import write_atomically

    for path in files:
        _check_file(path)
    document = report.collect(arguments.folders, arguments.bench)
    sections = report.make_sections(document)
    texts: dict[Path, str] = {}
    if arguments.markdown is not None:
        texts[arguments.markdown] = report.to_markdown(document, sections)
    if arguments.output is not None:
        figures, notes = _drawn(document, quiet=arguments.quiet)
        texts[arguments.output] = report.to_html(document, sections, figures, notes)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode(), "the report")
    if arguments.json:
        common.print_json(document.to_dict())
    else:
        print(_summary(document, list(texts)))
    return 0


def _drawn(document: Any, *, quiet: bool) -> tuple[dict[str, Any], list[str]]:
    """Pictures, or a sentence on why there are none."""
    from pyprune import report

    try:
        return report.draw(document), []
    except InputError as error:
        if not quiet:
            print(f"no pictures: {error.message} ({error.hint})", file=sys.stderr)
        return {}, [f"There are no pictures: {error.message} ({error.hint})."]


def _check_file(path: Path) -> None:
    common.writable_parent(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder", hint="a file to write the report to")


def _summary(document: Any, files: list[Path]) -> str:
    problems = sum(len(each.problems) for each in (*document.models, *document.benches))
    rows = [("models", str(len(document.models)))]
    if problems:
        rows.append(("problems", f"{problems}, listed in the report"))
    rows += [("saved in" if index == 0 else "", str(path)) for index, path in enumerate(files)]
    return common.table(rows)
