# SPDX-License-Identifier: Apache-2.0
"""Every format gives the same rows, and every broken file a message with the line and the way out."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from pyprune.errors import InputError
from pyprune.tasks import TASKS, find_task, hub, load_texts, shared_rows, without_rows
from pyprune.tasks.readers import Table

ROWS = [("good, really", 1), ('he said "no"', 0), ("naïve – ☕ \u2028 still one line", 1), ("bad", 0)]
TEXTS = tuple(text for text, _ in ROWS)
LABELS = tuple(label for _, label in ROWS)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_tsv() -> str:
    return "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)


def as_csv() -> str:
    rows = ("{},{}\n".format('"' + text.replace('"', '""') + '"', label) for text, label in ROWS)
    return "text,label\n" + "".join(rows)


def as_jsonl() -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)


CONTENTS = {
    "a.tsv": as_tsv(),
    "bom.tsv": b"\xef\xbb\xbf" + as_tsv().encode(),
    "crlf.tsv": as_tsv().replace("\n", "\r\n"),
    "no_end.tsv": as_tsv().rstrip("\n"),
    "blank_lines.tsv": as_tsv().replace("bad", "bad") + "\n\n",
    "a.csv": as_csv(),
    "crlf.csv": as_csv().replace("\n", "\r\n"),
    "a.jsonl": as_jsonl(),
    "bom.jsonl": b"\xef\xbb\xbf" + as_jsonl().encode(),
    "a.json": json.dumps([{"text": text, "label": label} for text, label in ROWS]),
    "columns.json": json.dumps({"text": TEXTS, "label": LABELS}),
    "data.json": json.dumps({"data": [{"text": text, "label": label} for text, label in ROWS]}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_formats_agree(tmp_path: Path, name: str) -> None:
    examples = load_texts(write(tmp_path / name, CONTENTS[name]))
    assert examples.texts == TEXTS
    assert examples.labels == LABELS
    assert examples.pairs is None
    assert examples.sha256 == load_texts(write(tmp_path / "ref.jsonl", as_jsonl())).sha256


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"content": list(TEXTS), "label": list(LABELS)}), path)
    examples = load_texts(path)
    assert (examples.texts, examples.labels, examples.unit) == (TEXTS, LABELS, "row")
    with pytest.raises(InputError, match="not a readable parquet"):
        load_texts(write(tmp_path / "broken.parquet", "PAR1 no"))


def test_txt_has_no_labels(tmp_path: Path) -> None:
    examples = load_texts(write(tmp_path / "a.txt", "one\n\n  two  \r\nthree"))
    assert examples.texts == ("one", "two", "three")
    assert examples.labels is None
    assert examples.lines == (1, 3, 4)
    assert examples.inputs == ["one", "two", "three"]


def test_quoted_line_breaks_of_csv(tmp_path: Path) -> None:
    examples = load_texts(write(tmp_path / "a.csv", 'text,label\n"two\nlines",1\nnext,0\n'))
    assert examples.texts == ("two\nlines", "next")
    assert examples.lines == (3, 4)


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("premise\thypothesis\tlabel", ("a", "b")),
        ("label\tQuestion\tSentence", ("b", "c")),
        ("question\tcontext\tid", ("a", "b")),
        ("id\tsentence1\tsentence2", ("b", "c")),
    ],
)
def test_pairs_are_guessed(tmp_path: Path, header: str, columns: tuple[str, str]) -> None:
    row = "\t".join({"label": "1"}.get(name, "abc"[index]) for index, name in enumerate(header.split("\t")))
    examples = load_texts(write(tmp_path / "a.tsv", f"{header}\n{row}\n"))
    assert examples.inputs == [columns]


def test_squad_layout(tmp_path: Path) -> None:
    question = {"question": "who?", "id": "1", "answers": []}
    article = {"title": "t", "paragraphs": [{"context": "he did", "qas": [question, question]}]}
    examples = load_texts(write(tmp_path / "a.json", json.dumps({"version": "1", "data": [article]})))
    assert examples.inputs == [("who?", "he did")] * 2
    assert examples.labels is None


def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,body,answer,stars\n7,hello,world,1\n")
    examples = load_texts(path, text="answer", text_pair="body", label="stars")
    assert examples.inputs == [("world", "hello")]
    assert examples.labels == (1,)
    with pytest.raises(InputError, match=r"no column 'txt'[\s\S]*columns: id, body, answer, stars"):
        load_texts(path, text="txt")


def test_label_kinds(tmp_path: Path) -> None:
    examples = load_texts(write(tmp_path / "a.csv", "text,label\na,pos\nb, neg \nc,\nd,2\ne,-1\n"))
    assert examples.labels == ("pos", "neg", None, 2, None)
    floats = load_texts(write(tmp_path / "a.json", '{"text": ["a", "b", "c"], "label": [1.0, 0.5, null]}'))
    assert floats.labels == (1, "0.5", None)
    unlabelled = load_texts(write(tmp_path / "b.csv", "text,label\na,-1\nb,-1\n"))
    assert unlabelled.labels is None
    assert "holds no labels" in unlabelled.notes[0]


def test_rows_without_text_are_left_out_and_told(tmp_path: Path) -> None:
    examples = load_texts(write(tmp_path / "a.tsv", "text\tlabel\na\t1\n\t0\nb\t0\n"))
    assert examples.texts == ("a", "b")
    assert examples.lines == (2, 4)
    assert "1 row without text" in examples.notes[0]
    with pytest.raises(InputError, match="is empty"):
        load_texts(write(tmp_path / "b.tsv", "text\tlabel\n\t1\n"))


BROKEN = {
    "empty.tsv": ("", "is empty"),
    "blank.txt": ("\n  \n", "is empty"),
    "bom_only.txt": (b"\xef\xbb\xbf\n", "no text in it"),
    "header.tsv": ("sentence\tlabel\n", "header but no rows"),
    "ragged.tsv": ("sentence\tlabel\na\t1\nb\t1\textra\n", "line 3: 3 fields where the header has 2"),
    "ragged.csv": ("text,label\nhello, world,1\n", "line 2: 3 fields where the header has 2"),
    "quote.csv": ('text,label\n"open,1\n', "malformed CSV"),
    "twice.csv": ("text,text\na,b\n", "two columns have the same name"),
    "noname.csv": ("text,\na,b\n", "a column has no name"),
    "latin.txt": ("caf\xe9".encode("latin1"), "not UTF-8, line 1"),
    "latin2.tsv": ("text\tlabel\nok\t1\ncaf\xe9\t0\n".encode("latin1"), "not UTF-8, line 3"),
    "utf16.tsv": ("text\tlabel\na\t1\n".encode("utf-16"), "UTF-16"),
    "binary.txt": (b"abc\n\x00\x01\x02", "binary file, not text\n.*line 2"),
    "zip.csv": (b"PK\x03\x04abcdef", "a zip archive"),
    "gzip.jsonl": (b"\x1f\x8babcdef", "a gzip archive"),
    "bad.jsonl": ('{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "mixed.jsonl": ('{"text": "a"}\n["b"]\n', "line 2: an object is needed"),
    "null.jsonl": ('{"text": "a"}\n{"label": 1}\n', "line 2: column 'text' holds no text"),
    "number.jsonl": ('{"text": 3}\n', "line 1: column 'text' holds no text"),
    "lines.json": ('{"text": "a"}\n{"text": "b"}\n', r"is not JSON[\s\S]*rename"),
    "scalar.json": ("3", "a list of objects is needed"),
    "uneven.json": ('{"text": ["a"], "label": [1, 2]}', "differ in length"),
    "none.json": ("[]", "has no rows"),
    "column.tsv": ("alpha\tbeta\nx\ty\n", r"which column holds the text\?[\s\S]*alpha, beta[\s\S]*--text"),
    "semicolon.csv": ("text;label\nx;1\n", r"which column[\s\S]*separated by commas"),
    "headless.tsv": ("a nice film\t1\nbad\t0\n", "first line has to name the columns"),
    "what.xyz": ("a", "format '.xyz' is not known"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    with pytest.raises(InputError, match=message) as caught:
        load_texts(write(tmp_path / name, content))
    assert name in str(caught.value)


def test_missing_file_tells_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", as_tsv())
    with pytest.raises(InputError, match=r"there is no file .*trian.tsv\n.*train.tsv"):
        load_texts(tmp_path / "trian.tsv")
    with pytest.raises(InputError, match="does not exist"):
        load_texts(tmp_path / "no" / "train.tsv")
    with pytest.raises(InputError, match="there is no file or folder"):
        load_texts(tmp_path / "no" / "folder")


def test_folder_with_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", as_tsv())
    write(tmp_path / "dev.jsonl", '{"text": "held out"}\n')
    assert load_texts(tmp_path).texts == TEXTS
    assert load_texts(tmp_path, purpose="evaluation").texts == ("held out",)
    assert load_texts(tmp_path, split="dev").texts == ("held out",)
    with pytest.raises(InputError, match="no file for the split test"):
        load_texts(tmp_path, split="test")
    with pytest.raises(InputError, match="has no splits"):
        load_texts(tmp_path / "train.tsv", split="dev")


def test_limit_is_a_seeded_draw_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n".join(f"text {index}" for index in range(200)))
    random.seed(5)
    before = random.getstate()
    first = load_texts(path, limit=20, seed=3)
    assert random.getstate() == before
    assert load_texts(path, limit=20, seed=3) == first
    assert load_texts(path, limit=20, seed=4) != first
    assert list(first.lines) == sorted(set(first.lines))
    assert len(load_texts(path, limit=1000)) == 200
    with pytest.raises(InputError, match="at least 1"):
        load_texts(path, limit=0)


def test_hash_depends_on_order_and_labels(tmp_path: Path) -> None:
    contents = ("text,label\na,1\nb,0\n", "text,label\nb,0\na,1\n", "text,label\na,0\nb,0\n", "text\na\nb\n")
    hashes = set()
    for index, content in enumerate(contents[:3]):
        hashes.add(load_texts(write(tmp_path / f"{index}.csv", content)).sha256)
    hashes.add(load_texts(write(tmp_path / "b.txt", "a\nb\n")).sha256)
    assert len(hashes) == 4


def test_tasks() -> None:
    assert find_task("SST2").metric == "accuracy"
    assert find_task("ag-news").name == "ag_news"
    assert TASKS["cola"].metric == "matthews"
    with pytest.raises(InputError, match=r"no task called 'sst3'[\s\S]*sst2"):
        find_task("sst3")


def test_task_columns_come_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(name: str, config: str, split: str | None, purpose: str) -> tuple[Table, str, dict[str, tuple[str, ...]]]:
        asked.append((name, config, split, purpose))
        columns = {"idx": [0, 1], "premise": ["a", "c"], "hypothesis": ["b", "d"], "label": [2, -1]}
        return Table(columns, (1, 2), "row"), f"{name} [{split}]", {"label": ("x", "y", "z")}

    monkeypatch.setattr(hub, "read_hub", read)
    mnli = load_texts("mnli", purpose="evaluation")
    assert asked[-1] == ("nyu-mll/glue", "mnli", "validation_matched", "evaluation")
    assert (mnli.inputs, mnli.labels, mnli.label_names) == ([("a", "b"), ("c", "d")], (2, None), ("x", "y", "z"))
    snli = load_texts("snli", purpose="evaluation")
    assert snli.texts == ("a",)
    assert "1 rows without label" in snli.notes[0]
    load_texts("owner/name:config", split="part")
    assert asked[-1] == ("owner/name", "config", "part", "train")


def test_answers_come_from_the_hub_as_lists_in_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(name: str, config: str, split: str | None, purpose: str) -> tuple[Table, str, dict[str, tuple[str, ...]]]:
        answers = [{"text": ["did", "he did"], "answer_start": [3, 0]}]
        columns = {"id": ["1"], "title": ["t"], "context": ["he did"], "question": ["what?"], "answers": answers}
        return Table(columns, (1,), "row"), f"{name} [{split}]", {}

    monkeypatch.setattr(hub, "read_hub", read)
    squad = load_texts("squad", purpose="evaluation")
    assert squad.inputs == [("what?", "he did")]
    assert (squad.answers, squad.labels) == ((((3, "did"), (0, "he did")),), None)
    assert squad.task is not None
    assert (squad.task.metric, squad.task.judges("ForQuestionAnswering")) == ("f1", True)
    assert not squad.task.judges("ForSequenceClassification")
    assert TASKS["sst2"].judges("ForSequenceClassification")


def test_hub_data_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputError, match="hub was not reached"):
        load_texts("sst2")


def test_without_the_datasets_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the datasets package"):
        load_texts("sst2")


def test_rows_in_two_sets(tmp_path: Path) -> None:
    first = load_texts(write(tmp_path / "first.tsv", "sentence\tlabel\nA good film\t1\nbad\t0\nfine\t1\n"))
    other = load_texts(write(tmp_path / "other.tsv", "sentence\tlabel\nfine\t0\n a  GOOD film\t1\ngood\t1\n"))
    assert shared_rows(first, other) == [0, 2]
    left = without_rows(first, [0, 2])
    assert (left.texts, left.labels, left.lines) == (("bad",), (0,), (3,))
    # the hash is that of a file with these rows alone
    assert left.sha256 == load_texts(write(tmp_path / "left.tsv", "sentence\tlabel\nbad\t0\n")).sha256
    with pytest.raises(InputError, match="no row would be left"):
        without_rows(first, range(3))


def test_pairs_are_shared_as_pairs(tmp_path: Path) -> None:
    head = "premise\thypothesis\tlabel\n"
    first = load_texts(write(tmp_path / "first.tsv", f"{head}a\tb\t0\nb\ta\t1\n"))
    other = load_texts(write(tmp_path / "other.tsv", f"{head}b\ta\t0\na\tc\t0\n"))
    assert shared_rows(first, other) == [1]
    assert without_rows(first, [1]).pairs == ("b",)
