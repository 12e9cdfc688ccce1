# SPDX-License-Identifier: Apache-2.0
r"""Read a text file into named columns; every refusal names the file, the line and the way out.

Formats: ``.txt`` (one text a line), ``.tsv`` (header, tabs, no quoting, as GLUE has it), ``.csv`` (header, RFC 4180
quoting), ``.jsonl`` (one object or string a line), ``.json`` (list of objects, object of lists, or the SQuAD layout)
and ``.parquet``. Text is UTF-8, with or without byte-order mark, with ``\n`` or ``\r\n``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyprune.errors import InputError

_MAGIC = (
    (b"\x1f\x8b", "a gzip archive", "unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive (or an .xlsx workbook)", "unpack it, or export the sheet as .csv"),
    (b"PAR1", "a parquet file", "rename it to end in .parquet"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
)


@dataclass(frozen=True)
class Table:
    """Columns of equal length read from one source.

    Attributes
    ----------
    columns : dict of str to list
        Cell values as the format gives them (str for text formats).
    lines : list of int
        For each row the 1-based line of the file (row number for ``.json``, ``.parquet`` and hub data).
    unit : str
        ``"line"`` or ``"row"``: what `lines` counts, for messages.
    """

    columns: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)


def read_table(path: Path) -> Table:
    """Read a file by its suffix.

    Raises
    ------
    InputError
        Missing, unreadable, empty, not UTF-8, binary, ragged or malformed; the message has the line number.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: the format {path.suffix or '(no suffix)'!r} is not known",
            hint=f"a file that ends in {', '.join(READERS)}",
        )
    table = reader(path)
    if len(table) == 0:
        raise InputError(
            f"{path} has no text in it" if path.suffix.lower() == ".txt" else f"{path} has a header but no rows"
        )
    return table


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}", hint="check the path; relative paths start here: .") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, a file is needed") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read", seen=error.strerror or str(error)) from None
    if not raw.strip():
        raise InputError(f"{path} is empty", seen=f"{len(raw)} bytes")
    return raw


def _read_text(path: Path) -> str:
    raw = _read_bytes(path)
    for magic, what, hint in _MAGIC:
        if raw.startswith(magic):
            raise InputError(f"{path} is {what}, not UTF-8 text", hint=hint)
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{path} is a binary file, not text", seen=f"a NUL byte in line {line}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path} is not UTF-8, line {line}",
            seen=f"byte 0x{raw[error.start]:02x} at offset {error.start}",
            hint="convert it, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW",
        ) from None


def _lines(text: str) -> Iterable[tuple[int, str]]:
    # not str.splitlines: it also cuts at U+2028, U+0085 and form feeds, which do occur inside review text
    for number, line in enumerate(text.split("\n"), start=1):
        yield number, line.removesuffix("\r")


def _check_header(path: Path, header: list[str]) -> list[str]:
    names = [name.strip() for name in header]
    for name in names:
        if not name:
            raise InputError(f"{path}, line 1: a column has no name", seen=f"header {names}")
    if len(set(names)) != len(names):
        raise InputError(f"{path}, line 1: two columns have the same name", seen=f"header {names}")
    return names


def _ragged(path: Path, number: int, header: list[str], cells: int, hint: str) -> InputError:
    return InputError(
        f"{path}, line {number}: {cells} fields where the header has {len(header)}",
        seen=f"header {', '.join(header)}",
        hint=hint,
    )


def _read_txt(path: Path) -> Table:
    rows = [(number, line.strip()) for number, line in _lines(_read_text(path)) if line.strip()]
    return Table({"text": [line for _, line in rows]}, [number for number, _ in rows])


def _read_tsv(path: Path) -> Table:
    rows = ((number, line.split("\t")) for number, line in _lines(_read_text(path)) if line.strip())
    return _from_rows(path, rows, "a .tsv has no quoting: no tab or line break inside a text (.csv and .jsonl can)")


def _read_csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)

    def rows() -> Iterable[tuple[int, list[str]]]:
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise InputError(
                f"{path}, line {reader.line_num}: malformed CSV",
                seen=str(error),
                hint='quote a text that holds a comma, a quote or a line break: "he said ""no"""',
            ) from None

    return _from_rows(path, rows(), "quote a text that holds a comma")


def _from_rows(path: Path, rows: Iterable[tuple[int, list[str]]], hint: str) -> Table:
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        raise InputError(f"{path} has no text in it")
    header = _check_header(path, first[1])
    columns: list[list[str]] = [[] for _ in header]
    lines: list[int] = []
    for number, cells in iterator:
        if len(cells) != len(header):
            raise _ragged(path, number, header, len(cells), hint)
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
        lines.append(number)
    return Table(dict(zip(header, columns, strict=True)), lines)


def _read_jsonl(path: Path) -> Table:
    records: list[Any] = []
    lines: list[int] = []
    for number, line in _lines(_read_text(path)):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON", seen=str(error)) from None
        lines.append(number)
    return _from_records(path, records, lines, "line")


def _read_json(path: Path) -> Table:
    try:
        document = json.loads(_read_text(path))
    except ValueError as error:
        hint = "one object a line is .jsonl: rename the file" if "Extra data" in str(error) else None
        raise InputError(f"{path} is not JSON", seen=str(error), hint=hint) from None
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
        if document and isinstance(document[0], dict) and "paragraphs" in document[0]:
            document = _squad_rows(path, document)
    if isinstance(document, dict) and document and all(isinstance(value, list) for value in document.values()):
        sizes = {name: len(value) for name, value in document.items()}
        if len(set(sizes.values())) != 1:
            raise InputError(f"{path}: its columns differ in length", seen=str(sizes))
        return Table(dict(document), range(1, next(iter(sizes.values())) + 1), "row")
    if not isinstance(document, list):
        raise InputError(
            f"{path}: a list of objects is needed",
            seen=f"JSON of type {type(document).__name__}",
            hint='[{"text": "...", "label": 1}, ...]',
        )
    return _from_records(path, document, range(1, len(document) + 1), "row")


def _squad_rows(path: Path, articles: list[Any]) -> list[dict[str, Any]]:
    try:
        return [
            {"question": question["question"], "context": paragraph["context"]}
            | ({"answers": question["answers"]} if "answers" in question else {})
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} looks like SQuAD but is not", seen=f"{type(error).__name__}: {error}") from None


def _from_records(path: Path, records: list[Any], lines: Sequence[int], unit: str) -> Table:
    if not records:
        raise InputError(f"{path} has no rows")
    if all(isinstance(record, str) for record in records):
        return Table({"text": records}, lines, unit)
    names: dict[str, None] = {}
    for number, record in zip(lines, records, strict=True):
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, {unit} {number}: an object is needed", seen=f"JSON of type {type(record).__name__}"
            )
        names.update(dict.fromkeys(record))
    # a field that some rows lack is None there: only the columns that are used have to be complete
    columns = {name: [record.get(name) for record in records] for name in names}
    return Table(columns, lines, unit)


def _read_parquet(path: Path) -> Table:
    _read_bytes(path)
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(f"{path}: reading parquet needs pyarrow", hint="pip install pyarrow") from None
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow raises its own family of errors, all of them "cannot read this file"
        raise InputError(f"{path} is not a readable parquet file", seen=str(error).splitlines()[0]) from None
    return Table(table.to_pydict(), range(1, table.num_rows + 1), "row")


READERS: dict[str, Callable[[Path], Table]] = {
    ".txt": _read_txt,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
