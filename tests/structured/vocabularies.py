# SPDX-License-Identifier: Apache-2.0
"""Small trained tokenizers of every kind, models for them, and text to trim them by."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

from tiny_models import build_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # in RoBERTa's order: positions are counted from the padding id
_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


@functools.cache
def corpus() -> tuple[str, ...]:
    """Sentences of words of two to four syllables, some more frequent than others."""
    draw = random.Random(5)
    words = ["".join(draw.choices(_SYLLABLES, k=draw.randint(2, 4))) for _ in range(150)]
    weights = [1 / (1 + rank) for rank in range(len(words))]
    return tuple(" ".join(draw.choices(words, weights, k=draw.randint(3, 12))) for _ in range(400))


def few() -> list[str]:
    """Some of the sentences, and some that use what is rare."""
    return [*corpus()[:12], "Ünder <mask> naïve 漢字 cafés!", "dadada dadadada fa-fa fa", "", "a"]


KINDS = ("wordpiece", "byte bpe", "suffix bpe", "prefix bpe", "fallback bpe", "unigram", "words")


def build(kind: str) -> Any:
    """A fast tokenizer of transformers; the same every time."""
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(kind)),
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=64,
    )


@functools.cache
def _trained(kind: str) -> str:
    common: dict[str, Any] = {"vocab_size": 500, "special_tokens": SPECIAL, "show_progress": False}
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    split: Any = pre_tokenizers.BertPreTokenizer()
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        trainer: Any = trainers.WordPieceTrainer(**common)
    elif kind == "byte bpe":
        tokenizer, split = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)
    elif kind == "suffix bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", **common)
    elif kind == "prefix bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
        trainer = trainers.BpeTrainer(continuing_subword_prefix="##", **common)
    elif kind == "fallback bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        split = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(**common | {"special_tokens": [*SPECIAL, *byte_tokens], "vocab_size": 700})
    elif kind == "unigram":
        tokenizer, split = Tokenizer(models.Unigram()), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **common)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        trainer = trainers.WordLevelTrainer(**common)
    tokenizer.decoder = {
        "byte bpe": decoders.ByteLevel(),
        "suffix bpe": decoders.BPEDecoder("</w>"),
        "fallback bpe": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
        "unigram": decoders.Metaspace(),
    }.get(kind, decoders.WordPiece(cleanup=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator([*corpus(), "Ünder naïve cafés 漢"], trainer)
    if kind == "fallback bpe":
        # bytes are tokens of the model, not to be found in texts as they are written
        tokenizer = Tokenizer.from_str(_without_added(tokenizer.to_str(), byte_tokens))
    tokenizer.add_tokens([AddedToken("fa-fa", normalized=False)])
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    if kind in ("byte bpe", "prefix bpe"):
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    elif kind == "wordpiece":
        tokenizer.post_processor = processors.BertProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[(token, ids[token]) for token in ("<s>", "</s>")],
        )
    return str(tokenizer.to_str())


def _without_added(text: str, tokens: list[str]) -> str:
    state = json.loads(text)
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] not in tokens]
    return json.dumps(state)


def model_for(tokenizer: Any, family: str = "roberta", head: str = "classification", **config: Any) -> nn.Module:
    """A tiny model with a row for each token and a few more, as those padded to a round number have."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return build_model(family, head, **{"vocab_size": len(tokenizer) + 3, **ids, **config})
