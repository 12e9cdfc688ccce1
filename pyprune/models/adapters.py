# SPDX-License-Identifier: Apache-2.0
"""One adapter per family: where the blocks are, and which linears of a block read the same input.

An adapter holds names only. Forward arguments are never built by hand: they are captured from the real model
(:mod:`pyprune.models.replay`), so that the same adapter holds across transformers versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyprune.errors import InputError, NumericsError


@dataclass(frozen=True)
class Adapter:
    """Names of one family of encoders or decoders, with norms before or after the halves of a block.

    Attributes
    ----------
    family : str
        ``config.model_type``.
    path : str
        The list of blocks, relative to the bare model (``model.base_model``).
    attention : str
        The module of a block that holds the first two groups. The rest of the block needs only its output (and the
        block's own input), which is what lets a pass stop after it and go on from there.
    groups : tuple of tuples of str
        Linears relative to the block, in the order the data meets them; those of one group read the same input. The
        first two groups lie inside ``attention``, the last two are the feed-forward half. The first group of a half
        may hold any number of linears; the second holds the one that writes back to the hidden states.
    embeddings : tuple of str
        Modules that turn token ids into hidden states, relative to the bare model; those a model has.
    padded_positions : bool
        Positions are numbered from ``pad_token_id + 1``, so that many of ``max_position_embeddings`` go unused.
    causal : bool
        A decoder: tokens see only those before them.
    norms : tuple of str
        The LayerNorms behind the two residual sums of a block; empty where norms come before the halves.
    """

    family: str
    path: str
    attention: str
    groups: tuple[tuple[str, ...], ...]
    embeddings: tuple[str, ...] = ("embeddings",)
    padded_positions: bool = False
    causal: bool = False
    norms: tuple[str, ...] = ()

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The Transformer blocks, first to last."""
        found = _descend(getattr(model, "base_model", model), self.path)
        if not isinstance(found, nn.ModuleList) or not len(found):
            raise InputError(f"a {self.family} model without blocks at {self.path!r}", seen=type(model).__name__)
        return list(found)

    def embedding_modules(self, model: nn.Module) -> list[nn.Module]:
        """The modules below the first block that hold parameters."""
        base = getattr(model, "base_model", model)
        return [module for name in self.embeddings if (module := _descend(base, name)) is not None]

    def block_name(self, model: nn.Module, index: int) -> str:
        """Full name of a block in the model, e.g. ``bert.encoder.layer.0``."""
        block = self.blocks(model)[index]
        names: list[str] = [name for name, module in model.named_modules() if module is block]
        return names[0]

    def linears(self, block: nn.Module) -> dict[str, nn.Linear]:
        """The prunable linears of a block by relative name, in order."""
        return {name: _linear(block, name) for group in self.groups for name in group}

    def longest(self, config: Any) -> int | None:
        """Most tokens a sentence may have, if the model sets a limit."""
        positions = getattr(config, "max_position_embeddings", None)
        if positions is None:
            return None
        return int(positions) - (int(config.pad_token_id) + 1 if self.padded_positions else 0)

    def check_config(self, config: Any) -> None:
        """Raise :class:`InputError` where blocks of this config are not all called alike, in the family's own way."""
        if not self.causal and (getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False)):
            raise InputError(
                f"a {self.family} model can be pruned as an encoder only",
                seen="is_decoder or add_cross_attention in its config",
                hint="load the checkpoint as an encoder (config.is_decoder=False)",
            )
        # Arguments are captured at the first block and replayed for all.
        kinds = sorted(set(getattr(config, "layer_types", None) or ()))
        if len(kinds) > 1:
            raise InputError(
                "layers with different kinds of attention cannot be pruned together",
                seen=f"layer_types: {', '.join(kinds)}",
                hint="a config with one kind of layer (for Qwen2 and Qwen3: use_sliding_window=false)",
            )

    def check(self, model: nn.Module) -> None:
        """Raise where the model cannot be pruned as it stands.

        Raises
        ------
        InputError
            An encoder used as a decoder, layers of several kinds, a module in place of a plain ``nn.Linear``, or
            quantised weights.
        NumericsError
            NaN or inf in a weight; the message names it.
        """
        self.check_config(getattr(model, "config", None))
        for index, block in enumerate(self.blocks(model)):
            for name, linear in self.linears(block).items():
                if not linear.weight.dtype.is_floating_point or linear.weight.is_meta:
                    full = f"{self.block_name(model, index)}.{name}"
                    raise InputError(
                        f"{full} has no floating-point weights in memory",
                        seen=f"{linear.weight.dtype} on {linear.weight.device}",
                        hint="load the model unquantised, without device_map offloading",
                    )
        for name, parameter in model.named_parameters():
            if not bool(torch.isfinite(parameter.detach()).all()):
                raise NumericsError(
                    f"{name} holds NaN or inf",
                    seen=f"{int((~torch.isfinite(parameter)).sum())} of {parameter.numel()} entries",
                    hint="the checkpoint is damaged or was trained to divergence; use another one",
                )


