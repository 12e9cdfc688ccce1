# SPDX-License-Identifier: Apache-2.0
"""Heads and neurons on the command line: pruned, saved smaller, evaluated, exported, timed; and what is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import wait_for
from tiny_checkpoint import build_checkpoint, build_data

import pyprune
from pyprune.result import load_units

Run = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def smaller(
    model: Path, data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A model pruned from the command line, and what was printed; not to be written to."""
    from contextlib import redirect_stdout
    from io import StringIO

    from pyprune.cli import main

    folder, out = tmp_path_factory.mktemp("units") / "smaller", StringIO()
    arguments = ["prune", model, "--data", data[0], "--method", "kprune", "--target-flops", 0.4, "--output", folder]
    with redirect_stdout(out):
        assert main([*map(str, arguments), "--evaluate", str(data[1]), "--json", "--quiet"]) == 0
    return folder, json.loads(out.getvalue())


def test_pruned_and_evaluated(
    run: Run, model: Path, data: tuple[Path, Path], smaller: tuple[Path, dict[str, Any]]
) -> None:
    folder, document = smaller
    assert document["method"] == "kprune"
    assert document["budget"]["share"] == 0.4
    assert document["left"]["flops"] <= 0.4
    assert not list(folder.parent.glob("*.journal*"))
    stored = json.loads((folder / "pyprune.json").read_text(encoding="utf-8"))
    assert stored == {key: value for key, value in document.items() if key != "output"}
    evaluated = run("evaluate", folder, "--data", data[1], "--against", model, "--json").json
    assert evaluated["correct"] == document["evaluation"]["pruned"]["correct"]
    assert (folder / "model.safetensors").stat().st_size < (model / "model.safetensors").stat().st_size


