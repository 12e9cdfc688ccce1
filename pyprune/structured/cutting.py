# SPDX-License-Identifier: Apache-2.0
"""Cut heads, channels and neurons out of an encoder's layers, and put zeros in their places for comparison."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import Adapter, adapter_for
from pyprune.structured.embeddings import narrow_embeddings
from pyprune.structured.linears import HeadsIn, HeadsOut, NoInputs, NoOutputs, factor_of, no_attention, no_heads
from pyprune.structured.shapes import KEY, from_config, has_layers, to_config
from pyprune.units import LayerShape, LayerUnits, Units


def compact(model: nn.Module, units: Units) -> nn.Module:
    """A smaller model, which computes what the dense one computes with zeros in place of all that is not kept.

    Parameters
    ----------
    model : nn.Module
        A BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA or DistilBERT of transformers, with any head. It is left as it is.
    units : Units
        What is kept; sizes must be those of the model.

    Returns
    -------
    nn.Module
        Of the same class, in the same mode, type and device. Its config says how large the layers are, so that what its
        ``save_pretrained`` writes is loaded by :func:`pyprune.load`. Where all heads of a layer keep their width and
        some neurons are left, the layer is of the class's own modules. Heads of different widths are filled up with
        zeros for the attention, the scale of which stays that of the dense width. A half without units adds its output
        bias: ``LN(x + b)``.

    Raises
    ------
    InputError
        Units of another model, one that is compact already, or a family that cannot be cut.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=50)
    >>> model = BertModel(BertConfig(**sizes)).eval()
    >>> heads = torch.tensor([[True, False, False, True]])
    >>> units = Units.from_masks(32, heads, torch.arange(48)[None] < 10, width=8)
    >>> small = compact(model, units)
    >>> small.encoder.layer[0].attention.self.query.weight.shape, small.encoder.layer[0].intermediate.dense.weight.shape
    (torch.Size([16, 32]), torch.Size([10, 32]))
    >>> ids = torch.tensor([[1, 2, 3, 4]])
    >>> with torch.inference_mode():
    ...     wanted, got = (m(ids).last_hidden_state for m in (masked(model, units), small))
    >>> bool(torch.allclose(wanted, got, atol=1e-5))
    True
    """
    adapter = _check(model, units)
    small = copy.deepcopy(model)
    for block, layer in zip(adapter.blocks(small), units.layers, strict=True):
        cut_block(block, adapter, layer, units.width)
    to_config(small.config, units.shapes)
    return small


def masked(model: nn.Module, units: Units) -> nn.Module:
    """The dense model with zeros in place of all that is not kept: what :func:`compact` is held to.

    Parameters
    ----------
    model : nn.Module
        As for :func:`compact`; it is left as it is.
    units : Units

    Raises
    ------
    InputError
        As for :func:`compact`.
    """
    adapter = _check(model, units)
    dense = copy.deepcopy(model)
    for block, layer in zip(adapter.blocks(dense), units.layers, strict=True):
        for name, (rows, columns) in kept_places(adapter, layer, units.width).items():
            linear = adapter.linears(block)[name]
            with torch.no_grad():
                if rows is not None:
                    gone = _others(rows, linear.out_features)
                    linear.weight[gone] = 0
                    if linear.bias is not None:
                        linear.bias[gone] = 0
                if columns is not None:
                    linear.weight[:, _others(columns, linear.in_features)] = 0
    return dense


def dense_units(model: nn.Module) -> Units:
    """All units of a model.

    Raises
    ------
    InputError
        It is no encoder of a known family, or is compact already.
    """
    adapter = _encoder(model)
    if has_layers(model.config):
        raise InputError("the model is compact already", hint="cut the dense model once more")
    hidden, heads, width, neurons = _sizes(model, adapter)
    return Units.dense(hidden, heads, width, neurons, layers=len(adapter.blocks(model)))


def shrink(model: nn.Module) -> None:
    """Give layers and embeddings the sizes that the config states, if it states any; their parameters have no memory.

    Raises
    ------
    InputError
        The config states what cannot be, or the family cannot be cut.
    """
    config: Any = model.config
    if getattr(config, KEY, None) is None:
        return
    adapter = _encoder(model)
    _, heads, width, neurons = _sizes(model, adapter)
    blocks = adapter.blocks(model)
    shapes = from_config(config, layers=len(blocks), heads=heads, width=width, neurons=neurons)
    for block, shape in zip(blocks, shapes, strict=True) if shapes is not None else ():
        resize(block, adapter, shape, width)
    narrow_embeddings(model)


def dense_shape(model: nn.Module) -> tuple[Adapter, Units]:
    """The adapter of a compact model, and all units of the dense one that its config describes.

    Raises
    ------
    InputError
        It is no encoder of a known family, or its config states impossible sizes.
    """
    adapter, config = _encoder(model), model.config
    names = (
        "hidden_size",
        "num_attention_heads",
        "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size",
    )
    hidden, heads, neurons = (int(getattr(config, name)) for name in names)
    if heads < 1 or hidden % heads:
        raise InputError("heads do not divide the hidden size", seen=f"{heads} heads, {hidden} features")
    return adapter, Units.dense(hidden, heads, hidden // heads, neurons, layers=len(adapter.blocks(model)))


def unit_masks(model: nn.Module, units: Units) -> dict[str, Tensor]:
    """What units keep of the weights of a dense model's linears.

    Parameters
    ----------
    model : nn.Module
        Dense, or with zeros; only names and shapes are read.
    units : Units

    Returns
    -------
    dict of str to Tensor of bool
        By full linear name, ``[out, in]``, True = kept. They are views of one row or column each: not to be written to.
    """
    return weight_masks(model, _check(model, units), units)


def weight_masks(model: nn.Module, adapter: Adapter, units: Units) -> dict[str, Tensor]:
    """As :func:`unit_masks`, of the dense model that a model was once, whatever is left of it."""
    found, inner = {}, units.heads * units.width
    for index, layer in enumerate(units.layers):
        prefix = adapter.block_name(model, index)
        (out,), (up,), (down,) = adapter.groups[1:]
        sizes = {out: (units.hidden, inner), up: (units.neurons, units.hidden), down: (units.hidden, units.neurons)}
        for name, (rows, columns) in kept_places(adapter, layer, units.width).items():
            shape = sizes.get(name, (inner, units.hidden))
            # Rows of linears that read a half's input, columns of those that write its output.
            kept = torch.ones(1, 1, dtype=torch.bool)
            if rows is not None:
                kept = ~_others(rows, shape[0])[:, None]
            if columns is not None:
                kept = kept & ~_others(columns, shape[1])
            found[f"{prefix}.{name}"] = kept.expand(shape)
    return found


def _encoder(model: nn.Module) -> Adapter:
    adapter = adapter_for(model)
    if not adapter.norms:
        raise InputError(
            f"models of type {adapter.family!r} cannot be made smaller",
            hint="encoders only, such as BERT or DistilBERT",
        )
    adapter.check_config(model.config)
    positions = getattr(model.config, "position_embedding_type", None)
    if positions not in (None, "absolute"):
        raise InputError("layers with relative positions cannot be made smaller", seen=str(positions)[:80])
    return adapter


def _check(model: nn.Module, units: Units) -> Adapter:
    adapter, dense = _encoder(model), dense_units(model)
    names = ("hidden", "heads", "width", "neurons")
    wanted, given = ([getattr(u, name) for name in names] + [len(u.layers)] for u in (dense, units))
    if wanted != given:
        raise InputError(
            "the units are of another model", asked=f"hidden, heads, width, neurons, layers {wanted}", seen=str(given)
        )
    adapter.check(model)
    return adapter


def _sizes(model: nn.Module, adapter: Adapter) -> tuple[int, int, int, int]:
    """Hidden features, heads, channels of a head, neurons: of every layer."""
    config: Any = model.config
    found = set()
    for block in adapter.blocks(model):
        linears = adapter.linears(block)
        query, up = linears[adapter.groups[0][0]], linears[adapter.groups[2][0]]
        found.add((query.in_features, query.out_features, up.out_features))
    heads = int(config.num_attention_heads)
    if len(found) > 1 or (whole := found.pop())[1] != whole[0] or heads < 1 or whole[0] % heads:
        raise InputError("layers of a dense encoder are all alike, their heads as wide as its hidden states")
    hidden, _, neurons = whole
    return hidden, heads, hidden // heads, neurons


def kept_places(adapter: Adapter, layer: LayerUnits, width: int) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Rows and columns that stay, by linear; None: all."""
    query, value = (
        torch.tensor(
            [head * width + channel for head, kept in zip(layer.heads, channels, strict=True) for channel in kept],
            dtype=torch.int64,
        )
        for channels in (layer.query, layer.value)
    )
    neurons = torch.tensor(layer.neurons, dtype=torch.int64)
    (q, k, v), (out,), (up,), (down,) = adapter.groups
    return {
        q: (query, None),
        k: (query, None),
        v: (value, None),
        out: (None, value),
        up: (neurons, None),
        down: (None, neurons),
    }


