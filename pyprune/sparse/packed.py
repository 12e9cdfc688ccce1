# SPDX-License-Identifier: Apache-2.0
"""Encoders in their form for inference: one module in place of all layers, on packed tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import Adapter, adapter_for
from pyprune.ops import compress, library, prepare
from pyprune.ops.encoder import LINEARS, PARTS, EncoderLayer, arrange, check_layer, flat_heads, run
from pyprune.ops.places import Places
from pyprune.ops.sparse_weight import SparseWeight
from pyprune.sparse.saving import refuse_packed, saves_by
from pyprune.structured.linears import CutLinear
from pyprune.structured.shapes import from_config
from pyprune.units import LayerShape

FORMATS = ("auto", "sparse", "dense")

# A linear that keeps more than this is multiplied with its zeros.
SPARSE_BELOW = 0.7

# transformers' names of activations that are one of ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def optimize(model: nn.Module, *, format: str = "auto") -> nn.Module:
    """Put an encoder into its form for inference on CPUs.

    The stack of layers is replaced by one :class:`PackedEncoder`: padding is left out, zeros of the weights are neither
    stored nor multiplied, and activations stay in one layout from the first layer to the last. Embeddings, pooler and
    heads stay as they are. Outputs at real tokens equal those before to about 1e-5; at padding they are zero (so that a
    head that reads the first token needs its padding at the end).

    Parameters
    ----------
    model : nn.Module
        A BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA or DistilBERT of transformers, with any head, in float32 on the CPU.
        Its linears may be dense, with or without zeros (``PruneResult.model``), or hold a ``SparseWeight`` as the
        attribute ``sparse``. It may be a smaller one (:func:`pyprune.compact`): what was cut costs nothing. **It is
        changed**: the old layers are given up, and no parameter asks for a gradient.
    format : {"auto", "sparse", "dense"}
        How linears are stored; "auto" takes "sparse" for those that have enough zeros to be faster so. Values keep
        their type where it is float32, bfloat16 or float16; the sums are float32.

    Returns
    -------
    nn.Module
        The same model, in evaluation mode.

    Raises
    ------
    InputError
        The model cannot be served: another family, a decoder, an activation that the kernel does not have, another
        dtype or device, a linear that is of no known kind.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=50)
    >>> model = BertModel(BertConfig(**sizes)).eval()
    >>> ids = torch.tensor([[1, 2, 3, 4]])
    >>> with torch.inference_mode():
    ...     before = model(ids).last_hidden_state
    ...     after = optimize(model)(ids).last_hidden_state
    >>> bool(torch.allclose(before, after, atol=1e-5))
    True
    """
    if format not in FORMATS:
        raise InputError(f"optimize: unknown format {format!r}", hint=", ".join(FORMATS))
    adapter = adapter_for(model)
    if not adapter.norms:
        raise InputError(
            f"models of type {adapter.family!r} have no packed form", hint="encoders only, such as BERT or DistilBERT"
        )
    base: Any = getattr(model, "base_model", model)
    place = adapter.path.partition(".")[0]
    if isinstance(getattr(base, place), PackedEncoder):
        return model
    for module in adapter.embedding_modules(model):
        for name, parameter in module.named_parameters():
            if parameter.dtype != torch.float32:
                raise InputError(f"optimize: {name} is not in float32", seen=str(parameter.dtype), hint="model.float()")
    setattr(base, place, _packed(model, adapter, format))
    saves_by(model, refuse_packed)
    return model.eval().requires_grad_(False)


class PackedEncoder(nn.Module):
    """All layers of an encoder; called as transformers 4 and 5 call their own.

    Not served, and said in an :class:`InputError`: training and gradients, hidden states of single layers and attention
    weights, head masks, caches, cross attention, masks that differ from token to token, CUDA.

    Parameters
    ----------
    layers : list of EncoderLayer
    config : PretrainedConfig
        Of the model; asked at every call whether it wants more outputs than there are.
    head : int
        Channels of a head of the dense model.
    activation : str
        One of ``pyprune.ops.encoder.ACTIVATIONS``.
    eps : float
        Of all norms.
    """

    def __init__(self, layers: list[EncoderLayer], config: Any, *, head: int, activation: str, eps: float) -> None:
        super().__init__()
        self.config, self.head, self.activation, self.eps = config, head, activation, eps
        self._places = Places()
        self._formats: list[str] = []
        self._sizes: list[int] = []
        self._heads: list[int] = []
        self._parts: list[str] = []
        self._vectors: list[str] = []
        for index, layer in enumerate(layers):
            for name in LINEARS:
                weight: SparseWeight = getattr(layer, name)
                self._formats.append(weight.format)
                self._sizes += [*weight.shape, *weight.geometry]
                for part in PARTS[weight.format]:
                    self._parts.append(f"layer_{index}_{name}_{part}")
                    self.register_buffer(self._parts[-1], weight.parts[part])
            self._heads += flat_heads(layer, head)
            self._vectors.append(f"layer_{index}_vectors")
            self.register_buffer(self._vectors[-1], layer.vectors)

    def forward(self, hidden_states: Tensor | None = None, attention_mask: Tensor | None = None, **asked: Any) -> Any:
        """Hidden states ``[sequences, length, hidden]`` to ``last_hidden_state`` of the same shape."""
        hidden = asked.pop("x", hidden_states)  # DistilBERT's names in transformers 4
        mask = asked.pop("attn_mask", attention_mask)
        self._check(hidden, asked)
        buffers = self._buffers
        result = run(
            self._places,
            hidden,
            kept_tokens(mask, hidden),
            [buffers[name] for name in self._parts],
            self._formats,
            self._sizes,
            self._heads,
            [buffers[name] for name in self._vectors],
            self.head,
            self.activation,
            self.eps,
        )
        if asked.get("return_dict") is False:
            return (result,)
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=result)

    def extra_repr(self) -> str:
        """Number of layers, and of linears in each format."""
        counts = {format: self._formats.count(format) for format in dict.fromkeys(self._formats)}
        linears = ", ".join(f"{count} {format}" for format, count in counts.items())
        return f"layers={len(self._vectors)}, linears: {linears}"

    def _check(self, hidden: Tensor, asked: dict[str, Any]) -> None:
        if self.training:
            raise InputError("a packed encoder is for inference only", hint="model.eval()")
        if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
            raise InputError("a packed encoder runs in float32 on the CPU", seen=f"{hidden.dtype} on {hidden.device}")
        library.reject_autograd("encoder", hidden)
        for name in ("output_attentions", "output_hidden_states"):
            if asked.get(name) or getattr(self.config, name, False):
                raise InputError(f"a packed encoder has no {name.removeprefix('output_')}", seen=f"{name}=True")
        for name in ("head_mask", "encoder_hidden_states", "past_key_values"):
            value = asked.get(name)
            if any(part is not None for part in value) if isinstance(value, (list, tuple)) else value is not None:
                raise InputError(f"a packed encoder cannot take {name}", hint="use the model as it was before optimize")


def kept_tokens(mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Which tokens are real, ``[sequences, length]``, from any attention mask of transformers that only pads.

    Parameters
    ----------
    mask : Tensor, optional
        ``[sequences, length]``, not zero = real; or ``[sequences, 1, 1 or length, length]``, bool with True = attend,
        or added to scores, with 0 = attend and large negative numbers elsewhere.
    hidden : Tensor, shape (sequences, length, features)

    Raises
    ------
    InputError
        Queries of one sequence see different tokens, or scores are changed in another way.
    """
    if mask is None:
        return None
    if mask.dim() == 2:
        return (mask != 0).expand(hidden.shape[:2])
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise InputError("the attention mask has a shape that is no padding", seen=str(list(mask.shape)))
    lines = mask[:, 0]
    first = lines[:, :1]
    if lines.shape[1] > 1 and lines.stride(1) != 0:
        _hold((lines == first).all(), "tokens of one sequence see different tokens")
    first = first[:, 0]
    if first.dtype != torch.bool:
        _hold(((first == 0) | (first <= -1e4)).all(), "the attention mask changes scores")
        first = first == 0
    return first.expand(hidden.shape[:2])