def _descend(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


def _linear(block: nn.Module, name: str) -> nn.Linear:
    module = _descend(block, name)
    # Subclasses (LoRA, 8-bit, parametrised) compute something else than x Wᵀ + b, or hold W in another form.
    if type(module) is not nn.Linear:
        raise InputError(
            f"{name} of a block is not a plain nn.Linear",
            seen=type(module).__name__,
            hint="merge adapters (merge_and_unload), dequantise, or remove parametrisations first",
        )
    return module


_BERT = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    ("attention.output.dense",),
    ("intermediate.dense",),
    ("output.dense",),
)
_DISTILBERT = (
    ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    ("attention.out_lin",),
    ("ffn.lin1",),
    ("ffn.lin2",),
)

_BERT_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_DISTILBERT_NORMS = ("sa_layer_norm", "output_layer_norm")

_LLAMA = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_OPT = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.out_proj",),
    ("fc1",),
    ("fc2",),
)
_OPT_EMBEDDINGS = ("decoder.embed_tokens", "decoder.embed_positions", "decoder.project_in")

_ADAPTERS = {
    adapter.family: adapter
    for adapter in (
        Adapter("bert", "encoder.layer", "attention", _BERT, norms=_BERT_NORMS),
        Adapter("roberta", "encoder.layer", "attention", _BERT, padded_positions=True, norms=_BERT_NORMS),
        Adapter("xlm-roberta", "encoder.layer", "attention", _BERT, padded_positions=True, norms=_BERT_NORMS),
        Adapter("camembert", "encoder.layer", "attention", _BERT, padded_positions=True, norms=_BERT_NORMS),
        Adapter("electra", "encoder.layer", "attention", _BERT, norms=_BERT_NORMS),
        Adapter("distilbert", "transformer.layer", "attention", _DISTILBERT, norms=_DISTILBERT_NORMS),
        *(
            Adapter(family, "layers", "self_attn", _LLAMA, ("embed_tokens",), causal=True)
            for family in ("llama", "mistral", "qwen2", "qwen3")
        ),
        Adapter("opt", "decoder.layers", "self_attn", _OPT, _OPT_EMBEDDINGS, causal=True),
    )
}


def families() -> tuple[str, ...]:
    """Model types that :func:`adapter_for` knows."""
    return tuple(_ADAPTERS)


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a transformers model, by its ``config.model_type``.

    Raises
    ------
    InputError
        The family is not known; the message lists those that are.
    """
    family: Any = getattr(getattr(model, "config", None), "model_type", None)
    if family not in _ADAPTERS:
        raise InputError(
            f"no adapter for models of type {family!r}",
            seen=type(model).__name__,
            hint="one of " + ", ".join(_ADAPTERS) + "; or prune single matrices with pyprune.solve",
        )
    return _ADAPTERS[family]
