# SPDX-License-Identifier: Apache-2.0
"""Word embeddings as a product: against a decomposition in float64, on disk, with all else that makes models small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CUTS
from tiny_checkpoint import build_sentences, build_tokenizer
from tiny_models import ENCODERS, build_batches, build_model
from torch import Tensor

import pyprune
from pyprune.errors import InputError
from pyprune.structured import FactoredEmbedding, compact, expand, factorise, masked, unit_masks, whole_embeddings

BATCH = build_batches(1)[0]
RANK = 6


def _logits(model: Any, batch: dict[str, Tensor] = BATCH) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(**batch).logits
        return found


def _small(family: str = "bert", cut: str = "uneven heads", **options: Any) -> Any:
    model = build_model(family, structured=True, **options)
    factorise(model, RANK)
    return compact(model, CUTS[cut])


@pytest.mark.parametrize("family", ENCODERS)
def test_the_nearest_product_of_a_rank(family: str) -> None:
    """Eckart and Young: U Σ cut off is the best there is; all but the word embeddings stays as it was."""
    model: Any = build_model(family, structured=True)
    table = model.get_input_embeddings().weight.detach().double()
    others = {name: value.clone() for name, value in model.state_dict().items() if "word_embeddings" not in name}
    state = torch.get_rng_state()
    told = factorise(model, RANK)
    assert torch.equal(state, torch.get_rng_state())
    left, values, right = torch.linalg.svd(table, full_matrices=False)
    best = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
    found = model.get_input_embeddings()
    weight, projection = found.weight.detach().double(), found.projection.weight.detach().double()
    torch.testing.assert_close(weight @ projection.T, best, rtol=0, atol=1e-5)
    torch.testing.assert_close(projection.T @ projection, torch.eye(RANK, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(weight.norm(dim=0), values[:RANK], rtol=1e-6, atol=0)  # U Σ, largest first
    assert found.projection.bias is None
    assert told["error"] == pytest.approx(float(values[RANK:].square().sum() / values.square().sum()), rel=1e-9)
    assert told["parameters"] == {"before": table.numel(), "after": sum(p.numel() for p in found.parameters())}
    assert told["parameters"]["after"] == (table.shape[0] + table.shape[1]) * RANK
    assert all(p.requires_grad for p in found.parameters())
    again = {name: value for name, value in model.state_dict().items() if "word_embeddings" not in name}
    assert again.keys() == others.keys()
    assert all(torch.equal(value, again[name]) for name, value in others.items())
    plain = whole_embeddings(model)
    assert not hasattr(plain.config, "pyprune")
    torch.testing.assert_close(_logits(plain), _logits(model), rtol=0, atol=1e-5)
    torch.testing.assert_close(plain.get_input_embeddings().weight.double(), best, rtol=0, atol=1e-5)  # type: ignore[operator]


def test_many_tokens_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (build_model("bert", structured=True) for _ in range(2))
    factorise(one, RANK)
    monkeypatch.setattr("pyprune.structured.embeddings._ROWS", 7)
    factorise(other, RANK)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert"])
@pytest.mark.parametrize("cut", ["uneven heads", "everything"])
def test_there_and_back(family: str, cut: str, tmp_path: Path) -> None:
    small = _small(family, cut)
    torch.testing.assert_close(_logits(small), _logits(masked(expand(small, CUTS[cut]), CUTS[cut])), rtol=0, atol=1e-5)
    small.save_pretrained(tmp_path)
    loaded = pyprune.load(tmp_path)
    assert type(loaded) is type(small)
    assert isinstance(loaded.get_input_embeddings(), FactoredEmbedding)
    assert torch.equal(_logits(loaded), _logits(small))
    assert pyprune.load(tmp_path, dtype=torch.bfloat16).get_input_embeddings().projection.weight.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="mismatch"):  # rather than drawing embeddings at random
        type(small).from_pretrained(tmp_path)
    loaded.train()(**BATCH, labels=torch.tensor([0, 1, 0, 1, 0, 1])).loss.backward()
    for parameter in loaded.get_input_embeddings().parameters():
        assert bool(parameter.grad.any())
    torch.optim.AdamW(loaded.parameters(), lr=1e-2).step()
    loaded.eval().save_pretrained(tmp_path / "after")
    assert torch.equal(_logits(pyprune.load(tmp_path / "after")), _logits(loaded))


def test_without_cuts_of_layers(tmp_path: Path) -> None:
    """The config then says nothing of them, and they may be cut later."""
    model: Any = build_model("bert", structured=True)
    factorise(model, RANK)
    model.save_pretrained(tmp_path)
    loaded = pyprune.load(tmp_path)
    assert loaded.config.pyprune == {"version": 1, "embedding_rank": RANK}
    assert torch.equal(_logits(loaded), _logits(model))
    small = compact(loaded, CUTS["whole heads"])
    assert small.config.pyprune.keys() == {"version", "layers", "embedding_rank"}  # type: ignore[union-attr]
    torch.testing.assert_close(_logits(small), _logits(masked(model, CUTS["whole heads"])), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="a product already"):
        factorise(loaded, 2)


def test_every_storage(tmp_path: Path) -> None:
    """With zeros embeddings are whole again, for plain transformers; sparse and compact ones keep their factors."""
    units, model = CUTS["uneven heads"], build_model("bert", structured=True)
    factorise(model, RANK)
    zeros = masked(model, units)
    result = pyprune.PruneResult(zeros, unit_masks(zeros, units), {"method": "grain"}, units=units)
    wanted = _logits(zeros)
    folders = {name: result.save(tmp_path / name, storage=name) for name in ("dense", "sparse", "compact")}
    folders["small"] = pyprune.result.export(folders["sparse"], tmp_path / "small", storage="compact")
    folders["large"] = pyprune.result.export(folders["compact"], tmp_path / "large", storage="dense")
    for name, folder in folders.items():
        loaded = pyprune.load(folder)
        torch.testing.assert_close(_logits(loaded), wanted, rtol=0, atol=1e-5)
        whole = name in ("dense", "large")
        assert isinstance(loaded.get_input_embeddings(), FactoredEmbedding) != whole, name
        if whole:
            torch.testing.assert_close(_logits(type(zeros).from_pretrained(folder).eval()), wanted, rtol=0, atol=1e-5)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="compact already"):
        pyprune.result.export(folders["compact"], tmp_path / "again", storage="compact")


@pytest.mark.parametrize("first", ["tokens", "factors"])
def test_together_with_fewer_tokens(first: str, tmp_path: Path) -> None:
    texts, tokenizer = build_sentences(8, seed=3), build_tokenizer()
    model: Any = build_model("bert", structured=True, pad_token_id=0)
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))
    if first == "factors":
        factorise(model, RANK)
    wanted = _logits(model, batch)
    trimmed = pyprune.trim_vocabulary(model, tokenizer, texts)
    if first == "tokens":
        factorise(trimmed.model, RANK)
    table = trimmed.model.get_input_embeddings()
    assert table.weight.shape == (len(trimmed.kept), RANK)
    assert table.num_embeddings == trimmed.model.config.vocab_size == len(trimmed.kept) < 100
    trimmed.save(tmp_path / "small")
    loaded = pyprune.load(tmp_path / "small")
    again = dict(trimmed.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))
    assert torch.equal(_logits(loaded, again), _logits(trimmed.model, again))
    if first == "factors":  # else another product is nearest to what is left
        torch.testing.assert_close(_logits(loaded, again), wanted, rtol=0, atol=1e-6)


def test_optimized() -> None:
    small = _small()
    wanted = _logits(small)
    fast: Any = pyprune.optimize(small)
    assert isinstance(fast.get_input_embeddings(), FactoredEmbedding)
    torch.testing.assert_close(_logits(fast), wanted, rtol=0, atol=1e-5)


def test_what_cannot_be_factored_is_said() -> None:
    with pytest.raises(InputError, match="tied to the head"):
        factorise(build_model("bert", "masked_lm"), RANK)
    untied: Any = build_model("bert", "masked_lm", tie_word_embeddings=False)
    factorise(untied, RANK)
    assert untied(**BATCH).logits.shape[-1] == 100
    with pytest.raises(InputError, match="cannot be factored"):
        factorise(build_model("llama", "lm"), RANK)
    for rank in (0, 25, 32, -1, 2.0, True):  # 100 · 32 parameters; (100 + 32) · 24 are the most below
        with pytest.raises(InputError, match="smaller"):
            factorise(build_model("bert"), rank)  # type: ignore[arg-type]
    factorise(build_model("bert"), 24)
    with pytest.raises(InputError, match="not compact"):
        expand(build_model("bert"))


_HUGE = 10**15


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["pyprune"].update(embedding_rank=0),
        lambda config: config["pyprune"].update(embedding_rank=-1),
        lambda config: config["pyprune"].update(embedding_rank=RANK - 1),
        lambda config: config["pyprune"].update(embedding_rank=33),
        lambda config: config["pyprune"].update(embedding_rank=_HUGE),
        lambda config: (config["pyprune"].update(embedding_rank=_HUGE), config.update(hidden_size=_HUGE * 4)),
        lambda config: config["pyprune"].update(embedding_rank=6.0),
        lambda config: config["pyprune"].update(embedding_rank=True),
        lambda config: config["pyprune"].update(embedding_rank=None),
        lambda config: config["pyprune"].update(embedding_rank=[RANK]),
        lambda config: config["pyprune"].update(embeddings=RANK),
        lambda config: config["pyprune"].pop("embedding_rank"),
        lambda config: config["pyprune"].pop("version"),
        lambda config: config.update(vocab_size=_HUGE),
        lambda config: config.update(vocab_size=101),
        lambda config: config.update(architectures=["BertForMaskedLM"]),
    ],
)
def test_hostile_configs(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    _small().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["pyprune"]["embedding_rank"] == RANK
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError):
        pyprune.load(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _small().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "word_embeddings" in name]:
        for change in ({}, {name: tensors[name][:-1].clone()}, {name: tensors[name].long()}):
            save_file({key: value for key, value in tensors.items() if key != name} | change, path)
            with pytest.raises(InputError, match=r"word_embeddings"):
                pyprune.load(tmp_path)
