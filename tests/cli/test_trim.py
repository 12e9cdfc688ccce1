# SPDX-License-Identifier: Apache-2.0
"""``pyprune trim``: the vocabulary of texts, on models as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import pyprune

Run = Callable[..., Any]


def test_trimmed_and_evaluated(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    import transformers

    half = tmp_path / "half"
    transformers.AutoModelForSequenceClassification.from_pretrained(model).half().save_pretrained(half)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(half)
    (tmp_path / "few.txt").write_text("ba be bi\nba [MASK]\n", encoding="utf-8")
    few = tmp_path / "few.txt"
    outcome = run(
        "trim", half, "--data", few, "--data", data[1], "--keep", "[SEP]", "--output", tmp_path / "out", "--json"
    )
    assert outcome.status == 0, outcome.err
    found = outcome.json["vocabulary"]
    assert found["data"]["sources"] == [str(few), str(data[1])]
    assert found["tokens"]["after"] < found["tokens"]["before"] == 100
    assert load_file(tmp_path / "out" / "model.safetensors")["classifier.weight"].dtype == torch.float16
    answers = run("evaluate", tmp_path / "out", "--data", data[1], "--against", half, "--json").json
    assert answers["comparison"]["same_answer"] == 1.0

    again = run("trim", tmp_path / "out", "--data", few, "--output", tmp_path / "again")
    assert again.status == 0, again.err
    assert "WordPiece" in again.out
    assert f"{found['tokens']['after']} -> 8" in again.out  # [PAD] [UNK] [CLS] [SEP] [MASK] ba be bi
    assert pyprune.load(tmp_path / "again").config.vocab_size == 8
    # tokens that are not there any more are unknown, not an error
    assert run("evaluate", tmp_path / "again", "--data", data[1]).status == 0


def test_refusals(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    for arguments, status, message in (
        ((model, "--data", data[0]), 2, "--output"),
        ((model, "--output", tmp_path / "out"), 2, "--data"),
        ((model, "--data", data[0], "--output", model), 1, "was not written by pyprune"),
        ((model, "--data", tmp_path / "no.txt", "--output", tmp_path / "out"), 1, "no.txt"),
        ((model, "--data", data[0], "--keep", "nowhere", "--output", tmp_path / "out"), 1, "does not have"),
    ):
        outcome = run("trim", *arguments)
        assert outcome.status == status, outcome.err
        assert message in outcome.err
    assert not (tmp_path / "out").exists()
