# SPDX-License-Identifier: Apache-2.0
"""Averages of checkpoints: exact means, Algorithm 3's choice, and refusals of what does not belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import build_checkpoint, build_sentences

import pyprune
from pyprune.errors import InputError, NumericsError
from pyprune.methods.averaging import Soup

WEIGHT = "classifier.weight"


def member(folder: Path, name: str, seed: int = 0, **sizes: Any) -> Path:
    return build_checkpoint(folder / name, seed=seed, **sizes)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [member(tmp_path, name, seed) for seed, name in enumerate("abc")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    found = weights(folder)
    change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    change(found)
    file.write_text(json.dumps(found), encoding="utf-8")


def by_sets(table: dict[str, float], folders: list[Path]) -> Callable[[Any], float]:
    """A score that recognises the members of an average by its classifier."""
    alone = {folder.name: weights(folder)[WEIGHT].double() for folder in folders}

    def score(model: Any) -> float:
        seen = model.classifier.weight.detach().double()
        for names, value in table.items():
            if torch.allclose(sum(alone[name] for name in names) / len(names), seen, atol=1e-7, rtol=0):
                return value
        raise AssertionError("an average that was not expected")

    return score


def steps(found: Soup) -> list[tuple[str, float, bool]]:
    return [(Path(step["model"]).name, step["score"], step["kept"]) for step in found.report["steps"]]


def test_uniform_is_the_mean_rounded_once(three: list[Path], tmp_path: Path) -> None:
    found = pyprune.soup(three, uniform=True)
    saved = found.save(tmp_path / "average")
    parts, stored = [weights(folder) for folder in three], weights(saved)
    in_memory = found.model.state_dict()
    assert stored.keys() == parts[0].keys()
    for name, value in stored.items():
        wanted = torch.stack([part[name].double() for part in parts]).mean(0).float()
        assert torch.equal(value, wanted), name
        assert torch.equal(in_memory[name], wanted), name
    # The released code's ((a + b) / 2 + c) / 2 is not this.
    running = ((parts[0][WEIGHT] + parts[1][WEIGHT]) / 2 + parts[2][WEIGHT]) / 2
    assert not torch.allclose(stored[WEIGHT], running, atol=1e-4)
    assert found.report["score"] is None
    assert all(entry["used"] and entry["score"] is None for entry in found.report["members"])


def test_greedy_follows_the_algorithm(three: list[Path]) -> None:
    table = {"a": 0.5, "b": 0.9, "c": 0.7, "bc": 0.9, "abc": 0.89}
    found = pyprune.soup(three, by_sets(table, three), selection={"by": "table"})
    assert steps(found) == [("b", 0.9, True), ("c", 0.9, True), ("a", 0.89, False)]  # equal joins, less does not
    assert [entry["used"] for entry in found.report["members"]] == [False, True, True]
    assert [entry["score"] for entry in found.report["members"]] == [0.5, 0.9, 0.7]
    assert found.report["score"] == 0.9
    assert found.report["selection"] == {"by": "table"}
    # what is left in memory is the chosen average, not the last one tried
    b, c = (weights(folder)[WEIGHT].double() for folder in three[1:])
    assert torch.equal(found.model.classifier.weight, ((b + c) / 2).float())


def test_a_refused_member_does_not_stop_the_rest(three: list[Path]) -> None:
    table = {"a": 0.9, "b": 0.8, "c": 0.7, "ab": 0.6, "ac": 0.95}
    assert steps(pyprune.soup(three, by_sets(table, three))) == [("a", 0.9, True), ("b", 0.6, False), ("c", 0.95, True)]


def test_equal_scores_are_tried_in_the_order_given(three: list[Path]) -> None:
    table = {"a": 0.5, "b": 0.5, "c": 0.5, "ca": 0.5, "cab": 0.5}
    turned = [three[2], three[0], three[1]]
    assert [name for name, *_ in steps(pyprune.soup(turned, by_sets(table, three)))] == ["c", "a", "b"]


def test_types(three: list[Path], tmp_path: Path) -> None:
    """Half-precision members give a half-precision average; one float32 member makes it float32."""

    def halve(found: dict[str, torch.Tensor]) -> None:
        found.update({name: value.half() for name, value in found.items()})

    for folder in three[:2]:
        rewrite(folder, halve)
        edit(folder / "config.json", lambda config: config.update(dtype="float16"))
    half = pyprune.soup(three[:2], uniform=True)
    first, second = (weights(folder)[WEIGHT] for folder in three[:2])
    stored = weights(half.save(tmp_path / "half"))[WEIGHT]
    assert torch.equal(stored, ((first.double() + second.double()) / 2).half())
    # what is scored is what is stored, not a finer mean
    assert torch.equal(half.model.classifier.weight, stored.float())
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoModelForSequenceClassification
    assert auto.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.float16
    assert weights(pyprune.soup(three[1:], uniform=True).save(tmp_path / "mixed"))[WEIGHT].dtype == torch.float32


def test_saved_is_a_checkpoint(three: list[Path], tmp_path: Path) -> None:
    import transformers

    found = pyprune.soup(three, uniform=True)
    found.report["evaluation"] = {"accuracy": 0.5}
    folder = found.save(tmp_path / "average")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = build_sentences(6)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**inputs).logits, found.model(**inputs).logits, atol=1e-5, rtol=0)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert json.loads((folder / "soup.json").read_text(encoding="utf-8")) == found.report
    # AKR takes it as its dense start, and an earlier average may be replaced
    result = pyprune.prune(model, texts, tokenizer=tokenizer, method="akr", sparsity=0.5, samples=6)
    assert result.report["sparsity"]["linear_weights"] == 0.5
    assert found.save(folder) == folder
    with pytest.raises(InputError, match="the folder of a member"):
        found.save(three[1])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="was not written by pyprune"):
        found.save(tmp_path / "other")


def test_shards_are_read_too(three: list[Path], tmp_path: Path) -> None:
    model = pyprune.soup(three, uniform=True).model
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    found = pyprune.soup([tmp_path / "shards", three[0]], uniform=True)
    wanted = (model.classifier.weight.double() + weights(three[0])[WEIGHT].double()) / 2
    assert torch.equal(found.model.classifier.weight, wanted.float())
    assert found.report["notes"] == [f"no tokenizer to compare in {tmp_path / 'shards'}"]


def test_what_does_not_belong_together(three: list[Path], tmp_path: Path) -> None:
    def refused(match: str, *folders: Path) -> None:
        with pytest.raises(InputError, match=match):
            pyprune.soup(folders, uniform=True)

    a, b, c = three
    refused("at least two", a)
    refused("is named twice", a, b, a / ".." / "a")
    refused("there is no folder", a, tmp_path / "nowhere")
    refused("configs differ in intermediate_size", a, member(tmp_path, "wide", inner=64))
    refused("configs differ in", a, member(tmp_path, "other", family="electra"))

    swapped = {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    edit(b / "config.json", lambda config: config.update(swapped))
    refused("labels differ\n.*0 negative, 1 positive; 0 positive, 1 negative", a, b)

    def swap_words(tokenizer: dict[str, Any]) -> None:
        words = tokenizer["model"]["vocab"]
        words["ba"], words["be"] = words["be"], words["ba"]

    edit(c / "tokenizer.json", swap_words)
    refused("tokenizers differ\n.*in model", a, c)
    with pytest.raises(InputError, match="nothing to choose"):
        pyprune.soup([a, b])


def test_shapes_and_names_of_the_files(three: list[Path]) -> None:
    a, b, c = three
    rewrite(b, lambda found: found.update({WEIGHT: torch.zeros(3, 32)}))
    with pytest.raises(InputError, match=rf"{WEIGHT} does not fit(.|\n)*\[2, 32\](.|\n)*\[3, 32\]"):
        pyprune.soup([a, b], uniform=True)
    rewrite(c, lambda found: found.__delitem__(WEIGHT))
    with pytest.raises(InputError, match=f"does not hold {WEIGHT}"):
        pyprune.soup([a, c], uniform=True)


def test_settings_of_training_do_not_matter(three: list[Path]) -> None:
    changed = {"hidden_dropout_prob": 0.3, "transformers_version": "4.0.0", "use_cache": False}
    edit(three[1] / "config.json", lambda config: config.update(changed))
    # truncation is left in the file by whoever saved it
    left = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    edit(three[1] / "tokenizer.json", lambda tokenizer: tokenizer.update(truncation=left))
    assert pyprune.soup(three, uniform=True).report["notes"] == []


def test_numbers_that_are_none(three: list[Path]) -> None:
    with pytest.raises(NumericsError, match="score is not finite"):
        pyprune.soup(three, lambda model: float("nan"))
    rewrite(three[2], lambda found: found.update({WEIGHT: found[WEIGHT] / 0}))
    with pytest.raises(NumericsError, match=rf"c: {WEIGHT} holds NaN"):
        pyprune.soup(three, uniform=True)


def test_pruned_members(three: list[Path], tmp_path: Path) -> None:
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(three[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(three[0])
    result = pyprune.prune(model, build_sentences(8), tokenizer=tokenizer, method="magnitude", sparsity=0.5)
    dense, sparse = result.save(tmp_path / "dense"), result.save(tmp_path / "sparse", storage="sparse")
    (note,) = pyprune.soup([dense, three[1]], uniform=True).report["notes"]
    assert note.startswith(f"pruned already: {dense}")
    with pytest.raises(InputError, match=r"without its zeros(.|\n)*export"):
        pyprune.soup([sparse, three[1]], uniform=True)
