# SPDX-License-Identifier: Apache-2.0
"""A stored model in memory, its matrices compressed or its layers smaller; the dense one is made only on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyprune.errors import InputError
from pyprune.models.skeleton import model_class, read_config
from pyprune.models.weights import Checkpoint, Shards
from pyprune.sparse.linear import SparseLinear
from pyprune.sparse.saving import save_compressed, saves_by
from pyprune.sparse.storage import SparseFiles, stored_tensors
from pyprune.structured.cutting import shrink

_UNFILLED = {torch.empty, torch.empty_strided, torch.rand, torch.randn, torch.normal}
_FILLED = {torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.eye}
_SMALL = 2**26  # bytes that a table computed from the config may take, however small the files are


def load_sparse(folder: Path, *, dense: bool = False, dtype: torch.dtype | None = None) -> nn.Module:
    """The model of a folder written with ``storage="sparse"``, in evaluation mode.

    Parameters
    ----------
    folder : Path
    dense : bool
        Plain ``nn.Linear`` instead of :class:`SparseLinear`.
    dtype : torch.dtype, optional
        As if by ``model.to(dtype)``.

    Raises
    ------
    InputError
        Files that are damaged, or that do not fit each other or the config. The message names file and tensor.
    """
    files, model = open_sparse(folder)
    for name in files.layouts:
        path, _, key = name.rpartition(".")
        linear: Any = model.get_submodule(name)
        if dense:
            linear.weight = nn.Parameter(files.matrix(name).to_dense())
        else:
            setattr(model.get_submodule(path), key, SparseLinear(files.matrix(name), linear.bias))
    _fill(model, files.plain, files.tensor)
    if not dense:
        saves_by(model, save_compressed)
    return model.eval() if dtype is None else model.to(dtype).eval()


def load_compact(folder: Path, *, dtype: torch.dtype | None = None, attention: str | None = None) -> nn.Module:
    """The model of a folder whose config says how large its layers are, in evaluation mode.

    Parameters
    ----------
    folder : Path
        With ``model.safetensors``, or shards and their index.
    dtype : torch.dtype, optional
        As if by ``model.to(dtype)``.
    attention : {"sdpa", "eager", ...}, optional
        The kind of attention, as transformers names it.

    Raises
    ------
    InputError
        Files that are damaged, or that do not fit the config: before a tensor is read.
    """
    source, model, likes = _open_plain(folder, attention)
    _fill(model, likes, lambda name: source.read(name, likes[name]))
    return model.eval() if dtype is None else model.to(dtype).eval()


def check_plain(folder: Path) -> None:
    """Raise :class:`InputError` unless the files of a folder hold all tensors of the model of its config."""
    _open_plain(folder, None)


def _open_plain(folder: Path, attention: str | None) -> tuple[Checkpoint, nn.Module, dict[str, Tensor]]:
    """Files, the model they belong to without its weights, and its tensors by name; shapes of both agree."""
    source = Checkpoint(folder)
    model = empty_model(source.shards, attention=attention)
    likes = stored_tensors(model)
    for name, like in likes.items():
        source.spec(name, like)
    return source, model, likes


def open_sparse(folder: Path) -> tuple[SparseFiles, nn.Module]:
    """The files of a folder, and the model they belong to without its weights; types and shapes of both agree.

    Raises
    ------
    InputError
        They do not, or one of them cannot be read.
    """
    files = SparseFiles(folder)
    model = empty_model(files.shards)
    files.check(model)
    return files, model


def empty_model(shards: Shards, *, attention: str | None = None) -> nn.Module:
    """The model of a folder with no memory for its parameters; buffers are computed from the config, as its class does.

    Layers have the sizes that the config states, where they are not those of its class.

    Raises
    ------
    InputError
        There is no such model, or one far larger than the files.
    """
    import transformers

    folder = shards.folder
    config = read_config(folder)
    blocks = getattr(config, "num_hidden_layers", 0)
    if not isinstance(blocks, int) or blocks > len(shards.files):
        raise InputError(f"{folder}: config.json asks for more blocks than there are tensors", seen=str(blocks)[:80])
    loader = model_class(config)
    if attention is not None:
        config._attn_implementation = attention
    try:
        with torch.random.fork_rng(devices=[]), _Frugal(shards.bytes):
            model: Any = loader(config)
            shrink(model)
        if model.can_generate() and (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    except InputError:
        raise
    except Exception as error:  # each class checks its settings in a way of its own
        seen = f"{type(error).__name__}: {error}"[:300]
        raise InputError(f"{folder}: no {loader.__name__} can be made of config.json", seen=seen) from error
    found: nn.Module = model
    return found


class _Frugal(TorchFunctionMode):
    """Within, tensors that will be filled later have no memory, and others not much more than the files have bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = max(limit, _SMALL)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _UNFILLED or function in _FILLED:
            shape: Tensor = function(*args, **(kwargs | {"device": "meta"}))
            if function in _UNFILLED:
                return shape
            if shape.nbytes > self._limit:
                raise InputError("config.json asks for a table far larger than the files", seen=str(list(shape.shape)))
        return function(*args, **kwargs)


def _fill(model: nn.Module, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
    """Put tensors into the places of the model, tied ones into several."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for key, tensor in table.items():
                places.setdefault(id(tensor), []).append((table, key))
    likes = stored_tensors(model)
    for name in names:
        like, value = likes[name], read(name)
        if isinstance(like, nn.Parameter):
            value = nn.Parameter(value, like.requires_grad)
        for table, key in places[id(like)]:
            table[key] = value
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise InputError("a tensor of the model is not in its files", seen=", ".join(left[:4]))
