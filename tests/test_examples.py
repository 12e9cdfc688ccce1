# SPDX-License-Identifier: Apache-2.0
"""Every example runs in a process of its own, small, and prints what it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import pyprune
from pyprune import demo, tasks
from pyprune.result import load_report

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    """Run an example in ``folder``, on one thread and offline, and return what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYPRUNE_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def errors(text: str) -> dict[str, tuple[int, float]]:
    """Kept weights and error by solver."""
    rows = re.findall(r"^(\w+) +(\d+) +(\d\.\d+) +\d+\.\d+$", text, re.MULTILINE)
    return {solver: (int(kept), float(error)) for solver, kept, error in rows}


@pytest.mark.parametrize(("pattern", "kept"), [("0.5", 16 * 16), ("2:4", 16 * 16), ("0.75", 16 * 8)])
def test_solve_one_matrix(pattern: str, kept: int, tmp_path: Path) -> None:
    text = run(
        "solve_one_matrix.py", "--rows", "16", "--cols", "32", "--tokens", "200", "--pattern", pattern, folder=tmp_path
    )
    found = errors(text)
    assert tuple(found) == pyprune.solvers.available()
    assert {count for count, _ in found.values()} == {kept}
    by_solver = {solver: error for solver, (_, error) in found.items()}
    assert 0 < by_solver["obs"] < by_solver["sparsegpt"] < min(by_solver["wanda"], by_solver["magnitude"]) < 1
    own, output = (
        float(re.search(rf"towards {what} +(\d\.\d+)$", text, re.MULTILINE)[1])  # type: ignore[index]
        for what in ("its own weight", "that output")
    )
    assert 0 < output < own


def test_prune_model(tmp_path: Path) -> None:
    """On the model that comes with pyprune, by the cheapest method that reads the text."""
    text = run(
        "prune_model.py",
        *("--method", "wanda", "--solver", "wanda", "--samples", "16", "--limit", "60", "--output", "pruned"),
        folder=tmp_path,
    )
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert list(lines) == ["method", "removed", "error", "dense", "pruned"]
    assert lines["method"] == "wanda, 50 % of each row, solver wanda"
    assert lines["removed"] == "50.00% of 10,616,832"
    right = {name: int(re.search(r"\((\d+) of 60,", lines[name])[1]) for name in ("dense", "pruned")}  # type: ignore[index]
    assert right["dense"] >= 51
    assert right["pruned"] >= 45  # half of 60 by guessing, plus four standard deviations
    assert lines["error"].startswith(f"{load_report(tmp_path / 'pruned')['mean_error']:.2%} on average")
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
    held_out = tasks.load_texts(demo.test_file(), limit=60)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pruned")
    assert lines["pruned"] == tasks.evaluate(saved, held_out, tokenizer=tokenizer).describe()


def test_bench_my_kernel(tmp_path: Path) -> None:
    text = run("bench_my_kernel.py", "--shapes", "16x32", "--tokens", "1,3", "--seconds", "0.01", folder=tmp_path)
    assert re.findall(r"^16x32, tokens (\d), zeros (\d+)%$", text, re.MULTILINE) == [
        (tokens, zeros) for tokens in ("1", "3") for zeros in ("50", "90")
    ]
    for name in ("pyprune", "skip-columns", "torch.linear"):
        assert len(re.findall(rf"^  {re.escape(name)} +[\d.]+ µs   error \de-\d\d$", text, re.MULTILINE)) == 4, name
    assert len(re.findall(r"^skip-columns, float32, unstructured, \d\d % zeros: ", text, re.MULTILINE)) == 2


@pytest.mark.parametrize(
    ("name", "model", "numbers"),
    [
        ("akr_sst2.py", "textattack/bert-base-uncased-SST-2", "| akr-50 | 88.31 | 43.1 | 51.2 |"),
        ("akr_agnews.py", "textattack/bert-base-uncased-ag-news", "| akr-50 | 93.4 | 48.5 | 48.1 |"),
        ("akr_imdb.py", "textattack/bert-base-uncased-imdb", "| akr-50 | 94.2 | 53.2 | 43.6 |"),
    ],
)
def test_akr(name: str, model: str, numbers: str, tmp_path: Path) -> None:
    """The plan alone: tests/examples/test_akr.py runs the steps."""
    text = run(name, "--plan", folder=tmp_path)
    assert "prune    akr at 87.5 %, calibrated on 2560 texts of " in text
    assert "attack   fine-tuned, akr-30, akr-50, akr-87.5: textfooler on " in text
    assert model in text
    assert numbers in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_help_and_a_test(path: Path, tmp_path: Path) -> None:
    assert path.name in run(path.name, "--help", folder=tmp_path)
    assert f'"{path.name}",' in Path(__file__).read_text(encoding="utf-8"), f"{path.name} is run by no test"
