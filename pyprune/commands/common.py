# SPDX-License-Identifier: Apache-2.0
"""What the commands share: argument types, data options, the one JSON document, warnings, small tables."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pyprune.errors import InputError, PypruneError


def fraction(text: str) -> float:
    """Argparse type: a sparsity."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 <= value < 1.0:
        hint = f"; did you mean {value / 100:g}?" if 1.0 < value < 100.0 and value == int(value) else ""
        raise argparse.ArgumentTypeError(
            f"{text} is not a sparsity: that is the fraction of weights set to zero, from 0 to below 1{hint}"
        )
    return value


def share(text: str) -> float:
    """Argparse type: the part of something that may be left."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 <= value <= 1.0:
        hint = ""
        if 1.0 < value <= 100.0:
            hint = f"; did you mean {value / 100:g} ({value:g} % left, {100 - value:g} % removed)?"
        raise argparse.ArgumentTypeError(f"{text} is not a part that may be left, from 0 to 1{hint}")
    return value


def speedup(text: str) -> float:
    """Argparse type: how many times as fast, "2.0x" or "2"."""
    try:
        value = float(text.strip().lower().removesuffix("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of times, such as 2.0x") from None
    if not 1.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not at least 1: 2.0x is twice as fast, half of the time")
    return value


def positive(text: str) -> int:
    """Argparse type: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def seed(text: str) -> int:
    """Argparse type: a whole number of at least 0."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def not_negative(text: str) -> float:
    """Argparse type: a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return value


def pattern(text: str) -> str:
    """Argparse type: ``N:M`` or ``block:RxC:S``; the text is returned, the pattern is made where the scope is known."""
    from pyprune.patterns import Unstructured, parse_pattern

    try:
        found = parse_pattern(text)
    except PypruneError as error:
        raise argparse.ArgumentTypeError(str(error.message) + (f" ({error.hint})" if error.hint else "")) from None
    if isinstance(found, Unstructured):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not N:M, as in 2:4, nor blocks, as in block:4x4:0.5 (for a fraction use --sparsity)"
        )
    return text


def add_general(parser: argparse.ArgumentParser) -> None:
    """--json --quiet --threads --debug."""
    group = parser.add_argument_group("general")
    group.add_argument("--json", action="store_true", help="print one JSON document on stdout instead of a table")
    group.add_argument("--quiet", action="store_true", help="no progress bars and no notes")
    group.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: what torch takes)")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group.add_argument("-h", "--help", action="help", help="show this and exit")


def add_columns(parser: argparse._ArgumentGroup) -> None:
    """--text --text-pair --label --split: how to read the data."""
    parser.add_argument("--text", metavar="COLUMN", help="column with the text (default: guessed: text, sentence, ...)")
    parser.add_argument("--text-pair", metavar="COLUMN", help="column with the second text, for pairs of texts")
    parser.add_argument("--label", metavar="COLUMN", help="column with the label (default: guessed: label, ...)")
    parser.add_argument(
        "--split", metavar="NAME", help="split of a hub data set, or of a folder with train.tsv, dev.tsv"
    )


def apply_threads(threads: int | None) -> None:
    """Set the threads of torch and of pyprune's kernels."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
        os.environ["PYPRUNE_NUM_THREADS"] = str(threads)


def print_json(document: Any) -> None:
    """Print the one JSON document; NaN and infinities become null, as JSON has none."""
    sys.stdout.write(json.dumps(jsonable(document), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def jsonable(value: Any) -> Any:
    """Plain JSON types only."""
    if isinstance(value, dict):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


def error_record(error: PypruneError) -> dict[str, Any]:
    """Put an error into the form that ``--json`` prints."""
    return {
        "error": {
            "kind": type(error).__name__,
            "message": error.message,
            "asked": error.asked,
            "seen": error.seen,
            "try": error.hint,
        }
    }


def tidy_warnings() -> None:
    """Show pyprune's own warnings as one line each, and hide the chatter of the libraries below."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", message="pyprune")

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), *, right: Iterable[int] = ()) -> str:
    """Columns aligned by spaces, which read the same on a terminal, in a file and in a log."""
    body = [list(row) for row in rows]
    lines = [list(header), *body] if header else body
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    numeric = set(right)

    def draw(line: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    drawn = [draw(line) for line in lines]
    if header:
        drawn.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(drawn)


def percent(value: float, digits: int = 2) -> str:
    """``93.17 %``."""
    return f"{100 * value:.{digits}f} %"


def mebibytes(size: float) -> str:
    """``1.2 GiB`` or ``310 MiB``."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """``8.3 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def writable_parent(path: Path) -> None:
    """Find out before the work, not after it, that nothing can be written there."""
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{path} cannot be made: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be made: no permission to write in {parent}")


def resumable(work: Callable[[], Any], how_to_go_on: Callable[[], str], drop_if_empty: Callable[[], None]) -> Any:
    """Do the work; where it is stopped, say what of it is kept, and where it fails, leave nothing that is empty."""
    try:
        return work()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_go_on()) from None
    except (PypruneError, OSError, MemoryError, RuntimeError):
        drop_if_empty()
        raise


def note_width(arguments: argparse.Namespace, progress: Any) -> None:
    """Tell of a result that will be larger than its checkpoint for its type alone."""
    from pyprune.commands.checkpoints import widened

    told = widened(arguments.model) if arguments.output is not None and arguments.values is None else None
    if told is not None:
        progress.note(told)
