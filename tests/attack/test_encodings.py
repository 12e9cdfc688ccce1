# SPDX-License-Identifier: Apache-2.0
"""Encodings in a file: the same bits again, shared by who has the file open; another file is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import build_checkpoint, build_sentences, build_tokenizer
from transformers import AutoModel

from pyprune.attack import encodings, recipes
from pyprune.attack.encodings import Encodings
from pyprune.attack.queries import TextModel, mean_of_tokens
from pyprune.attack.resources import Resources
from pyprune.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def rows(*texts: str) -> dict[str, torch.Tensor]:
    return {text: torch.randn(5, generator=torch.Generator().manual_seed(len(text))) for text in texts}


def test_rows_come_back_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_ASKED", 2)
    some = rows("", "a", "ba", "ünï\ud800")
    some["ba"] = torch.tensor([-0.0, 1e-45, torch.inf, torch.nan, 3.4e38])
    first, second = Encodings(tmp_path / "new" / "folder", "k"), Encodings(tmp_path / "new" / "folder", "k")
    first.add(some)
    found = second.get(["ba", "", "not there", "a", "ünï\ud800"])
    assert list(second.get([])) == []
    assert set(found) == set(some)
    for text, row in some.items():
        assert found[text].view(torch.int32).tolist() == row.view(torch.int32).tolist()
    second.add({"a": torch.zeros(5), "new": torch.ones(5)})  # what is there stays
    assert torch.equal(first.get(["a"])["a"], some["a"])
    assert len(first) == 5
    assert not Encodings(first.path.parent, "other").get(["a"])


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "encodings-k.sqlite").write_bytes(b"no database, and long enough to be seen as something" * 40)
    with pytest.raises(InputError, match="cannot be used as a file of encodings"):
        Encodings(tmp_path, "k")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        Encodings(tmp_path / "file", "k")


def test_what_is_stored_is_not_computed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> TextModel:
        stored = Encodings(tmp_path, "k")
        return TextModel(AutoModel.from_pretrained(folder).eval(), build_tokenizer(), mean_of_tokens, stored=stored)

    texts = build_sentences(6)
    computed = model()(texts)
    asked: list[str] = []
    plain = TextModel._rows

    def watched(self: TextModel, new: list[Any]) -> list[torch.Tensor]:
        asked.extend(new)
        return plain(self, new)

    monkeypatch.setattr(TextModel, "_rows", watched)
    again = model()([*texts, "ba bi bo"])
    assert asked == ["ba bi bo"]
    assert all(torch.equal(a, b) for a, b in zip(computed, again, strict=False))
    assert len(again) == 7


def test_the_file_is_of_one_encoder_and_its_bits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = Resources.of(encoder=folder, cache=tmp_path)

    def path(sha256: str, threads: int) -> Path:
        stored = recipes._sentence_encoder(folder, resources.cache, sha256, threads).stored
        assert stored is not None
        return stored.path

    assert path("a", 1) == path("a", 1)
    assert len({path("a", 1), path("b", 1), path("a", 2)}) == 3
    assert recipes._sentence_encoder(folder, None, "a", 1).stored is None
    monkeypatch.setattr("pyprune.attack.queries.inference_form", lambda model: model)
    with pytest.raises(InputError, match="depend on the batch"):
        recipes._sentence_encoder(folder, tmp_path, "a", 1)
