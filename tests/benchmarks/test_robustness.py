# SPDX-License-Identifier: Apache-2.0
"""Attacks in folders become tables: who is compared with whom, and which way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import robustness_tables

from pyprune.attack.statistics import summarise

# Of four rows: what the start and three pruned models make of them.
OUTCOMES = {
    "fine-tuned": ["failed", "failed", "succeeded", "skipped"],
    "akr-50": ["failed", "failed", "failed", "succeeded"],
    "wanda-50": ["succeeded", "failed", "skipped", "skipped"],
    "akr-87.5": ["succeeded", "succeeded", "succeeded", "skipped"],
}


@pytest.fixture
def attacks(tmp_path: Path) -> Path:
    about = {"recipe": "textfooler", "seed": 0, "textattack": "0.3.11", "max_length": 64, "sha256": "0", "attack": "1"}
    for name, outcomes in OUTCOMES.items():
        folder = tmp_path / "attacks" / name
        folder.mkdir(parents=True)
        records = [
            {
                "index": row,
                "line": row,
                "text": "a",
                "outcome": outcome,
                "queries": 7,
                "words": 4,
                "changed": 1,
                "attack": "1",
            }
            for row, outcome in enumerate(outcomes)
        ]
        # Rows are written as they come, which is not the order of the data.
        (folder / "attack.jsonl").write_text("".join(json.dumps(record) + "\n" for record in reversed(records)))
        (folder / "attack.json").write_text(json.dumps({**about, **summarise(records)}))
        if name != "fine-tuned":
            (folder / "pyprune.json").write_text(json.dumps({"mean_error": 0.25}))
    return tmp_path / "attacks"


def test_every_model_has_a_row_by_sparsity_and_method(attacks: Path) -> None:
    cases, _ = robustness_tables.read(attacks)
    assert list(cases) == ["fine-tuned", "wanda-50", "akr-50", "akr-87.5"]
    assert cases["akr-50"]["outcomes"] == "ooox"
    rows = robustness_tables.rates(cases)[2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| dense", "0"],
        ["| Wanda", "50"],
        ["| AKR", "50"],
        ["| AKR", "87.5"],
    ]
    assert "| AKR | 50 | 100.0 (51.0 to 100.0) | 75.0" in rows[2]
    assert rows[2].endswith("| 7 | 25.0 |")
    assert rows[0].endswith("| – |")


def test_differences_are_of_akr_less_the_other(attacks: Path) -> None:
    _, records = robustness_tables.read(attacks)
    found = robustness_tables.comparisons(records)
    assert list(found) == [("akr-50", "fine-tuned"), ("akr-50", "wanda-50"), ("akr-87.5", "fine-tuned")]
    assert found["akr-50", "wanda-50"]["aua"]["difference"] == pytest.approx(0.5)
    rows = robustness_tables.differences(found)[2:]
    assert rows[0].startswith("| AKR at 50 % − dense | +25.0")
    assert "| 1 / 0 |" in rows[0]
    assert rows[1].startswith("| AKR − Wanda, 50 % | +50.0")
    assert rows[2].startswith("| AKR at 87.5 % − dense | +0.0")
    assert "| 0 / 2 |" in rows[2]


def test_a_document_is_filled(attacks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "document.md"
    document.write_text("<!-- t:begin -->\nold\n<!-- t:end -->\n<!-- t-diff:begin -->\n<!-- t-diff:end -->\n")
    robustness_tables.main([str(attacks), "--name", "t", "--document", str(document), "--no-write"])
    text = document.read_text()
    assert "old" not in text
    assert "| Wanda | 50 |" in text
    assert "| AKR − Wanda, 50 % |" in text
    assert "| Wanda | 50 |" in capsys.readouterr().out