def _others(kept: Tensor, count: int) -> Tensor:
    gone = torch.ones(count, dtype=torch.bool)
    gone[kept] = False
    return gone


def places_within(
    adapter: Adapter, layer: LayerUnits, width: int, held: LayerUnits | None
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """As :func:`kept_places`, in the linears of a block that holds only some units, those to stay among them."""
    found = kept_places(adapter, layer, width)
    if held is None:
        return found
    there = kept_places(adapter, held, width)
    return {
        name: (among(places[0], there[name][0]), among(places[1], there[name][1])) for name, places in found.items()
    }


def among(places: Tensor | None, held: Tensor | None) -> Tensor | None:
    """Where the entries at places are once only ``held`` ones, ascending, are left; None: all.

    >>> among(torch.tensor([2, 7]), torch.tensor([0, 2, 3, 7]))
    tensor([1, 3])
    """
    return places if places is None or held is None else torch.searchsorted(held, places)


def cut_block(
    block: nn.Module, adapter: Adapter, layer: LayerUnits, width: int, held: LayerUnits | None = None
) -> None:
    """Cut a block, in place, to the units that are kept of those it holds (None: all); heads were ``width`` wide."""
    old = any_linears(block, adapter)
    resize(block, adapter, layer.shape, width)
    for name, (rows, columns) in places_within(adapter, layer, width, held).items():
        new: Any = block.get_submodule(name)
        weight, bias = old[name].weight, old[name].bias
        for kept, dim in ((rows, 0), (columns, 1)):
            if kept is not None:
                weight = _picked(weight, kept, dim)
        new.weight = weight
        new.bias = bias if bias is None or rows is None else _picked(bias, rows, 0)
        new.to(weight.device).train(old[name].training)


def _picked(parameter: Tensor, kept: Tensor, dim: int) -> nn.Parameter:
    value = parameter.detach().index_select(dim, kept.to(parameter.device))
    return nn.Parameter(value, requires_grad=parameter.requires_grad and value.numel() > 0)


def any_linears(block: nn.Module, adapter: Adapter) -> dict[str, nn.Linear]:
    """The linears of a block by relative name, those of compact layers too."""
    found: dict[str, Any] = {name: block.get_submodule(name) for group in adapter.groups for name in group}
    return found


def resize(block: nn.Module, adapter: Adapter, shape: LayerShape, width: int) -> None:
    """Put linears of these sizes, on the meta device, in place of those there are."""
    linears = any_linears(block, adapter)
    (q, k, v), (out,), (up,), (down,) = adapter.groups
    hidden = linears[q].in_features
    attention: Any = block.get_submodule(q.rpartition(".")[0])
    attention.__dict__.pop("forward", None)  # of one that had no heads
    whole = all(channels == width for channels in itertools.chain(shape.query, shape.value))
    padded = shape.padded(width)
    # transformers 5 has the scale as a number, made of the dense width; before it was computed from what is there.
    factor = 1.0 if hasattr(attention, "scaling") else factor_of(padded, width)
    new: dict[str, nn.Module] = {}
    for name, channels in ((q, shape.query), (k, shape.query), (v, shape.value)):
        options = _options(linears[name])
        if not channels:
            new[name] = NoOutputs(hidden, 0, **options)
        elif whole:
            new[name] = nn.Linear(hidden, sum(channels), **options)
        else:
            new[name] = HeadsIn(hidden, channels, padded, factor=factor if name == q else 1.0, **options)
    if not shape.value:
        new[out] = NoInputs(0, hidden, **_options(linears[out]))
    elif whole:
        new[out] = nn.Linear(sum(shape.value), hidden, **_options(linears[out]))
    else:
        new[out] = HeadsOut(shape.value, padded, hidden, **_options(linears[out]))
    wide = nn.Linear if shape.neurons else NoOutputs
    narrow = nn.Linear if shape.neurons else NoInputs
    new[up] = wide(hidden, shape.neurons, **_options(linears[up]))
    new[down] = narrow(shape.neurons, hidden, **_options(linears[down]))
    for name, linear in new.items():
        for parameter in linear.parameters():
            parameter.requires_grad_(parameter.numel() > 0)  # what waits for all gradients would wait for ever
        path, _, key = name.rpartition(".")
        setattr(block.get_submodule(path), key, linear)
    _tell(attention, len(shape.value), padded)
    if not shape.value:
        inside = out.rpartition(".")[0] == q.rpartition(".")[0]
        # Of the object, not of its class: transformers finds attentions by their class.
        attention.forward = functools.partial(no_attention, new[out]) if inside else no_heads


def _options(linear: nn.Linear) -> dict[str, Any]:
    return {"bias": linear.bias is not None, "device": "meta", "dtype": linear.weight.dtype}


def _tell(attention: Any, heads: int, width: int) -> None:
    """Let an attention know its heads, by all names that families have for them."""
    sizes = {
        "num_attention_heads": heads,
        "n_heads": heads,
        "attention_head_size": width,
        "all_head_size": heads * width,
        "dim": heads * width,
    }
    for name, size in sizes.items():
        if hasattr(attention, name):
            setattr(attention, name, size)
