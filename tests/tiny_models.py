# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every family, built from their configs, and batches for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "opt")
FAMILIES = ENCODERS + DECODERS
_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "electra": "Electra",
    "distilbert": "DistilBert",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "opt": "OPT",
}
_HEADS = {
    "classification": "ForSequenceClassification",
    "qa": "ForQuestionAnswering",
    "lm": "ForCausalLM",
    "masked_lm": "ForMaskedLM",
    "none": "Model",
}

Batch = dict[str, Tensor]


def build_model(
    family: str = "bert",
    head: str = "classification",
    *,
    attention: str = "sdpa",
    layers: int = 2,
    hidden: int = 32,
    inner: int = 48,
    seed: int = 0,
    structured: bool = False,
    **config: Any,
) -> nn.Module:
    """A model of 4 heads and 100 words; ``structured`` gives it correlated features, as trained ones have."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 100, "max_position_embeddings": 66, "attn_implementation": attention}
    if family == "distilbert":
        sizes |= {"dim": hidden, "n_layers": layers, "n_heads": 4, "hidden_dim": inner}
    else:
        sizes |= {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": inner,
        }
    if family == "electra":
        sizes["embedding_size"] = 16
    elif family == "opt":
        sizes |= {"ffn_dim": sizes.pop("intermediate_size"), "word_embed_proj_dim": hidden, "pad_token_id": 1}
    elif family in DECODERS:
        # Fewer heads for keys and values than for queries.
        sizes |= {"num_key_value_heads": 2, "head_dim": hidden // 4, "pad_token_id": 1}
    name = _CLASSES[family]
    if not getattr(getattr(transformers, name + _HEADS[head]), "_supports_sdpa", True):
        sizes["attn_implementation"] = "eager"  # Electra in transformers 4
    settings = getattr(transformers, name + "Config")(**{**sizes, **config})
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, name + _HEADS[head])(settings)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # transformers' own 0.02 makes blocks nearly the identity; biases of zero would hide their handling.
            if parameter.dim() == 1 and "bias" in key:
                parameter.normal_(0.0, 0.1)
            elif parameter.dim() == 2 and ("layer." in key or "layers." in key or structured):
                parameter.normal_(0.0, 1.5 / parameter.shape[1] ** 0.5)
        if structured:
            rank = hidden // 4
            words = model.get_input_embeddings().weight  # type: ignore[operator]
            words.copy_(torch.randn(len(words), rank) @ torch.randn(rank, words.shape[1]) + 0.1 * words)
    torch.set_rng_state(state)
    return model.eval()


def build_batches(count: int = 4, rows: int = 6, tokens: int = 12, *, seed: int = 1, pad: int = 1) -> list[Batch]:
    """Batches of different lengths and masks; padded ids are ``pad``."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for index in range(count):
        width = tokens - index % 3
        ids = torch.randint(5, 100, (rows, width), generator=generator)
        lengths = torch.randint(3, width + 1, (rows, 1), generator=generator)
        mask = (torch.arange(width) < lengths).long()
        batches.append({"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask})
    return batches


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    """Builds a tiny model; see :func:`build_model`."""
    return build_model


@pytest.fixture
def batches_of() -> Callable[..., list[Batch]]:
    """Builds batches; see :func:`build_batches`."""
    return build_batches


def heads_of(family: str) -> tuple[str, ...]:
    """Heads to test a family with."""
    return ("lm",) if family in DECODERS else ("classification", "qa")


@pytest.fixture(params=[(family, head) for family in FAMILIES for head in heads_of(family)], ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Every family with its heads."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family there is an adapter for."""
    return str(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads, and far slower where other processes hold the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
