# SPDX-License-Identifier: Apache-2.0
"""Records on disk: whole, in order, and only ever of one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyprune.attack.records import Journal, read
from pyprune.errors import InputError


def record(index: int, settings: str = "x") -> dict:
    return {"index": index, "outcome": "failed", "text": f"“{index}” ü\n", "settings": settings}


def test_each_record_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "attack.jsonl"
    with Journal(path, "x", resume=False) as journal:
        journal.add(record(2))
        assert read(path) == [record(2)]
        journal.add(record(0))
        journal.add({**record(0), "text": "later"})  # what is known stays
        assert read(path) == [record(0), record(2)]
        assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [2, 0]
        assert journal.finish() == [record(0), record(2)]
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 2]


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "attack.jsonl"
    with Journal(path, "x", resume=False) as journal:
        for index in range(3):
            journal.add(record(index))
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 3):
        path.write_bytes(whole[:-cut])
        with Journal(path, "x", resume=True) as journal:
            assert sorted(journal.records) == [0, 1]
            journal.add(record(2))
        assert path.read_bytes() == whole


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "attack.jsonl"
    with Journal(path, "x", resume=False) as journal:
        journal.add(record(0))
    before = path.read_bytes()
    with pytest.raises(InputError, match="already holds"):
        Journal(path, "x", resume=False)
    with pytest.raises(InputError, match="another run"):
        Journal(path, "y", resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["{", "[]", '{"index": 1}', '{"index": 1, "outcome": "won"}', '{"outcome": "failed"}'])
def test_what_is_not_a_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "attack.jsonl"
    path.write_text(f'{{"index": 0, "outcome": "failed"}}\n{line}\n')
    with pytest.raises(InputError, match="line 2 is not a record"):
        read(path)
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.jsonl")
