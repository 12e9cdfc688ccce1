# SPDX-License-Identifier: Apache-2.0
"""Fewer tokens: texts of the corpus are cut up and answered as before, all others are spelled with what is left."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CUTS
from tiny_models import build_model
from tokenizers import Tokenizer
from torch import Tensor
from vocabularies import KINDS, build, corpus, few, model_for

import pyprune
from pyprune.errors import InputError
from pyprune.structured import compact
from pyprune.structured.tokens import Tokens
from pyprune.structured.unit_file import write_units


def _outputs(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        found: Tensor = model(**batch)[0]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_cut_up_and_answered_as_before(kind: str, tmp_path: Path) -> None:
    tokenizer, texts = build(kind), few()
    model: Any = model_for(tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trimmed = pyprune.trim_vocabulary(model, tokenizer, texts, keep=["<mask>"])
    report, kept = trimmed.report["vocabulary"], trimmed.kept
    assert report["tokens"]["before"] == len(tokenizer) + 3
    assert len(kept) == len(set(kept.tolist())) == report["tokens"]["after"] == trimmed.model.config.vocab_size
    assert len(kept) < 0.95 * len(tokenizer)
    again = type(tokenizer).from_pretrained(trimmed.save(tmp_path / "small"))
    loaded = type(model).from_pretrained(tmp_path / "small").eval()
    for words, smaller in ((trimmed.tokenizer, trimmed.model), (again, loaded)):
        for given in (texts, list(zip(texts, reversed(texts), strict=True))):
            old, new = (
                t([list(p) if isinstance(p, tuple) else p for p in given])["input_ids"] for t in (tokenizer, words)
            )
            assert [kept[ids].tolist() for ids in new] == old
        assert torch.equal(_outputs(smaller, words, texts), _outputs(model, tokenizer, texts))
        assert words.decode(words("dadada")["input_ids"]) == tokenizer.decode(tokenizer("dadada")["input_ids"])
    assert torch.equal(_outputs(pyprune.load(tmp_path / "small"), again, texts), _outputs(model, tokenizer, texts))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert report["parameters"]["before"] - report["parameters"]["after"] == 32 * (len(tokenizer) + 3 - len(kept))
    assert report["bytes"]["before"] - report["bytes"]["after"] == 4 * 32 * (len(tokenizer) + 3 - len(kept))


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_are_spelled_with_what_is_left(kind: str) -> None:
    tokenizer, draw = build(kind), random.Random(3)
    trimmed = pyprune.trim_vocabulary(model_for(tokenizer), tokenizer, few()[:3])
    letters = "abdefgiklmnoprstu"
    texts = [
        *corpus()[100:200],
        *("".join(draw.choices(letters + " ", k=30)) for _ in range(50)),
        "zzz \U0001f600\x00 ÿ",
    ]
    longer = 0
    for text in texts:
        old, new = tokenizer(text)["input_ids"], trimmed.tokenizer(text)["input_ids"]
        assert max(new) < len(trimmed.kept)
        longer += len(new) > len(old)
        if kind != "words":  # whose unknown words cannot be spelled
            unknown = tokenizer.unk_token_id
            assert old.count(unknown) == trimmed.kept[new].tolist().count(unknown), text
            assert trimmed.tokenizer.decode(new) == tokenizer.decode(old)
    assert longer > 20 or kind == "words"
    assert torch.isfinite(_outputs(trimmed.model, trimmed.tokenizer, texts[:8])).all()


def test_merged_tokens_keep_what_they_are_merged_from() -> None:
    """The derivation of a token is that of the library; with too few merges the text would be cut up otherwise."""
    for kind in ("byte bpe", "suffix bpe", "prefix bpe"):
        words = Tokens(build(kind))
        seen = {token for token in words.ids if len(token) > 5}
        with_parts = words.with_parts(seen)
        order = words.order(with_parts | words.letters() | words.special())
        state = words._cut({token: index for index, token in enumerate(order)})
        smaller, whole = Tokenizer.from_str(json.dumps(state)), Tokenizer.from_str(json.dumps(words.state))
        for text in corpus():
            found = whole.encode(text, add_special_tokens=False).tokens
            if set(found) <= with_parts:
                assert smaller.encode(text, add_special_tokens=False).tokens == found
        assert len(with_parts) < len(words.ids)
        # without its parts, a long token is not found again
        token = max(seen, key=len)
        assert words._derivation(token, {pair: rank for rank, pair in enumerate(_merges(words))}) is not None
        assert words._derivation(token, {}) is None


def _merges(words: Tokens) -> list[tuple[str, str]]:
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in words.state["model"]["merges"]]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "llama"])
def test_heads_that_predict_tokens(family: str, tmp_path: Path) -> None:
    """Tied weights and biases of the head lose the same rows, and stay tied."""
    tokenizer = build("byte bpe")
    model: Any = model_for(tokenizer, family, "lm" if family == "llama" else "masked_lm")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    trimmed = pyprune.trim_vocabulary(model, tokenizer, few())
    old, new = _outputs(model, tokenizer, few()), _outputs(trimmed.model, trimmed.tokenizer, few())
    torch.testing.assert_close(new, old[..., trimmed.kept], rtol=0, atol=1e-5)
    head = trimmed.model.get_output_embeddings()
    assert (head.weight is trimmed.model.get_input_embeddings().weight) == tied
    assert head.out_features == len(trimmed.kept)
    trimmed.save(tmp_path / "small")
    for loaded in (type(model).from_pretrained(tmp_path / "small").eval(), pyprune.load(tmp_path / "small")):
        torch.testing.assert_close(_outputs(loaded, trimmed.tokenizer, few()), new, rtol=0, atol=1e-6)
        loss = loaded(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss
        assert torch.isfinite(loss)


def test_ids_in_the_config_move_with_their_tokens() -> None:
    tokenizer = build("wordpiece")
    end = len(tokenizer) + 2  # of a row that no token has
    model: Any = build_model(
        "bert", vocab_size=end + 1, pad_token_id=end, eos_token_id=[2, 4], decoder_start_token_id=0
    )
    trimmed = pyprune.trim_vocabulary(model, tokenizer, few()[:2])
    config, kept = trimmed.model.config, trimmed.kept
    assert kept[-1] == end
    assert config.pad_token_id == len(kept) - 1 == trimmed.model.get_input_embeddings().padding_idx
    assert [int(kept[index]) for index in config.eos_token_id] == [2, 4]
    assert kept[config.decoder_start_token_id] == 0
    assert model.config.pad_token_id == end
    inplace = pyprune.trim_vocabulary(model, tokenizer, few()[:2], inplace=True)
    assert inplace.model is model
    assert model.config.vocab_size == len(kept)


def test_positions_are_counted_from_where_they_were() -> None:
    """RoBERTa counts them from the padding id: it is kept in its place, with all ids below it."""
    tokenizer = build("unigram")
    model: Any = model_for(tokenizer, pad_token_id=20)
    trimmed = pyprune.trim_vocabulary(model, tokenizer, few()[:2])
    assert trimmed.model.config.pad_token_id == 20
    assert trimmed.kept[:21].tolist() == list(range(21))
    assert torch.equal(_outputs(trimmed.model, trimmed.tokenizer, few()[:1]), _outputs(model, tokenizer, few()[:1]))


@pytest.mark.parametrize("cut", ["whole heads", "uneven heads", "nothing"])
def test_with_cut_heads_in_either_order(cut: str, tmp_path: Path) -> None:
    tokenizer = build("wordpiece")
    model = model_for(tokenizer, "bert")
    first = pyprune.trim_vocabulary(compact(model, CUTS[cut]), tokenizer, few())
    second = pyprune.trim_vocabulary(model, tokenizer, few())
    small = compact(second.model, CUTS[cut])
    wanted = _outputs(compact(model, CUTS[cut]), tokenizer, few())
    loaded = pyprune.load(first.save(tmp_path / "first"))
    small.save_pretrained(tmp_path / "second")
    for found in (first.model, small, loaded, pyprune.load(tmp_path / "second")):
        assert torch.equal(_outputs(found, second.tokenizer, few()), wanted)


def test_report_and_masks_of_a_pruned_model_go_along(tmp_path: Path) -> None:
    tokenizer = build("wordpiece")
    model: Any = model_for(tokenizer, "bert")
    name = "bert.encoder.layer.0.intermediate.dense"
    mask = model.get_submodule(name).weight.abs() > 0.3
    model.get_submodule(name).weight.data.mul_(mask)
    result = pyprune.PruneResult(model, {name: mask}, {"method": "magnitude"}, tokenizer)
    for storage in ("dense", "sparse"):
        source = result.save(tmp_path / storage, storage=storage)
        write_units(source, CUTS["everything"])
        trimmed = pyprune.trim_vocabulary(pyprune.load(source), tokenizer, few())
        folder = trimmed.save(tmp_path / f"{storage}-trimmed", source=source)
        report = pyprune.result.load_report(folder)
        assert report["method"] == "magnitude"
        assert pyprune.result.load_units(folder) == CUTS["everything"]
        assert report["vocabulary"] == trimmed.report["vocabulary"]
        assert torch.equal(pyprune.result.load_masks(folder)[name], mask)
        loaded = pyprune.load(folder)
        assert isinstance(loaded.get_submodule(name), pyprune.SparseLinear) == (storage == "sparse")
        got, wanted = _outputs(loaded, trimmed.tokenizer, few()), _outputs(model, tokenizer, few())
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="folder of the model itself"):
        trimmed.save(source, source=source)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build("byte bpe")
    model: Any = model_for(tokenizer)
    for arguments, options, message in (
        ((model, tokenizer, []), {}, "without text"),
        ((model, tokenizer, "a text"), {}, "one text where a list"),
        ((model, tokenizer, ["a", 1]), {}, "text 1 is neither"),
        ((model, tokenizer, ["a"]), {"keep": ["nowhere"]}, "does not have"),
        ((model, object(), ["a"]), {}, "only fast tokenizers"),
        ((build_model("roberta", vocab_size=5, pad_token_id=1), tokenizer, ["a"]), {}, "that the model does not have"),
        ((torch.nn.Linear(2, 2), tokenizer, ["a"]), {}, "cannot be pruned|no model|type"),
    ):
        with pytest.raises(InputError, match=message):
            pyprune.trim_vocabulary(*arguments, **options)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["dropout"] = 0.5
    import transformers

    at_random = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    with pytest.raises(InputError, match="in another way"):
        pyprune.trim_vocabulary(model_for(tokenizer), at_random, list(corpus()))
