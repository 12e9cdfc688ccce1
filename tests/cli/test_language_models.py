# SPDX-License-Identifier: Apache-2.0
"""Decoders on the command line: pruned in memory and layer by layer, judged by perplexity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import build_checkpoint

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny LLaMA with tokenizer; not to be written to."""
    return build_checkpoint(tmp_path_factory.mktemp("decoder") / "llama", head="lm", family="llama")


def test_prune_and_evaluate(run: Run, llama: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "pruned"
    common = ("--data", data[0], "--max-length", 16, "--json")
    document = run("prune", llama, *common, "--output", output, "--evaluate", data[1], "--sparsity", 0.75).json
    assert document["data"]["tokens"] == 16 * document["data"]["sentences"]
    both = document["evaluation"]
    assert both["dense"]["metric"] == "perplexity"
    assert both["dense"]["predicted"] == both["pruned"]["predicted"]
    assert both["comparison"]["ratio"] == pytest.approx(both["pruned"]["value"] / both["dense"]["value"])
    again = run("evaluate", output, "--data", data[1], "--against", llama, "--json").json
    assert again["value"] == pytest.approx(both["pruned"]["value"], rel=1e-5)
    assert again["against"]["value"] == pytest.approx(both["dense"]["value"], rel=1e-5)
    text = run("evaluate", output, "--data", data[1], "--against", llama, "--max-length", 16, "--stride", 4).out
    assert "tokens predicted in" in text
    assert f"times that of {llama}" in text
    text = run("prune", llama, *common[:-1], "--method", "magnitude", "--evaluate", data[1]).out
    assert "perplexity" in text
    assert "dense ->" in text


def test_streaming_writes_the_same_bytes(run: Run, llama: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    common = ("prune", llama, "--data", data[0], "--max-length", 16, "--json", "--output")
    assert run(*common, tmp_path / "whole").status == 0
    outcome = run(*common, tmp_path / "parts", "--streaming")
    assert outcome.status == 0, outcome.err
    assert "never whole in memory" in outcome.err
    assert outcome.json["output"] == str(tmp_path / "parts")
    assert not list(tmp_path.glob("*.journal"))
    evaluated = [
        run("evaluate", tmp_path / name, "--data", data[1], "--json").json["nll"] for name in ("whole", "parts")
    ]
    assert evaluated[0] == evaluated[1]
    assert (tmp_path / "parts" / "tokenizer.json").exists()


def test_a_config_alone(run: Run, tmp_path: Path) -> None:
    config = {"model_type": "opt", "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"vocab_size": 50, "max_position_embeddings": 32, "word_embed_proj_dim": 16}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | sizes))
    common = ("prune", path, "--random-weights", "--samples", 4, "--method", "wanda")
    text = run(*common, "--dry-run").out
    assert "12 linear layers" in text
    assert "never the whole model at once" in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
    outcome = run(*common, "--output", tmp_path / "made", "--quiet")
    assert outcome.status == 0, outcome.err
    assert "50.00 % of the weights" in outcome.out
    assert (tmp_path / "made" / "model.safetensors").exists()


def test_what_does_not_go_together(run: Run, llama: Path, model: Path, data: tuple[Path, Path]) -> None:
    usage = run("prune", llama, "--data", data[0], "--streaming")
    assert (usage.status, "goes with --output" in usage.err) == (2, True)
    usage = run("prune", llama, "--data", data[0], "--streaming", "--output", "x", "--evaluate", data[1])
    assert (usage.status, "evaluate OUTPUT" in usage.err) == (2, True)
    for arguments, message in (
        (("prune", "no/where", "--data", data[0], "--streaming", "--output", "x"), "there is no folder"),
        (("evaluate", llama, "--data", data[1], "--metric", "f1"), "judged by perplexity"),
        (("evaluate", model, "--data", data[1], "--stride", 4), "--stride is for language models"),
        (("evaluate", llama, "--data", data[1], "--against", model), "no head for causal language modelling"),
    ):
        outcome = run(*arguments)
        assert outcome.status == 1
        assert message in outcome.err
