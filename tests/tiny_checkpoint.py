# SPDX-License-Identifier: Apache-2.0
"""A tiny classifier with a tiny WordPiece tokenizer on disk, and sentences for them; nothing is downloaded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tiny_models import build_model

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ("negative", "positive")


def build_tokenizer() -> Any:
    """A lower-casing WordPiece tokenizer of fewer than 100 words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=64)


def build_checkpoint(folder: Path, *, head: str = "classification", family: str = "bert", **sizes: Any) -> Path:
    """Write model and tokenizer as ``save_pretrained`` does."""
    names: dict[str, Any] = {}
    if head == "classification":
        names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    model: Any = build_model(family, head, structured=True, **names, **sizes)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def build_sentences(count: int, seed: int = 0, *, longest: int = 14) -> list[str]:
    """Random sentences of 1 to `longest` words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def build_data(folder: Path, *, train: int = 48, dev: int = 30) -> tuple[Path, Path]:
    """``train.txt`` without labels and ``dev.tsv`` with them."""
    draw = random.Random(7)
    (folder / "train.txt").write_text("\n".join(build_sentences(train)) + "\n", encoding="utf-8")
    rows = "".join(f"{text}\t{draw.randrange(2)}\n" for text in build_sentences(dev, seed=1))
    (folder / "dev.tsv").write_text("sentence\tlabel\n" + rows, encoding="utf-8")
    return folder / "train.txt", folder / "dev.tsv"