def test_exported(run: Run, smaller: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import transformers

    folder, _ = smaller
    document = run("export", folder, "--dense", tmp_path / "plain", "--json").json
    assert document["bytes"]["after"] > document["bytes"]["before"]
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.inference_mode():
        torch.testing.assert_close(plain(ids).logits, pyprune.load(folder)(ids).logits, rtol=0, atol=1e-5)
    assert run("export", tmp_path / "plain", "--compact", tmp_path / "cut").status == 0
    weights = [(path / "model.safetensors").read_bytes() for path in (tmp_path / "cut", folder)]
    assert weights[0] == weights[1]
    for arguments, message in (
        ((folder, "--compact", tmp_path / "no"), "is compact already"),
        ((folder, "--sparse", tmp_path / "no"), "has no masks of weights"),
        ((tmp_path / "plain", "--dense", tmp_path / "no"), "is dense already"),
    ):
        refused = run("export", *arguments)
        assert refused.status == 1
        assert message in refused.err
    onnx = run("export", folder, "--onnx", tmp_path / "small.onnx", "--json")
    assert (onnx.status == 0) == (importlib.util.find_spec("onnx") is not None)


def test_timed_beside_the_dense_one(run: Run, model: Path, smaller: tuple[Path, dict[str, Any]]) -> None:
    arguments = ("--batch", 2, "--length", 8, "--dtype", "float32", "--rounds", 1, "--no-memory", "--quiet", "--json")
    outcome = run("bench", "model", model, smaller[0], *arguments)
    assert outcome.status == 0, outcome.err
    models = outcome.json["models"]
    assert models["pruned"]["disk"]["weights"] < models["dense"]["disk"]["weights"]


def test_tables(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    common = ("prune", model, "--data", data[0], "--method", "kwon", "--target-parameters", 0.4)
    outcome = run(*common, "--storage", "dense", "--output", tmp_path / "plain")
    assert outcome.status == 0, outcome.err
    for words in (
        "at most 40 % of the parameters of heads and neurons left, at least 60 % removed",
        "of 8 heads,",
        "of all parameters of the model",
        "1: ",
        f"{tmp_path / 'plain'} (with zeros in place, for plain transformers too)",
    ):
        assert words in outcome.out
    assert "memory: about" in outcome.err
    assert load_units(tmp_path / "plain") is not None
    planned = run(*common, "--dry-run", "--output", tmp_path / "no")
    assert "at least 60 % removed" in planned.out
    assert "dry run: nothing was changed" in planned.out
    assert run(*common, "--dry-run", "--json").json["plan"]["budget"]["share"] == 0.4
    assert not (tmp_path / "no").exists()
    # a method that prunes all at once starts from the beginning
    again = run(*common, "--output", tmp_path / "plain", "--resume")
    assert again.status == 0
    assert "starts from the beginning" in again.err


def test_labels_of_the_data(run: Run, model: Path, data: tuple[Path, Path]) -> None:
    common = ("prune", model, "--method", "kwon", "--target-macs", 0.5, "--quiet", "--json")
    document = run(*common, "--data", data[1], "--labels", "data").json
    assert document["settings"]["labels"] == "data"
    assert run(*common, "--data", data[1]).json["settings"]["labels"] == "drawn"
    refused = run(*common, "--data", data[0], "--labels", "data")
    assert refused.status == 1
    assert "has no labels" in refused.err


USAGE = [
    (("--method", "kprune"), "the part that may be LEFT"),
    (("--method", "kprune", "--sparsity", "0.6"), "--target-flops 0.4"),
    (("--method", "kwon", "--pattern", "2:4", "--target-flops", "0.5"), "--pattern does not go with --method kwon"),
    (("--method", "kprune", "--scope", "row", "--target-flops", "0.5"), "--scope does not go with"),
    (("--method", "kprune", "--solver", "obs", "--target-flops", "0.5"), "--solver does not go with"),
    (("--method", "kprune", "--no-rectify", "--target-flops", "0.5"), "--rectify does not go with"),
    (("--method", "kprune", "--streaming", "--target-flops", "0.5"), "--streaming does not go with"),
    (("--method", "unit-magnitude", "--damping", "0.1", "--target-flops", "0.5"), "--damping does not go with"),
    (("--method", "kprune", "--target-flops", "0.5", "--target-macs", "0.5"), "not allowed with argument"),
    (("--method", "kprune", "--target-flops", "40"), "did you mean 0.4 (40 % left, 60 % removed)?"),
    (("--method", "kprune", "--target-flops", "most"), "'most' is not a number"),
    (("--method", "kprune", "--target-flops", "-0.1"), "from 0 to 1"),
    (("--method", "kprune", "--target-flops", "nan"), "from 0 to 1"),
    (("--method", "kprune", "--target-latency", "0.5"), "2.0x is twice as fast"),
    (("--method", "kprune", "--target-latency", "fast"), "such as 2.0x"),
    (("--method", "kprune", "--target-latency", "2x", "--target-flops", "0.5"), "not allowed with argument"),
    (
        ("--method", "kprune", "--target-flops", "0.5", "--latency-table", "x"),
        "--latency-table goes with --target-latency",
    ),
    (("--target-flops", "0.5"), "akr removes single weights"),
    (("--method", "magnitude", "--target-macs", "0.5"), "unit-magnitude"),
    (("--storage", "compact"), "akr leaves all units in place"),
    (("--method", "kprune", "--labels", "data", "--target-flops", "0.5"), "--labels goes with --method kwon"),
    (("--method", "kprune", "--values", "int8", "--target-flops", "0.5"), "--values int8 goes with --storage sparse"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_bad_usage(run: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("prune", "m", "--data", "d", *arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_models_that_cannot_be(
    run: Run, data: tuple[Path, Path], tmp_path: Path, smaller: tuple[Path, dict[str, Any]]
) -> None:
    common = ("--data", data[0], "--method", "kprune", "--target-flops", 0.5)
    for arguments, message in (
        ({"head": "lm", "family": "opt"}, "units of opt models cannot be pruned"),
        ({"head": "masked_lm"}, "no objective for this model's predictions"),
        ({"head": "none"}, "a fine-tuned model is needed"),
    ):
        folder = build_checkpoint(tmp_path / str(arguments["head"]), **arguments)
        outcome = run("prune", folder, *common)
        assert outcome.status == 1
        assert message in outcome.err
    outcome = run("prune", smaller[0], *common)
    assert outcome.status == 1
    assert "compact already" in outcome.err


def test_a_killed_process_is_resumed(start: Start, run: Run, tmp_path: Path) -> None:
    train, _ = build_data(tmp_path, train=96)
    model = build_checkpoint(tmp_path / "model", layers=6)
    common = ("prune", model, "--data", train, "--method", "kprune", "--target-flops", 0.5, "--threads", 1, "--quiet")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    killed = start(*common, "--output", parts)
    wait_for(tmp_path / "parts.journal" / "block-001.safetensors", killed)
    killed.kill()
    killed.communicate()
    assert not parts.exists()
    refused = run(*common, "--output", parts)
    assert refused.status == 1
    assert "--resume" in refused.err
    foreign = run(*common, "--output", parts, "--resume", "--target-flops", 0.6)
    assert foreign.status == 1
    assert "share was 0.5, now 0.6" in foreign.err
    resumed = run(*common, "--output", parts, "--resume", "--json")
    assert resumed.status == 0, resumed.err
    assert resumed.json["resumed_blocks"] >= 2
    assert not (tmp_path / "parts.journal").exists()
    assert run(*common, "--output", whole).status == 0
    for name in ("model.safetensors", "pyprune_units.json", "config.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