def _hold(condition: Tensor, message: str) -> None:
    if torch.compiler.is_compiling():
        torch._assert_async(condition, message)
    elif not bool(condition):
        raise InputError(message, hint="a packed encoder takes masks of padding only")


def _packed(model: nn.Module, adapter: Adapter, format: str) -> PackedEncoder:
    config: Any = model.config
    adapter.check_config(config)
    blocks, head = adapter.blocks(model), config.hidden_size // config.num_attention_heads
    neurons = config.hidden_dim if adapter.family == "distilbert" else config.intermediate_size
    stated = from_config(config, layers=len(blocks), heads=config.num_attention_heads, width=head, neurons=neurons)
    return pack_blocks(model, adapter, blocks, stated or [None] * len(blocks), format)


def pack_blocks(
    model: nn.Module,
    adapter: Adapter,
    blocks: Iterable[nn.Module],
    shapes: Iterable[LayerShape | None],
    format: str = "auto",
) -> PackedEncoder:
    """Blocks like those of a model as one module.

    Parameters
    ----------
    model : nn.Module
        Only its config is read.
    adapter : Adapter
    blocks : iterable of nn.Module
    shapes : iterable of LayerShape or None
        Of the blocks; None: all heads are whole.
    format : str
        As for :func:`optimize`.

    Raises
    ------
    InputError
        As for :func:`optimize`.
    """
    config: Any = model.config
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        raise InputError("relative positions have no packed form", seen=str(config.position_embedding_type))
    name = getattr(config, "activation" if adapter.family == "distilbert" else "hidden_act", None)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InputError(f"the activation {name!r} has no packed form", hint=", ".join(ACTIVATIONS))
    head = config.hidden_size // config.num_attention_heads
    layers, eps = [], set()
    for block, shape in zip(blocks, shapes, strict=True):
        norms = [block.get_submodule(path) for path in adapter.norms]
        layer = _layer(block, adapter, norms, format, shape)
        check_layer(layer, config.hidden_size, head)
        layers.append(layer)
        eps |= {float(norm.eps) for norm in norms}  # type: ignore[arg-type]
    if len(eps) > 1:
        raise InputError("norms with different eps have no packed form", seen=", ".join(map(str, sorted(eps))))
    return PackedEncoder(layers, config, head=head, activation=ACTIVATIONS[name], eps=eps.pop())


