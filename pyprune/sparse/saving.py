# SPDX-License-Identifier: Apache-2.0
"""``save_pretrained`` of models whose linears are compressed, or that are in their form for inference.

transformers' own would write tensors under names that it does not know again: loading them draws the weights at random.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from pyprune.errors import InputError
from pyprune.models.weights import STEM
from pyprune.sparse.linear import SparseLinear
from pyprune.sparse.storage import stored_tensors, write_files

_IGNORED = {"is_main_process", "safe_serialization", "max_shard_size", "save_function", "variant", "token"}


def saves_by(model: nn.Module, function: Callable[..., None]) -> None:
    """Let ``model.save_pretrained`` be ``function(model, …)``; of a model that has no such method, do nothing."""
    if hasattr(model, "save_pretrained"):
        # Of the object, not of its class; a partial is copied and pickled with its model, a method would be looked up.
        model.save_pretrained = functools.partial(function, model)  # type: ignore[assignment]


def save_compressed(model: Any, save_directory: str | os.PathLike[str], **options: Any) -> None:
    """Write config and weights, the compressed ones as such, for :func:`pyprune.load`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With :class:`SparseLinear` in it.
    save_directory : str or Path
        Made if need be.
    **options
        Of transformers; those that would change what is written are refused.

    Raises
    ------
    InputError
        The folder holds dense weights already, or an option cannot be served.
    """
    asked = sorted(name for name, value in options.items() if value and name not in _IGNORED)
    if asked:
        raise InputError("save_pretrained: a compressed model is saved whole, to a folder", seen=", ".join(asked))
    if not options.get("is_main_process", True):
        return
    folder = Path(save_directory).expanduser()
    dense = [path.name for end in ("", ".index.json") if (path := folder / f"{STEM}.safetensors{end}").exists()]
    if dense:
        raise InputError(
            f"{folder} holds a dense model, which would be taken for this one", seen=dense[0], hint="another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    matrices, plain = {}, stored_tensors(model)
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            matrices[name] = module.stored
            plain.pop(f"{name}.values", None)
    write_files(folder, matrices, plain)
    write_settings(model, folder)


def refuse_packed(model: nn.Module, *given: Any, **options: Any) -> None:
    """Say that there is nothing to save.

    Raises
    ------
    InputError
        Always.
    """
    raise InputError(
        "save_pretrained: this model is in its form for inference, which has no file",
        hint="save it before pyprune.optimize, and optimize what is loaded",
    )


def write_settings(model: Any, folder: Path) -> None:
    """What makes a model of the weights in a folder: its config, and how it generates."""
    model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
