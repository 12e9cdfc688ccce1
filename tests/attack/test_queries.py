# SPDX-License-Identifier: Apache-2.0
"""Texts through a model: each has the same answer whatever it is asked with, and is asked once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_checkpoint import build_checkpoint, build_sentences, build_tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from pyprune import demo
from pyprune.attack import queries
from pyprune.attack.queries import TextModel, mean_of_tokens


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoModel.from_pretrained(build_checkpoint(tmp_path_factory.mktemp("model") / "tiny")).eval()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that reached a model."""
    seen: list[str] = []
    rows = TextModel._rows

    def watched(self: TextModel, texts: list[Any]) -> list[torch.Tensor]:
        seen.extend(texts)
        return rows(self, texts)

    monkeypatch.setattr(TextModel, "_rows", watched)
    return seen


def test_a_text_has_the_same_bits_in_any_company(encoder: Any) -> None:
    texts = [*build_sentences(40, longest=40), ""]
    together = TextModel(encoder, build_tokenizer(), mean_of_tokens)(texts)
    alone = TextModel(encoder, build_tokenizer(), mean_of_tokens)
    assert all(torch.equal(row, alone([text])[0]) for text, row in zip(texts, together, strict=True))


def test_a_classifier_answers_alike_in_any_company() -> None:
    """Its head too: a library's product of 60 rows has other bits than that of one."""
    folder = demo.model_folder()
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [" ".join(["a fine film , if a little long"] * (1 + row % 3)) + f" {row}" for row in range(60)]
    together = TextModel(model, tokenizer, queries.logits)(texts)
    alone = TextModel(model, tokenizer, queries.logits)
    assert all(torch.equal(row, alone([text])[0]) for text, row in zip(texts, together, strict=True))
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(torch.stack(together), model(**encoded).logits, atol=1e-4, rtol=1e-4)


def test_means_are_of_real_tokens() -> None:
    states = torch.arange(24, dtype=torch.float32).reshape(3, 4, 2)
    states[1, 2:] = torch.nan
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    output = type("Output", (), {"last_hidden_state": states})
    assert mean_of_tokens(output, mask).tolist() == [[3.0, 4.0], [9.0, 10.0], [0.0, 0.0]]


def test_what_is_kept_from_group_to_group(encoder: Any, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    packed = TextModel(encoder, build_tokenizer(), mean_of_tokens)
    plain = TextModel(encoder.double(), build_tokenizer(), mean_of_tokens)
    encoder.float()
    assert packed.model is not encoder
    assert plain.model is encoder
    for model, again in ((packed, []), (plain, ["ba be", "bi"])):
        model(["ba be", "bi", "bi"])
        model(["bi"])
        assert asked == ["ba be", "bi"]
        asked.clear()
        model.begin_group()
        model(["ba be", "bi"])
        assert asked == again  # rounding of a plain model depends on the batch
        asked.clear()
    monkeypatch.setattr(queries, "_KEPT_BYTES", 2 * packed(["bi"])[0].nbytes)
    packed.begin_group()
    packed(["bo", "bi"])
    packed.begin_group()
    assert packed(["bi"])[0].numel()
    assert asked == ["bo", "bi"]
