# SPDX-License-Identifier: Apache-2.0
"""Two tiny models side by side: candidates, batches, sizes, and what is not as it should be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import build_checkpoint, build_data
from torch import nn

import pyprune
from pyprune import bench, tasks
from pyprune.bench import batches, model, opening, report, sizes, ways
from pyprune.errors import InputError

Pair = tuple[Path, Path]
QUICK: dict[str, Any] = {"rounds": 2, "memory": False}


def run(pair: Pair, **options: Any) -> dict[str, Any]:
    return dict(bench.run_model(str(pair[0]), str(pair[1]), **{"lengths": [6], "batches": [1], **QUICK, **options}))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of pyprune that change nothing."""
    monkeypatch.setattr(pyprune, "sparsify", lambda model, format, dtype=None: model, raising=False)
    monkeypatch.setattr(pyprune, "optimize", lambda model: model, raising=False)


@pytest.mark.usefixtures("stand_ins")
def test_record(pair: Pair, tmp_path: Path) -> None:
    _, dev = build_data(tmp_path, dev=12)
    examples = tasks.load_texts(dev, purpose="evaluation")
    dtypes = ["float32", "bfloat16", "int8"]
    record = run(pair, batches=[1, 3], lengths=["real", 6], dtypes=dtypes, examples=examples)
    assert [(case["batch"], case["length"]) for case in record["cases"]] == [(1, "real"), (3, "real"), (1, 6), (3, 6)]
    names = ["dense", "pruned as dense", "pruned sparsify", "pruned optimize"]
    wanted = {f"{name} {dtype}" for name in names for dtype in ("float32", "bfloat16")} | {"dense quantised int8"}
    assert wanted <= set(record["candidates"])
    for case in record["cases"]:
        for name in wanted:
            result = case["results"][name]
            assert result["status"] == "timed", (name, result)
            assert result["p50"] <= result["p90"] <= result["p99"]
            assert result["rounds"] == 2
            assert result["error"] < (1e-5 if "float32" in name else 0.1 if "bfloat16" in name else 0.3)
    assert {entry["evaluation"]["total"] for name, entry in record["candidates"].items() if name in wanted} == {12}
    assert record["models"]["dense"]["linear_sparsity"] == 0
    assert record["models"]["pruned"]["linear_sparsity"] == pytest.approx(0.75, abs=0.01)
    text, case = str(report.__doc__), record["cases"][0]
    keys = {*record, *case, *record["models"]["dense"], *record["models"]["dense"]["disk"]}
    keys |= {*record["candidates"]["dense float32"], *case["results"]["dense float32"]}
    assert {key for key in keys if f"``{key}``" not in text} == set()
    json.dumps(record, allow_nan=False)


