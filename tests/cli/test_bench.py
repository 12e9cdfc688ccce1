# SPDX-License-Identifier: Apache-2.0
"""``pyprune bench``: what it prints and writes, and what it says of bad input; never how long anything takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import build_checkpoint

from pyprune.bench import registry

Run = Callable[..., Any]
SMALL = ("--shapes", "8x16,16x8", "--tokens", "1,3", "--sparsity", "0.5,0.75", "--rounds", 1, "--quiet")


@pytest.fixture(autouse=True)
def _no_kernel_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("bench") / "pruned")


@pytest.mark.parametrize("kind", ["spmm", "model"])
def test_help_has_examples(run: Run, kind: str) -> None:
    outcome = run("bench", kind, "--help")
    assert outcome.status == 0
    assert f"pyprune bench {kind}" in outcome.out.partition("examples:")[2]
    assert "only files you trust" in outcome.out or kind == "model"


def test_spmm(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "new" / "results"
    outcome = run("bench", "spmm", *SMALL, "--with", "torch.linear", "torch.csr", "--output", output)
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split()[:4] == ["weight", "tokens", "zeros", "dtype"]
    assert sum(line.startswith(("8x16", "16x8")) for line in lines) == 8
    assert "pyprune, float32, unstructured, 50 % zeros" in outcome.out
    assert lines[-1] == f"saved in {output}"
    assert {path.name for path in output.iterdir()} == {"spmm.json", "spmm.txt", "spmm.png"}
    record = json.loads((output / "spmm.json").read_text(encoding="utf-8"))
    assert len(record["cases"]) == 8
    assert set(record["candidates"]) == {"pyprune", "torch.linear", "torch.csr"}
    assert (output / "spmm.txt").read_text(encoding="utf-8").strip() in outcome.out
    assert (output / "spmm.png").read_bytes().startswith(b"\x89PNG")


def test_spmm_as_json(run: Run) -> None:
    record = run("bench", "spmm", *SMALL, "--dtype", "float32,int8", "--pattern", "2:4", "--json").json
    assert len(record["cases"]) == 8
    assert {case["pattern"] for case in record["cases"]} == {"2:4"}
    assert all(case["results"]["pyprune"]["status"] == "timed" for case in record["cases"])


KERNEL = """
import pyprune.bench
def prepare(weight, mask, tokens, dtype):
    return lambda x: x @ weight.T
pyprune.bench.register("mine / fast", prepare)
"""


def test_a_kernel_from_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "kernel.py"
    file.write_text(KERNEL, encoding="utf-8")
    outcome = run("bench", "spmm", *SMALL, "--with", "torch.linear", "--kernel", file, "--output", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert sum(line.startswith("mine / fast  ") for line in outcome.out.splitlines()) == 8
    assert (tmp_path / "out" / "spmm-mine___fast.png").is_file()
    # named again, it is registered again
    assert run("bench", "spmm", *SMALL, "--with", "torch.linear", "--kernel", file).status == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no file"),
        ("x = 1", "registers no kernel"),
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
        ("raise SystemExit(3)", "cannot be run"),
        ('import pyprune.bench\npyprune.bench.register("scipy", None)', "already"),
    ],
)
def test_kernels_that_cannot_be_loaded(run: Run, tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "kernel.py"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    outcome = run("bench", "spmm", *SMALL, "--kernel", file)
    assert (outcome.status, outcome.out) == (1, "")
    assert words in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shapes", "384"), "'384' is not a shape"),
        (("--shapes", "0x4"), "'0x4' is not a shape"),
        (("--shapes", "axb"), "is not a shape"),
        (("--shapes", ","), "an empty list"),
        (("--tokens", "0"), "0 is not at least 1"),
        (("--sparsity", "1.5"), "1.5 is not a sparsity"),
        (("--pattern", "blocks"), "not understood"),
        (("--seconds", "0"), "measure nothing"),
        (("--weights", "hot"), "invalid choice"),
    ],
)
def test_bad_usage(run: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("bench", "spmm", *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err


def test_bad_input(run: Run, model: Path, pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for arguments, words in (
        (("spmm", "--dtype", "float8"), "unknown dtype 'float8'"),
        (("spmm", "--with", "nobody"), "no candidate called 'nobody'"),
        (("spmm", "--shapes", "5x5", "--pattern", "2:4"), "does not fit"),
        (("spmm", "--output", tmp_path / "file" / "out"), "is a file"),
        (("model", model, tmp_path / "absent"), "there is no folder"),
        (("model", model, pruned, "--data", tmp_path / "absent.tsv"), "absent.tsv"),
        (("model", model, pruned, "--length", "real"), "real lengths need data"),
        (("model", model, pruned, "--length", "1000"), "do not fit the model"),
        (("model", model, build_checkpoint(tmp_path / "other", vocab_size=90)), "differ in their vocabulary"),
    ):
        outcome = run("bench", *arguments)
        assert (outcome.status, outcome.out) == (1, ""), arguments
        assert words in outcome.err
        assert "should not happen" not in outcome.err
    assert run("bench").status == 2


def test_without_matplotlib(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    arguments = ("bench", "spmm", *SMALL[:-1], "--with", "torch.linear", "--output", tmp_path / "out")
    outcome = run(*arguments)
    assert outcome.status == 0
    assert "no plot: drawing needs matplotlib (pip install matplotlib)" in outcome.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"spmm.json", "spmm.txt"}


def test_models(run: Run, model: Path, pruned: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    common = ("bench", "model", model, pruned, "--batch", "1,4", "--rounds", 1, "--no-memory", "--quiet")
    outcome = run(*common, "--data", data[1], "--dtype", "float32", "--output", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert "Batch 4, real sentences: the fastest pruned one is" in outcome.out
    assert "Accuracy, dense: " in outcome.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.json", "model.txt", "model.png"}
    record = run(*common, "--length", "5,real", "--data", data[1], "--dtype", "float32", "--json").json
    assert [case["length"] for case in record["cases"]] == [5, 5, "real", "real"]
    assert record["settings"]["data"] == str(data[1])


def test_interrupt_keeps_what_was_measured(start: Any, tmp_path: Path) -> None:
    """Ctrl-C in the second case: the first is in the record, and the exit status says that it is not all."""
    file = tmp_path / "kernel.py"
    file.write_text(
        "import os, signal, pyprune.bench\n"
        "def prepare(weight, mask, tokens, dtype):\n"
        "    if tokens == 3:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return lambda x: x @ weight.T\n"
        'pyprune.bench.register("mine", prepare)\n',
        encoding="utf-8",
    )
    process = start("bench", "spmm", "--shapes", "8x16", "--tokens", "1,3,5", "--sparsity", "0.5", "--rounds", 1,
                    "--with", "torch.linear", "--kernel", file, "--output", tmp_path / "out", "--json")  # fmt: skip
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    assert [case["tokens"] for case in json.loads(out)["cases"]] == [1]
    record = json.loads((tmp_path / "out" / "spmm.json").read_text(encoding="utf-8"))
    assert record["interrupted"]
    assert "interrupted" in (tmp_path / "out" / "spmm.txt").read_text(encoding="utf-8")