def _layer(
    block: nn.Module, adapter: Adapter, norms: list[nn.Module], format: str, shape: LayerShape | None
) -> EncoderLayer:
    weights: list[SparseWeight] = []
    vectors: list[Any] = []
    for group in adapter.groups:
        pairs = [_weight(block.get_submodule(name), name) for name in group]
        dense = torch.cat([weight for weight, _ in pairs])
        weights.append(_arranged(dense, format))
        for weight, bias in pairs:
            vectors.append(weight.new_zeros(len(weight)) if bias is None else bias)
    # Biases of query, key, value and output come before the first norm, those of the wide half before the second.
    first, second = ([norm.weight, norm.bias] for norm in norms)
    vectors = [*vectors[:4], *first, *vectors[4:], *second]
    project, output, up, down = weights
    heads = (None, None) if shape is None else (shape.query, shape.value)
    return EncoderLayer(project, output, up, down, torch.cat([v.detach().float() for v in vectors]), *heads)


def _weight(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """The dense weight and the bias of a linear, or of a module that holds a compressed one."""
    sparse: Any = getattr(module, "sparse", None)
    bias: Any = getattr(module, "bias", None)
    if isinstance(sparse, SparseWeight):
        weight = sparse.to_dense()
    elif type(module) is nn.Linear or isinstance(module, CutLinear):
        weight = module.weight.detach()
    else:
        raise InputError(f"{name} of a block is neither a plain nn.Linear nor sparse", seen=type(module).__name__)
    if weight.device.type != "cpu" or not weight.is_floating_point():
        raise InputError(f"{name} of a block is not on the CPU", seen=f"{weight.dtype} on {weight.device}")
    return weight, bias


def _arranged(weight: Tensor, format: str) -> SparseWeight:
    most = SPARSE_BELOW * weight.numel() if format == "auto" else weight.numel()
    if format != "dense" and weight.numel() and int(torch.count_nonzero(weight)) <= most:
        sparse = prepare(compress(weight), torch.float32)  # activations between layers are float32
        if sparse.format == "rows":  # else there is no kernel for it here
            return sparse
    return arrange(compress(weight, format="dense"))
