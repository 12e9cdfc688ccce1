# SPDX-License-Identifier: Apache-2.0
"""Calibration: sampling, batching, every accepted kind of data, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.methods.calibration import Calibration, gather
from pyprune.models import adapter_for
from pyprune.tasks.loading import Examples

Tiny = Callable[..., nn.Module]
TEXTS = [" ".join(["word"] * (1 + index % 17)) + f" {index}" for index in range(90)]


class Tokenizer:
    """Words to ids: [CLS] words [SEP], like the real ones where it counts."""

    pad_token_id = 3

    def __call__(
        self, texts: list[str], pairs: list[str] | None = None, *, max_length: int, **_: Any
    ) -> dict[str, list[list[int]]]:
        rows = []
        for index, text in enumerate(texts):
            words = (text + (" | " + pairs[index] if pairs else "")).split()
            rows.append([1, *(4 + hash_word(word) for word in words), 2][:max_length])
        return {
            "input_ids": rows,
            "token_type_ids": [[0] * len(row) for row in rows],
            "attention_mask": [[1] * len(row) for row in rows],
        }


def hash_word(word: str) -> int:
    return sum(word.encode()) % 90


@pytest.fixture
def collect(tiny: Tiny) -> Callable[..., Calibration]:
    model = tiny("bert")

    def call(data: Any, **options: Any) -> Calibration:
        return gather(data, model, adapter_for(model), **{"tokenizer": Tokenizer(), **options})

    return call


def test_batches_are_sorted_and_padded(collect: Callable[..., Calibration]) -> None:
    found = collect(TEXTS, batch_size=8, max_length=12)
    assert found.sentences == found.available == 90
    widths = [batch["input_ids"].shape[1] for batch in found.batches]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 12
    assert found.tokens == sum(int(batch["attention_mask"].sum()) for batch in found.batches)
    assert found.padded < 1.2 * found.tokens
    for batch in found.batches:
        real = batch["attention_mask"].bool()
        assert bool((batch["input_ids"][~real] == 3).all())
        assert bool(real.any(dim=0).all())  # padded to the longest of the batch, not further
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}


def test_token_types_only_where_the_model_takes_them(tiny: Tiny) -> None:
    model = tiny("distilbert")
    found = gather(TEXTS, model, adapter_for(model), tokenizer=Tokenizer())
    assert set(found.batches[0]) == {"input_ids", "attention_mask"}


def test_sampling_follows_the_seed(collect: Callable[..., Calibration]) -> None:
    hashes = {collect(TEXTS, samples=20, seed=seed).sha256 for seed in (0, 0, 1, 2)}
    assert len(hashes) == 3
    few = collect(TEXTS, samples=20)
    assert (few.sentences, few.available) == (20, 90)
    # Without replacement: asking for all of them gives each once.
    assert collect(TEXTS, samples=90, seed=5).sha256 == collect(TEXTS, samples=500, seed=9).sha256


def test_default_is_2560_sentences_of_128_tokens(tiny: Tiny) -> None:
    model = tiny("bert", max_position_embeddings=512)
    long = [f"{index} " + "word " * 300 for index in range(20)] + TEXTS * 35
    found = gather(long, model, adapter_for(model), tokenizer=Tokenizer())
    assert found.sentences == 2560
    assert max(batch["input_ids"].shape[1] for batch in found.batches) <= 128
    assert max(batch["input_ids"].shape[0] for batch in found.batches) == 64


def test_long_sentences_make_small_batches(tiny: Tiny) -> None:
    model = tiny("bert", max_position_embeddings=512)
    found = gather(["word " * 600] * 40, model, adapter_for(model), tokenizer=Tokenizer(), max_length=512)
    assert max(batch["input_ids"].numel() for batch in found.batches) <= 8192
    assert "may be cut off" in found.notes[0]


def test_language_models_read_sequences_of_one_length(tiny: Tiny) -> None:
    class Joining(Tokenizer):
        def __call__(self, texts: Any, *_: Any, **__: Any) -> Any:
            assert isinstance(texts, str)
            return {"input_ids": [1, *(4 + hash_word(word) for word in texts.split())]}

    model = tiny("opt", "lm")
    whole = Joining()("\n\n".join(TEXTS))["input_ids"]

    def call(texts: Any = TEXTS, **options: Any) -> Calibration:
        return gather(texts, model, adapter_for(model), tokenizer=Joining(), **options)

    found = call(max_length=20, batch_size=4)
    available = len(whole) // 20
    assert found.sentences == found.available == available
    assert found.tokens == found.padded == 20 * available
    assert torch.cat([batch["input_ids"] for batch in found.batches]).flatten().tolist() == whole[: 20 * available]
    assert found.notes == ()
    few = call(max_length=20, samples=5, seed=3)
    assert (few.sentences, few.available) == (5, available)
    assert few.sha256 != call(max_length=20, samples=5, seed=4).sha256
    assert call([(text, "more") for text in TEXTS], max_length=20).available == (len(whole) + 90) // 20
    short = call(TEXTS[:2], max_length=20)
    assert (short.sentences, short.tokens) == (1, len(Joining()("\n\n".join(TEXTS[:2]))["input_ids"]))
    assert call().choices(None) == {"samples": 128, "max_length": 66, "batch_size": 64}
    # A wide feed-forward layer makes batches small, down to one sequence.
    wide = tiny("llama", "lm", inner=3072 * 8192 // 50, layers=1, hidden=8)
    found = gather(TEXTS, wide, adapter_for(wide), tokenizer=Joining(), max_length=20)
    assert {batch["input_ids"].shape[0] for batch in found.batches} <= {1, 2}


def test_kinds_of_text(collect: Callable[..., Calibration]) -> None:
    want = collect(TEXTS).sha256
    assert collect(tuple(TEXTS)).sha256 == want
    assert collect(text for text in TEXTS).sha256 == want
    assert collect(SimpleNamespace(texts=TEXTS, pairs=None)).sha256 == want
    pairs = collect([(text, "second") for text in TEXTS]).sha256
    assert pairs != want
    assert collect(SimpleNamespace(texts=TEXTS, pairs=["second"] * 90)).sha256 == pairs


def test_data_sets(collect: Callable[..., Calibration]) -> None:
    datasets = pytest.importorskip("datasets")
    want = collect(TEXTS).sha256
    labels = [0] * 90
    assert collect(datasets.Dataset.from_dict({"sentence": TEXTS, "label": labels})).sha256 == want
    odd = datasets.Dataset.from_dict({"mine": TEXTS, "label": labels})
    assert collect(odd, text="mine").sha256 == want
    with pytest.raises(InputError, match=r"which column[\s\S]*mine"):
        collect(odd)
    with pytest.raises(InputError, match="no column 'yours'"):
        collect(odd, text="yours")
    both = datasets.Dataset.from_dict({"question": TEXTS, "context": ["second"] * 90})
    assert collect(both).sha256 == collect([(text, "second") for text in TEXTS]).sha256
    with pytest.raises(InputError, match="dictionary of splits"):
        collect(datasets.DatasetDict({"train": both}))
    # Token ids, padded to a fixed length: the padding is undone.
    ids = [row + [3] * (30 - len(row)) for row in Tokenizer()(TEXTS, max_length=30)["input_ids"]]
    masks = [[int(value != 3 or at == 0) for at, value in enumerate(row)] for row in ids]
    tokens = datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": masks})
    assert collect(tokens, tokenizer=None).tokens == collect(TEXTS).tokens


def test_ready_batches(collect: Callable[..., Calibration], batches_of: Callable[..., list[dict[str, Tensor]]]) -> None:
    batches = batches_of(4)
    found = collect([{**batch, "labels": torch.zeros(6)} for batch in batches], tokenizer=None)
    assert (found.sentences, found.available) == (24, None)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(found.batches, batches, strict=True))
    assert "labels" not in found.batches[0]

    def endless() -> Any:
        while True:
            yield batches[0]

    assert collect(endless(), tokenizer=None, samples=12).sentences == 12
    assert collect([{"input_ids": batches[0]["input_ids"]}]).tokens == batches[0]["input_ids"].numel()


def test_refusals(collect: Callable[..., Calibration]) -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "empty"),
        (None, {}, "nothing"),
        ("one text", {}, "one str"),
        ({"input_ids": ids}, {}, "one dict"),
        (["text", 3], {}, "item 1"),
        ([("a", "b"), ("a",)], {}, "item 1"),
        ([3, 4], {}, "unknown kind"),
        (TEXTS, {"tokenizer": None}, "need a tokenizer"),
        (TEXTS, {"samples": 0}, "samples must be"),
        (TEXTS, {"max_length": 67}, "more than the model can read"),
        (TEXTS, {"batch_size": 2.5}, "batch_size must be"),
        ([{"labels": ids}], {}, "without input_ids"),
        ([{"input_ids": ids, "attention_mask": ids[:, :2]}], {}, "one shape"),
        ([{"input_ids": ids, "attention_mask": -ids}], {}, "must be 0 or 1"),
        ([{"input_ids": ids, "attention_mask": 0 * ids}], {}, "no real token"),
        ([{"input_ids": ids + 400}], {}, "outside the model's vocabulary"),
        ([{"input_ids": torch.ones(1, 80, dtype=torch.long)}], {}, "longer than the model"),
    ]
    for data, options, message in cases:
        with pytest.raises(InputError, match=message):
            collect(data, **options)


def test_labels_go_along_with_their_rows(collect: Callable[..., Calibration]) -> None:
    rows = {tuple(ids): index for index, ids in enumerate(Tokenizer()(TEXTS, max_length=64)["input_ids"])}
    labels = [len(text.split()) % 2 for text in TEXTS]
    names = ("LABEL_0", "LABEL_1")
    examples = Examples(tuple(TEXTS), None, tuple(labels), "made up", "", label_names=names)
    for data in (examples, datasets_of(TEXTS, labels)):
        found = collect(data, samples=40, batch_size=7, labels="classification")
        assert sum(len(gold[0]) for gold in found.labels) == found.sentences == 40
        for batch, (gold,) in zip(found.batches, found.labels, strict=True):
            for ids, real, label in zip(batch["input_ids"], batch["attention_mask"], gold.tolist(), strict=True):
                assert label == labels[rows[tuple(ids[real.bool()].tolist())]]
        assert found.sha256 == collect(data, samples=40, batch_size=7).sha256
    numbers = replace(examples, labels=tuple(f"{label}.5" for label in labels))
    (first, *_) = collect(numbers, samples=3, labels="regression").labels
    assert first[0].dtype == torch.float32
    assert set(first[0].tolist()) <= {0.5, 1.5}


def datasets_of(texts: list[str], labels: list[int]) -> Any:
    """What looks like a ``datasets.Dataset`` with named classes."""

    class Columns:
        column_names = ("text", "label")
        features: ClassVar = {"label": SimpleNamespace(names=["LABEL_0", "LABEL_1"])}

        def __getitem__(self, name: str) -> list[Any]:
            return texts if name == "text" else labels

    return Columns()


def test_labels_that_are_not_there(collect: Callable[..., Calibration]) -> None:
    examples = Examples(tuple(TEXTS), None, None, "made up", "")
    batch = {"input_ids": torch.tensor([[1, 5, 2]]), "attention_mask": torch.tensor([[1, 1, 1]])}
    cases: list[tuple[Any, str, str]] = [
        (TEXTS, "classification", "no labels"),
        (examples, "classification", "made up has no labels"),
        (replace(examples, labels=("x",) * 90), "regression", "not a number"),
        (replace(examples, labels=(1,) * 90), "answers", "at which token"),
        ([batch], "classification", "no labels"),
        ([{**batch, "labels": torch.tensor([1, 0])}], "classification", "one a row"),
        ([{**batch, "labels": torch.tensor([1])}], "answers", "no labels"),
    ]
    for data, kind, message in cases:
        with pytest.raises(InputError, match=message):
            collect(data, labels=kind)
    answers = {**batch, "start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])}
    ((start, end),) = collect([answers], labels="answers").labels
    assert (start.tolist(), end.tolist()) == ([1], [2])