def test_what_is_not_there_yet_says_so(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    table = [
        dataclasses.replace(way, needs=("pyprune.not_made",)) if way.ours else way
        for way in ways.WAYS
        if way.name.startswith("pruned")
    ]
    monkeypatch.setattr(model, "WAYS", table)
    record = run(pair, dtypes=["float32"])
    assert list(record["candidates"]) == ["pruned as dense float32"]
    assert record["missing"]["pruned optimize"] == "not available: this pyprune has no pyprune.not_made"


@pytest.mark.usefixtures("stand_ins")
def test_wrong_and_broken_candidates_are_not_timed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(module: nn.Module) -> nn.Module:
        classifier: Any = module.classifier
        with torch.no_grad():
            classifier.bias[0] += 0.5
        return module

    class Broken(nn.Module):
        def forward(self, **_: Any) -> Any:
            raise RuntimeError("no kernel for this\nlong story")

    monkeypatch.setattr(pyprune, "optimize", off)
    monkeypatch.setattr(pyprune, "sparsify", lambda model, format: Broken())
    record = run(pair, dtypes=["float32"])
    found = record["cases"][0]["results"]
    assert found["pruned optimize float32"]["status"] == "wrong"
    assert found["pruned optimize float32"]["error"] == pytest.approx(0.5, abs=1e-4)
    assert found["pruned sparsify float32"] == {"status": "failed", "reason": "RuntimeError: no kernel for this"}
    assert found["pruned as dense float32"]["status"] == "timed"
    assert any("pruned optimize float32 gave a wrong result" in line for line in record["verdict"])


def test_a_candidate_that_cannot_be_made(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Any) -> Any:
        raise InputError("this family is not served")

    monkeypatch.setattr(pyprune, "optimize", refuse, raising=False)
    record = run(pair, dtypes=["float32"])
    assert record["missing"]["pruned optimize float32"] == "InputError: this family is not served"


@pytest.mark.usefixtures("stand_ins")
def test_interrupted_it_keeps_what_was_measured(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    known = model._measure

    def measure(entrants: Any, models: Any, inputs: Any, **options: Any) -> Any:
        if len(inputs[0]["input_ids"]) == 2:
            raise KeyboardInterrupt
        return known(entrants, models, inputs, **options)

    monkeypatch.setattr(model, "_measure", measure)
    record = run(pair, batches=[1, 2, 3], dtypes=["float32"])
    assert record["interrupted"]
    assert [case["batch"] for case in record["cases"]] == [1]


def test_values_of_another_type_than_the_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of pyprune: bfloat16 whole, int8 for the weights alone; the optimised form is fed by sparsify."""
    asked: list[Any] = []
    monkeypatch.setattr(
        pyprune, "sparsify", lambda m, format, dtype=None: asked.append((m.weight.dtype, dtype)) or m, raising=False
    )
    monkeypatch.setattr(pyprune, "optimize", lambda m: asked.append(m.weight.dtype) or m, raising=False)
    for name, dtype in (("sparsify", "bfloat16"), ("sparsify", "int8"), ("optimize", "float32"), ("optimize", "int8")):
        ways.way(f"pruned {name}").make(nn.Linear(2, 2), ways.DTYPES[dtype], {})
    assert asked == [
        (torch.bfloat16, None),
        (torch.float32, torch.int8),
        torch.float32,
        (torch.float32, torch.int8),
        torch.float32,
    ]


def test_sparse_storage_is_opened_with_its_zeros(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyprune.json").write_text("{}", encoding="utf-8")
    known = opening.open_model(str(pair[1]))
    calls: list[Any] = []
    monkeypatch.setattr(pyprune, "load", lambda path, **options: calls.append((path, options)) or known, raising=False)
    assert opening.open_checkpoint(str(tmp_path)) is known
    assert calls == [(str(tmp_path), {"dense": True})]
    assert opening.open_checkpoint(str(pair[1])) is not known


def test_throughput_counts_what_was_run() -> None:
    inputs = [{"attention_mask": torch.tensor(mask)} for mask in ([[1, 1, 1], [1, 0, 0]], [[1, 1, 1], [1, 1, 1]])]
    # the first batch was the warm-up's: two rounds of the second and one of the first are measured
    found = model._rates([1.0, 2.0, 1.0], inputs)
    assert found["sentences_per_second"] == 6 / 4
    assert found["tokens_per_second"] == (6 + 4 + 6) / 4
    assert (found["p50"], found["rounds"]) == (1.0, 3)


def test_real_batches_hold_every_row_once(pair: Pair, tmp_path: Path) -> None:
    _, dev = build_data(tmp_path, dev=10)
    examples = tasks.load_texts(dev, purpose="evaluation")
    opened, tokenizer = opening.open_checkpoint(str(pair[0])), model.open_tokenizer(str(pair[0]))
    found = batches.real_batches(opened, tokenizer, examples, 3, seed=0)
    assert [len(batch["input_ids"]) for batch in found] == [3, 3, 3]
    for batch in found:
        assert bool(batch["attention_mask"].sum(0)[-1])  # padded to the longest row and no further
    other = batches.real_batches(opened, tokenizer, examples, 3, seed=1)
    assert not all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(found, other, strict=True))
    with pytest.raises(InputError, match="a batch of 11 needs as many rows"):
        batches.real_batches(opened, tokenizer, examples, 11, seed=0)


def test_random_batches(pair: Pair) -> None:
    opened = opening.open_checkpoint(str(pair[0]))
    first, second = batches.random_batches(opened, 2, 7, seed=0)
    assert first["input_ids"].shape == (2, 7)
    assert not torch.equal(first["input_ids"], second["input_ids"])
    assert torch.equal(first["input_ids"], batches.random_batches(opened, 2, 7, seed=0)[0]["input_ids"])
    assert not bool((first["input_ids"] == opened.config.pad_token_id).any())
    with pytest.raises(InputError, match="sequences of 67 tokens do not fit"):
        batches.random_batches(opened, 1, 67, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": [0]}, "at least one sequence"),
        ({"dtypes": ["int4"]}, "unknown dtype 'int4'"),
        ({"dtypes": []}, "no dtype"),
        ({"lengths": []}, "no length"),
        ({"lengths": ["real"]}, "real lengths need data"),
        ({"lengths": [1000]}, "do not fit the model"),
    ],
)
def test_bad_settings(pair: Pair, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(pair, **options)


def test_models_that_do_not_belong_together(pair: Pair, tmp_path: Path) -> None:
    others = {
        "vocabulary": build_checkpoint(tmp_path / "words", vocab_size=90),
        "labels": build_checkpoint(tmp_path / "labels"),
        "kind of model": build_checkpoint(tmp_path / "kind", family="electra"),
    }
    config = json.loads((others["labels"] / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {"0": "positive", "1": "negative"}
    (others["labels"] / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for what, folder in others.items():
        with pytest.raises(InputError, match=f"differ in their {what}"):
            run((pair[0], folder))


def test_data_without_labels_is_said_before_the_work(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = build_data(tmp_path)
    monkeypatch.setattr(model, "_measure", lambda *_, **__: pytest.fail("measured first"))
    with pytest.raises(InputError, match="label"):
        run(pair, examples=tasks.load_texts(train), dtypes=["float32"])


def test_disk(pair: Pair) -> None:
    opened = opening.open_checkpoint(str(pair[0]))
    linears = sizes.encoder_linears(opened)
    assert len(linears) == 2 * 6
    known = sizes.on_disk(str(pair[0]), linears)
    assert known["linears"] == 2 * 4 * (4 * 32 * 32 + 2 * 32 * 48)
    assert known["values"] == "F32"
    assert known["linears"] < known["weights"] < known["folder"]
    assert sizes.on_disk("owner/name", linears)["folder"] is None


def test_memory_in_a_process_of_its_own(pair: Pair) -> None:
    known = sizes.resident(str(pair[0]), "dense", "float32", threads=1)
    assert known is not None
    assert 2**26 < known["process"] < 2**34
    assert 0 <= known["model"] < 2**28
