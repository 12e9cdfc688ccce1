# SPDX-License-Identifier: Apache-2.0
"""Sparse storage on the command line: pruned into it, evaluated in it, and exported from and to it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pyprune
from pyprune.result import load_masks

Run = Callable[..., Any]


def test_there_and_back(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    import transformers

    common = ("prune", model, "--data", data[0], "--method", "magnitude", "--sparsity", 0.9, "--quiet", "--output")
    assert run(*common, tmp_path / "dense").status == 0
    outcome = run(*common, tmp_path / "sparse", "--storage", "sparse", "--evaluate", data[1], "--json")
    assert outcome.status == 0, outcome.err
    assert not (tmp_path / "sparse" / "model.safetensors").exists()
    evaluated = run("evaluate", tmp_path / "sparse", "--data", data[1], "--against", tmp_path / "dense", "--json").json
    assert evaluated["correct"] == outcome.json["evaluation"]["pruned"]["correct"]
    assert evaluated["comparison"]["same_answer"] == 1.0
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "sparse")

    assert run("export", tmp_path / "sparse", "--dense", tmp_path / "plain").status == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("dense", "plain"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("dense", "plain"):
        assert load_masks(tmp_path / name).keys() == load_masks(tmp_path / "sparse").keys()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in first.items())
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == sorted(
        path.name for path in (tmp_path / "dense").iterdir()
    )

    document = run("export", tmp_path / "dense", "--sparse", tmp_path / "again", "--json").json
    assert document["bytes"]["after"] < document["bytes"]["before"]
    files = [(tmp_path / name / "pyprune.safetensors").read_bytes() for name in ("sparse", "again")]
    assert files[0] == files[1]
    smaller = run("export", tmp_path / "sparse", "--sparse", tmp_path / "bytes", "--values", "int8")
    assert "weights   " in smaller.out
    linear = pyprune.load(tmp_path / "bytes").bert.encoder.layer[0].output.dense
    assert linear.sparse.dtype == torch.int8
    torch.testing.assert_close(linear.weight, first["bert.encoder.layer.0.output.dense.weight"], rtol=0, atol=0.02)
    # what is stored sparse can be pruned again
    assert run(*common, tmp_path / "twice").status == 0


def test_refusals(run: Run, model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    assert run("prune", model, "--data", data[0], "--method", "magnitude", "--quiet", "--output", dense).status == 0
    for arguments, message in (
        ((model, "--sparse", tmp_path / "out"), "is not a model saved by pyprune"),
        ((dense, "--dense", tmp_path / "out"), "is dense already"),
        ((dense, "--sparse", dense), "the folder of the model itself"),
        ((dense, "--sparse", dense / "config.json"), "is a file"),
    ):
        outcome = run("export", *arguments)
        assert outcome.status == 1
        assert message in outcome.err
    assert not (tmp_path / "out").exists()


def test_onnx(run: Run, model: Path, tmp_path: Path) -> None:
    import transformers

    small = pyprune.compact(
        transformers.AutoModelForSequenceClassification.from_pretrained(model), _half_of_the_neurons(model)
    )
    small.save_pretrained(tmp_path / "small")
    outcome = run("export", tmp_path / "small", "--onnx", tmp_path / "small.onnx", "--json")
    if importlib.util.find_spec("onnx") is None:
        assert outcome.status == 1
        assert "pip install" in outcome.err
    else:
        assert outcome.json["inputs"][0] == "input_ids"
        assert outcome.json["bytes"]["after"] == (tmp_path / "small.onnx").stat().st_size
    assert run("export", tmp_path / "small", "--onnx", tmp_path / "no.onnx", "--values", "int8").status == 2
    outcome = run("export", tmp_path / "small", "--modelling", tmp_path / "shared", "--json")
    assert outcome.json["module"] == "modeling_compact.py"
    assert (tmp_path / "shared" / "modeling_compact.py").is_file()
    assert "from_pretrained" in run("export", tmp_path / "small", "--modelling", tmp_path / "shared").out
    assert run("export", model, "--modelling", tmp_path / "no").status == 1


def _half_of_the_neurons(model: Path) -> pyprune.Units:
    config = pyprune.models.skeleton.read_config(model)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    neurons = torch.arange(config.intermediate_size).expand(layers, -1) % 2 == 0
    kept = torch.ones(layers, heads, dtype=torch.bool)
    return pyprune.Units.from_masks(config.hidden_size, kept, neurons, width=config.hidden_size // heads)
