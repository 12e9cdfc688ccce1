# SPDX-License-Identifier: Apache-2.0
"""A whole stack of Transformer layers on packed tokens: padding is neither multiplied nor attended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library, sparse_rows, sparse_weight
from pyprune.ops.places import Places
from pyprune.ops.sparse_weight import SparseWeight

# Rows of a tile of a dense weight (csrc/common/dense_rows.h).
DENSE_ROWS = 6

# In the order of csrc/common/encoder_view.h.
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
LINEARS = ("project", "output", "up", "down")

# The order in which the parts of an arrangement are handed to the op.
PARTS = {"dense_tiles": ("values",), "rows": sparse_rows.PARTS}


@dataclass(frozen=True, eq=False)
class EncoderLayer:
    """The weights of one layer, arranged for the kernel (:func:`arrange`).

    Attributes
    ----------
    project : SparseWeight, shape (2 queries + values, hidden)
        Queries, keys and values of all heads, one below the other.
    output, up, down : SparseWeight
        Of attention, (hidden, values), and of the feed-forward half, (inner, hidden) and (hidden, inner).
    vectors : Tensor of float32, shape (2 queries + values + inner + 6 hidden,)
        One after another: bias of ``project`` and of ``output``, gain and shift of the norm after attention, bias of
        ``up`` and of ``down``, gain and shift of the norm at the end.
    query, value : tuple of int, optional
        Channels of queries and keys, and of values, by head. A head without queries looks at all tokens alike; without
        heads attention adds its bias. Default: heads of the op's ``head`` channels, as many as there is room for.
    """

    project: SparseWeight
    output: SparseWeight
    up: SparseWeight
    down: SparseWeight
    vectors: Tensor
    query: tuple[int, ...] | None = None
    value: tuple[int, ...] | None = None

    def heads(self, head: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels of queries and of values by head, where a head has ``head`` of them if nothing else is said."""
        whole = (head,) * (self.output.shape[1] // head)
        return whole if self.query is None else self.query, whole if self.value is None else self.value


def arrange(weight: SparseWeight) -> SparseWeight:
    """A weight as the kernel of :func:`encoder` takes it: a dense one in tiles of rows, any other as it is."""
    if weight.format != "dense":
        return weight
    values = weight.to_dense(torch.float32)
    padded = torch.nn.functional.pad(values, (0, 0, 0, -values.shape[0] % DENSE_ROWS))
    tiles = padded.reshape(len(padded) // DENSE_ROWS, DENSE_ROWS, values.shape[1]).transpose(1, 2).contiguous()
    return SparseWeight(weight.shape, "dense_tiles", {"values": tiles})


def encoder(
    hidden: Tensor,  # [sequences, length, features]
    layers: Sequence[EncoderLayer],
    keep: Tensor | None = None,  # [sequences, length]
    *,
    head: int,
    activation: str = "gelu",
    eps: float = 1e-12,
) -> Tensor:  # [sequences, length, features]
    """Run hidden states through layers with a LayerNorm behind each residual sum, as in BERT.

    Per layer ``a = norm(x + W_o attention(W_qkv x + b) + b)`` and ``x = norm(a + W_d f(W_u a + b) + b)``; scores of
    attention are divided by ``√head``, and every token sees all tokens of its sequence. What a layer lacks of heads, of
    their channels or of neurons costs nothing.

    Parameters
    ----------
    hidden : Tensor of float32, shape (sequences, length, features)
    layers : sequence of EncoderLayer
    keep : Tensor of bool, shape (sequences, length), optional
        False = padding, anywhere in a sequence: neither read nor attended to, and zero in the result.
    head : int
        Channels of a head where nothing is cut: those of heads of which a layer does not say it, and what scores are
        scaled by in all layers.
    activation : {"gelu", "gelu_tanh", "relu"}
        Of the feed-forward half.
    eps : float
        Of all norms.

    Returns
    -------
    Tensor of float32, shape (sequences, length, features)

    Raises
    ------
    InputError
        Shapes or dtypes do not fit, or a gradient is asked for.

    Notes
    -----
    Compiled for the CPU. A sequence has the same bits whatever else is in the batch, and for any number of threads.

    Examples
    --------
    Without weights a layer is its two norms:

    >>> shapes = ((12, 4), (4, 4), (2, 4), (4, 2))
    >>> weights = [arrange(sparse_weight.compress(torch.zeros(shape), format="dense")) for shape in shapes]
    >>> gain = torch.ones(4)
    >>> vectors = torch.cat([torch.zeros(16), gain, torch.zeros(10), gain, torch.zeros(4)])
    >>> layer = EncoderLayer(*weights, vectors)
    >>> encoder(torch.tensor([[[1.0, 1.0, 3.0, 3.0]]]), [layer], head=2)
    tensor([[[-1., -1.,  1.,  1.]]])
    """
    if hidden.dim() != 3 or hidden.dtype != torch.float32:
        raise InputError(
            "encoder: hidden must be float32 [sequences, length, features]", seen=f"{hidden.dtype} {list(hidden.shape)}"
        )
    if activation not in ACTIVATIONS:
        raise InputError(f"encoder: unknown activation {activation!r}", hint=", ".join(ACTIVATIONS))
    if keep is not None and (keep.dtype != torch.bool or keep.shape != hidden.shape[:2]):
        raise InputError("encoder: keep must be bool [sequences, length]", seen=f"{keep.dtype} {list(keep.shape)}")
    library.reject_autograd("encoder", hidden)
    library.check_same_device("encoder", hidden, keep)
    parts, formats, sizes, heads = [], [], [], []
    for layer in layers:
        check_layer(layer, hidden.shape[2], head)
        for name in LINEARS:
            weight: SparseWeight = getattr(layer, name)
            parts += [weight.parts[part] for part in PARTS[weight.format]]
            formats.append(weight.format)
            sizes += [*weight.shape, *weight.geometry]
        heads += flat_heads(layer, head)
    vectors = [layer.vectors for layer in layers]
    return run(Places(), hidden, keep, parts, formats, sizes, heads, vectors, head, activation, eps)


def run(places: Places, hidden: Tensor, keep: Tensor | None, *rest: Any) -> Tensor:
    """The op itself, unchecked; its arguments are those of :func:`encoder_reference`.

    The way through torch's dispatcher takes some microseconds a tensor, as long as a layer of one short sentence.
    """
    plain = type(hidden) is Tensor and not torch.compiler.is_compiling() and hidden.device.type == "cpu"
    if plain and backends.choose("encoder", "cpu").backend == "cpp":
        return _encode(places, hidden, keep, *rest)
    result: Tensor = _encoder(hidden, keep, *rest)
    return result


def check_layer(layer: EncoderLayer, hidden: int, head: int) -> None:
    """Raise :class:`InputError` where the weights of a layer do not fit together."""
    if head < 1 or ((layer.query is None or layer.value is None) and layer.output.shape[1] % head):
        raise InputError(
            "encoder: heads do not fit", asked=f"a multiple of {head}", seen=f"{layer.output.shape[1]} features"
        )
    query, value = layer.heads(head)
    if len(query) != len(value) or min((*query, *value), default=0) < 0:
        raise InputError("encoder: every head has channels of queries and of values", seen=f"{query}, {value}")
    projected, values, inner = 2 * sum(query) + sum(value), sum(value), layer.down.shape[1]
    wanted = {
        "project": (projected, hidden),
        "output": (hidden, values),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    for name, shape in wanted.items():
        weight: SparseWeight = getattr(layer, name)
        if weight.shape != shape:
            raise InputError(
                f"encoder: {name} has the wrong shape", asked=str(list(shape)), seen=str(list(weight.shape))
            )
        if weight.format not in PARTS:
            raise InputError(
                f"encoder: {name} is stored as {weight.format!r}", hint="prepare(weight), then arrange(weight)"
            )
    library.check_shape("encoder", "vectors", layer.vectors, (projected + inner + 6 * hidden,))


def flat_heads(layer: EncoderLayer, head: int) -> list[int]:
    """The heads of a layer as the op takes them: how many, then their channels of queries, then those of values."""
    query, value = layer.heads(head)
    return [len(query), *query, *value]


def _split_heads(heads: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    found, place = [], 0
    while place < len(heads):
        first, second = place + 1 + heads[place], place + 1 + 2 * heads[place]
        found.append((list(heads[place + 1 : first]), list(heads[first:second])))
        place = second
    return found


@backends.implements("encoder", "reference")
def encoder_reference(
    hidden: Tensor,
    keep: Tensor | None,
    parts: Sequence[Tensor],
    formats: Sequence[str],
    sizes: Sequence[int],
    heads: Sequence[int],
    vectors: Sequence[Tensor],
    head: int,
    activation: str,
    eps: float,
) -> Tensor:
    """The layers in float64 on padded sequences; padding gets no attention and is set to zero at the end."""
    x, features = hidden.double(), hidden.shape[2]
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if keep is None else keep
    x = x.masked_fill(~mask[..., None], 0)
    weights = _dense(parts, formats, sizes)
    for index, (vector, (query, value)) in enumerate(zip(vectors, _split_heads(heads), strict=True)):
        project, output, up, down = weights[4 * index : 4 * index + 4]
        widths = [len(project), features, features, features, len(up), features, features, features]
        b_project, b_output, gain, shift, b_up, b_down, end_gain, end_shift = torch.split(vector.double(), widths)
        projected = torch.split(torch.nn.functional.linear(x, project, b_project), [*query, *query, *value], -1)
        attended = [x.new_zeros(*x.shape[:2], 0)]
        for q, k, v in zip(*(projected[part * len(query) : (part + 1) * len(query)] for part in range(3)), strict=True):
            scores = (q @ k.transpose(1, 2)) / head**0.5
            weight = scores.masked_fill(~mask[:, None, :], -torch.inf).softmax(-1).nan_to_num(0.0)
            attended.append(weight @ v)
        a = torch.nn.functional.linear(torch.cat(attended, -1), output, b_output) + x
        a = torch.nn.functional.layer_norm(a, (features,), gain, shift, eps)
        wide = _activate(torch.nn.functional.linear(a, up, b_up), activation)
        x = torch.nn.functional.linear(wide, down, b_down) + a
        x = torch.nn.functional.layer_norm(x, (features,), end_gain, end_shift, eps)
    return x.masked_fill(~mask[..., None], 0).float()


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return x.relu()
    return torch.nn.functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def _dense(parts: Sequence[Tensor], formats: Sequence[str], sizes: Sequence[int]) -> list[Tensor]:
    found, taken = [], 0
    for index, format in enumerate(formats):
        names = PARTS[format]
        out, columns, *geometry = sizes[4 * index : 4 * index + 4]
        own = dict(zip(names, parts[taken : taken + len(names)], strict=True))
        taken += len(names)
        if format == "dense_tiles":
            found.append(own["values"].transpose(1, 2).flatten(0, 1)[:out].double())
        else:
            shape = (geometry[0], geometry[1])
            found.append(sparse_weight.to_dense(format, own, None, (out, columns), shape, torch.float64))
    return found


@backends.implements("encoder", "cpp")
def _encoder_cpp(hidden: Tensor, keep: Tensor | None, *rest: Any) -> Tensor:
    return _encode(Places(), hidden, keep, *rest)


def _encode(
    places: Places,
    hidden: Tensor,
    keep: Tensor | None,
    parts: Sequence[Tensor],
    formats: Sequence[str],
    sizes: Sequence[int],
    heads: Sequence[int],
    vectors: Sequence[Tensor],
    head: int,
    activation: str,
    eps: float,
) -> Tensor:
    hidden = hidden.contiguous()
    keep = None if keep is None else keep.contiguous()
    extension = backends.extension()
    layers = places.made(
        (*parts, *vectors),
        lambda: extension.EncoderLayers(_layer_arguments(parts, formats, sizes, heads, vectors), hidden.shape[2], head),
    )
    out = library.empty(*hidden.shape, dtype=torch.float32)
    extension.encoder(
        out.data_ptr(),
        hidden.data_ptr(),
        0 if keep is None else keep.data_ptr(),
        hidden.shape[0],
        hidden.shape[1],
        layers,
        eps,
        ACTIVATIONS.index(activation),
        backends.threads(),
    )
    return out


def _layer_arguments(
    parts: Sequence[Tensor],
    formats: Sequence[str],
    sizes: Sequence[int],
    heads: Sequence[int],
    vectors: Sequence[Tensor],
) -> list[tuple[Any, ...]]:
    layers, taken = [], 0
    for index, (vector, (query, value)) in enumerate(zip(vectors, _split_heads(heads), strict=True)):
        linears = []
        for place in range(4 * index, 4 * index + 4):
            count = len(PARTS[formats[place]])
            own, (out, columns, *geometry) = parts[taken : taken + count], sizes[4 * place : 4 * place + 4]
            linears.append(_pointers(formats[place], own, (out, columns), (geometry[0], geometry[1])))
            taken += count
        layers.append((query, value, sizes[16 * index + 13], linears, vector.data_ptr(), vector.numel()))
    return layers


def _pointers(
    format: str, parts: Sequence[Tensor], shape: tuple[int, int], geometry: tuple[int, int]
) -> tuple[int, int, tuple[int, ...]]:
    if format == "dense_tiles":
        return parts[0].data_ptr(), parts[0].numel(), _NO_ROWS
    return 0, -1, sparse_rows.pointers(dict(zip(sparse_rows.PARTS, parts, strict=True)), shape, geometry)


_NO_ROWS = (0,) * 10


def _fake(hidden: Tensor, *rest: Any) -> Tensor:
    return hidden.new_empty(hidden.shape)


_encoder = library.register(
    "encoder(Tensor hidden, Tensor? keep, Tensor[] parts, str[] formats, int[] sizes, int[] heads, Tensor[] vectors, "
    "int head, str activation, float eps) -> Tensor",
    fake=_fake,
)
