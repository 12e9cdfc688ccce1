# SPDX-License-Identifier: Apache-2.0
"""The ways to run a dense and a pruned model that ``bench model`` compares; one table."""

from __future__ import annotations

import importlib.util
import inspect
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import pyprune
from pyprune.sparse.onnx_file import write_onnx

Batch = dict[str, Tensor]
# Of the weights. Activations have the same type, float32 with int8 weights.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_FLOATING = ("float32", "bfloat16")
_SCORES = ("logits", "start_logits")


@dataclass(frozen=True)
class Way:
    """One way to run a model.

    Attributes
    ----------
    name : str
    model : {"dense", "pruned"}
        Which of the two.
    make : callable
        ``(model in float32, dtype, a batch) -> module``; the model is its own to change. A module takes what a
        transformers model takes, by name, and returns what has ``logits``.
    dtypes : tuple of str
        That it comes in.
    needs : tuple of str
        Modules that have to be importable, and functions of pyprune (``pyprune.<name>``).
    ours : bool
        Made by pyprune.
    optional : bool
        Takes part only when asked for.
    """

    name: str
    model: str
    make: Callable[[Any, torch.dtype, Batch], Any]
    dtypes: tuple[str, ...] = _FLOATING
    needs: tuple[str, ...] = ()
    ours: bool = False
    optional: bool = False

    def missing(self) -> str | None:
        """Why it cannot take part here, if it cannot."""
        for name in self.needs:
            room, _, function = name.partition(".")
            if room == "pyprune" and getattr(pyprune, function, None) is None:
                return f"not available: this pyprune has no {name}"
            if importlib.util.find_spec(room) is None:
                return f"not installed: {name}"
        return None


def _eager(model: Any, dtype: torch.dtype, batch: Batch) -> Any:
    return model.to(dtype)


def _compiled(model: Any, dtype: torch.dtype, batch: Batch) -> Any:
    return torch.compile(model.to(dtype), dynamic=True)


def _quantised(model: Any, dtype: torch.dtype, batch: Batch) -> Any:
    """Dynamic: inputs are quantised at every call, weights by rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has had it on its way out for years, without another in its place
        quantisation: Any = torch.ao.quantization
        return quantisation.quantize_dynamic(model, {nn.Linear: quantisation.per_channel_dynamic_qconfig})


def _sparsify(model: Any, dtype: torch.dtype, batch: Batch) -> Any:
    if dtype.is_floating_point:
        return pyprune.sparsify(model.to(dtype), format="auto")
    return pyprune.sparsify(model, format="auto", dtype=dtype)


def _optimize(model: Any, dtype: torch.dtype, batch: Batch) -> Any:
    """Activations in float32, whatever the type of the weights."""
    if dtype == torch.float32:
        return pyprune.optimize(model)
    return pyprune.optimize(pyprune.sparsify(model, format="auto", dtype=dtype))


class _Session:
    """A model in onnxruntime, for any number and length of sequences."""

    def __init__(self, model: Any) -> None:
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            self._score = next(name for name in write_onnx(model, path)["outputs"] if name in _SCORES)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.inter_op_num_threads = 1
            # its threads would take the others' cores while they wait
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = {entry.name for entry in self._session.get_inputs()}

    def __call__(self, **batch: Tensor) -> Any:
        # token types, if they were there at the export and are not now, are all the first one
        given = {name: batch.get(name, torch.zeros_like(batch["input_ids"])).numpy() for name in self._names}
        return SimpleNamespace(logits=torch.from_numpy(self._session.run([self._score], given)[0]))


def _onnxruntime(model: Any, dtype: torch.dtype, batch: Batch) -> Any:
    return _Session(model)


WAYS = (
    Way("dense", "dense", _eager),
    Way("dense compiled", "dense", _compiled, optional=True),
    Way("dense quantised", "dense", _quantised, ("int8",)),
    Way("dense onnxruntime", "dense", _onnxruntime, ("float32",), ("onnxruntime", "onnx")),
    Way("pruned as dense", "pruned", _eager),
    Way("pruned sparsify", "pruned", _sparsify, tuple(DTYPES), ("pyprune.sparsify",), ours=True),
    Way("pruned optimize", "pruned", _optimize, tuple(DTYPES), ("pyprune.optimize",), ours=True),
)


def way(name: str) -> Way:
    """The way of this name."""
    return next(each for each in WAYS if each.name == name)


def logits(output: Any) -> Tensor:
    """The scores a model gives: logits, or those of the first token of an answer."""
    found: Tensor = output.logits if hasattr(output, "logits") else output.start_logits
    return found


def accepted(model: Any, batch: Mapping[str, Tensor]) -> Batch:
    """What a model takes of a tokenizer's output: DistilBERT has no use for token_type_ids."""
    names = inspect.signature(model.forward).parameters
    return {name: tensor for name, tensor in batch.items() if name in names}
