# SPDX-License-Identifier: Apache-2.0
"""A small Python file with which transformers loads compact models where this package is not installed.

It is text here, and never run: it is written into the folder of a model, for those who ask transformers to trust it.
"""

from __future__ import annotations

import string
from typing import Any

from pyprune.models import Adapter

MODULE = "modeling_compact"
_BASE = "Model"
_HEADS = (
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForTokenClassification",
    "ForMultipleChoice",
    "ForMaskedLM",
)

_TEXT = string.Template('''\
# SPDX-License-Identifier: Apache-2.0
"""$prefix models whose layers are as small as config.json says, for plain transformers.

Written by pyprune ($version). config.pyprune["layers"] holds, for each layer, the channels of queries and keys and
those of values by head, and the number of neurons; config.pyprune["embedding_rank"] the rank of the word embeddings,
where they are a product of two matrices. Without that entry these classes are those of transformers.
"""

import functools
import math

import torch
import transformers
from torch import nn
from torch.nn import functional

LAYERS = "$path"
QUERY, KEY, VALUE = "$query", "$key", "$value"
OUT, UP, DOWN = "$out", "$up", "$down"


class Linear(nn.Linear):
    """A linear that may be without inputs or outputs."""

    def reset_parameters(self):
        if self.weight.numel():
            super().reset_parameters()

    def forward(self, input):
        if not self.out_features:
            return input[..., :1]  # some column, which nobody reads
        if self.in_features:
            return super().forward(input)
        shape = (*input.shape[:-1], self.out_features)
        return input.new_zeros(shape) if self.bias is None else self.bias.expand(shape)


class HeadsIn(Linear):
    """A projection to heads of different widths, each filled up with zeros to the widest."""

    def __init__(self, in_features, widths, width, factor=1.0, bias=True):
        super().__init__(in_features, sum(widths), bias=bias)
        self.widths, self.width, self.factor = list(widths), width, factor

    def forward(self, input):
        if not self.out_features:
            return input.new_zeros((*input.shape[:-1], len(self.widths) * self.width))
        heads = (super().forward(input) * self.factor).split(self.widths, dim=-1)
        return torch.cat([functional.pad(head, (0, self.width - head.shape[-1])) for head in heads], dim=-1)


class HeadsOut(Linear):
    """The linear that reads what heads of different widths, filled up with zeros, give."""

    def __init__(self, widths, width, out_features, bias=True):
        super().__init__(sum(widths), out_features, bias=bias)
        self.widths, self.width = list(widths), width

    def forward(self, input):
        heads = input.split(self.width, dim=-1)
        return super().forward(torch.cat([head[..., :count] for head, count in zip(heads, self.widths)], dim=-1))


class FactoredEmbedding(nn.Embedding):
    """Word embeddings as a product: a narrow table, and a projection behind it."""

    def __init__(self, count, features, rank, padding):
        super().__init__(count, rank, padding_idx=padding)
        self.projection = nn.Linear(rank, features, bias=False)

    def forward(self, input):
        return self.projection(super().forward(input))


def no_heads(hidden_states, *given, **named):
    """What an attention without heads hands to its output, and the weights of no head."""
    sequences, length = hidden_states.shape[:2]
    return hidden_states[..., :1], hidden_states.new_zeros((sequences, 0, length, length))


def no_attention(out, *given, **named):
    """The same of an attention that holds its output itself."""
    hidden_states = given[0] if given else named["query" if "query" in named else "hidden_states"]
    inputs, weights = no_heads(hidden_states)
    return out(inputs), weights


def shrink(model):
    """Give the layers of a model the sizes that its config states, if it states any."""
    record = getattr(model.config, "pyprune", None)
    if record is None:
        return
    if record["version"] != 1 or not record.keys() <= {"version", "layers", "embedding_rank"}:
        raise ValueError("config.json describes other models than this file knows")
    if "embedding_rank" in record:
        old, rank = model.get_input_embeddings(), record["embedding_rank"]
        new = FactoredEmbedding(old.num_embeddings, old.embedding_dim, rank, old.padding_idx)
        model.set_input_embeddings(new)
    layers, width = model.base_model.get_submodule(LAYERS), model.config.hidden_size // model.config.num_attention_heads
    if len(record.get("layers", layers)) != len(layers):
        raise ValueError("config.json describes another number of layers")
    for layer, sizes in zip(layers, record.get("layers", ())):
        shrink_layer(layer, sizes["query"], sizes["value"], sizes["neurons"], width)


def shrink_layer(layer, query, value, neurons, width):
    """Put smaller linears into a layer; scores stay scaled by the width of a dense head."""
    hidden = layer.get_submodule(QUERY).in_features
    attention = layer.get_submodule(QUERY.rpartition(".")[0])
    whole = all(count == width for count in [*query, *value])
    padded = width if whole else max(1, *query, *value)
    # transformers 5 keeps the scale as a number; before, it was made of the width there is.
    factor = 1.0 if hasattr(attention, "scaling") else math.sqrt(padded / width)
    new = {UP: Linear(hidden, neurons), DOWN: Linear(neurons, hidden), OUT: Linear(sum(value), hidden)}
    for name, counts in ((QUERY, query), (KEY, query), (VALUE, value)):
        new[name] = Linear(hidden, sum(counts))
        if value and not whole:
            new[name] = HeadsIn(hidden, counts, padded, factor if name == QUERY else 1.0)
    if value and not whole:
        new[OUT] = HeadsOut(value, padded, hidden)
    for name, linear in new.items():
        path, _, key = name.rpartition(".")
        setattr(layer.get_submodule(path), key, linear)
    sizes = {"num_attention_heads": len(value), "attention_head_size": padded, "all_head_size": len(value) * padded}
    for name, size in {**sizes, "n_heads": len(value), "dim": len(value) * padded}.items():
        if hasattr(attention, name):
            setattr(attention, name, size)
    if not value:
        inside = OUT.rpartition(".")[0] == QUERY.rpartition(".")[0]
        attention.forward = functools.partial(no_attention, new[OUT]) if inside else no_heads
$classes''')

_CLASS = string.Template("""

class $name(transformers.$name):
    _auto_class = "$auto"  # so that what is saved has this file again

    def __init__(self, config, *args, **options):
        super().__init__(config, *args, **options)
        shrink(self)
""")


def modelling_text(adapter: Adapter, model_class: type, version: str) -> str:
    """The Python file for models of a family.

    Parameters
    ----------
    adapter : Adapter
    model_class : type
        Any class of that family, which tells what the others are called.
    version : str
        Of this package.
    """
    (query, key, value), (out,), (up,), (down,) = adapter.groups
    prefix = _prefix(model_class)
    return _TEXT.substitute(
        prefix=prefix,
        version=version,
        path=adapter.path,
        query=query,
        key=key,
        value=value,
        out=out,
        up=up,
        down=down,
        classes="".join(
            _CLASS.substitute(name=name.rpartition(".")[2], auto=auto) for auto, name in auto_map(model_class).items()
        ),
    )


def auto_map(model_class: type) -> dict[str, str]:
    """What tells transformers which of the file's classes is meant by its ``AutoModel...``."""
    prefix = _prefix(model_class)
    heads = {f"AutoModel{head}": f"{MODULE}.{prefix}{head}" for head in _HEADS}
    return {"AutoModel": f"{MODULE}.{prefix}{_BASE}", **heads}


def _prefix(model_class: Any) -> str:
    name: str = model_class.__name__
    return name.removesuffix(_BASE).partition("For")[0]
