# SPDX-License-Identifier: Apache-2.0
"""Perplexity against token-by-token sums in float64: every token once, with the context its window gives it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_checkpoint import build_sentences, build_tokenizer
from tiny_models import build_model

from pyprune.errors import InputError, NumericsError
from pyprune.tasks import Examples, perplexity
from pyprune.tasks.perplexity import token_ids


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model("llama", "lm", structured=True)


def make(texts: list[str], **settings: Any) -> Examples:
    return Examples(tuple(texts), settings.pop("pairs", None), None, "wiki.txt", "0" * 64, **settings)


def token_by_token(model: Any, ids: list[int], length: int, stride: int) -> tuple[float, int]:
    """A token is predicted in the first window that reaches it, unless it is the first there."""
    total, count = 0.0, 0
    for position in range(1, len(ids)):
        begin = next(b for b in range(0, len(ids), stride) if position < b + length)
        if begin < position:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[begin:position]]), use_cache=False).logits[0, -1].double()
            total -= float(torch.log_softmax(logits, dim=-1)[ids[position]])
            count += 1
    return total / count, count


@pytest.mark.parametrize(("length", "stride"), [(16, 16), (16, 5), (16, 15), (7, 1), (64, 64), (64, 40)])
def test_every_token_is_predicted_once(model: Any, tokenizer: Any, length: int, stride: int) -> None:
    texts = build_sentences(9)
    ids = token_ids(tokenizer, texts)
    want, count = token_by_token(model, ids, length, stride)
    for batch_size in (1, 3, 64):
        found = perplexity(
            model, make(texts), tokenizer=tokenizer, max_length=length, stride=stride, batch_size=batch_size
        )
        assert (found.predicted, found.tokens) == (count, len(ids))
        assert found.nll == pytest.approx(want, rel=1e-5)
        assert found.value == math.exp(found.nll)
    if stride < length:
        assert found.predicted == len(ids) - 1
    assert "perplexity" in found.describe()
    assert found.to_dict()["metric"] == "perplexity"


def test_texts_are_joined_to_one(model: Any, tokenizer: Any) -> None:
    ids = token_ids(tokenizer, ["ba be", "bi"])
    assert ids == tokenizer("ba be\n\nbi")["input_ids"]
    assert ids.count(tokenizer.cls_token_id) == 1
    one = perplexity(model, make(["ba be", "bi"]), tokenizer=tokenizer)
    assert perplexity(model, make(["ba be"], pairs=("bi",)), tokenizer=tokenizer).nll == one.nll
    assert one.max_length == 64
    model.train()
    perplexity(model, make(["ba be", "bi"]), tokenizer=tokenizer)
    assert model.training
    model.eval()


def test_refusals(model: Any, tokenizer: Any) -> None:
    examples = make(["ba be"])
    for options, message in (
        ({"max_length": 65}, "1 to 64"),
        ({"max_length": 1}, "two tokens"),
        ({"max_length": 8, "stride": 9}, "stride"),
    ):
        with pytest.raises(InputError, match=message):
            perplexity(model, examples, tokenizer=tokenizer, **options)
    with pytest.raises(InputError, match="a BertForSequenceClassification"):
        perplexity(build_model(), examples, tokenizer=tokenizer)
    with pytest.raises(InputError, match="too short"):
        perplexity(model, examples, tokenizer=lambda *_, **__: {"input_ids": [3]})
    broken = build_model("opt", "lm")
    with torch.no_grad():
        broken.get_parameter("model.decoder.final_layer_norm.bias").fill_(float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        perplexity(broken, examples, tokenizer=tokenizer)
