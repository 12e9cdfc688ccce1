# SPDX-License-Identifier: Apache-2.0
"""Models as ONNX, for runtimes that know neither torch nor this package."""

from __future__ import annotations

import importlib.util
import inspect
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.files import write_atomically
from pyprune.sparse.linear import SparseLinear
from pyprune.sparse.packed import PackedEncoder

_OPSET = 17
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def write_onnx(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Write a model of transformers as ONNX, for any number and length of sequences.

    Compact layers are as small in the file as they are here; ONNX has no form for zeros within a matrix.

    Parameters
    ----------
    model : nn.Module
        An encoder with any head, dense or compact, in float32.
    path : str or Path
        The file; it is replaced only when the new one is whole.

    Returns
    -------
    dict
        ``inputs`` (of ``input_ids``, ``attention_mask`` and ``token_type_ids`` those that the model reads) and
        ``outputs``, by the names that transformers gives them.

    Raises
    ------
    InputError
        The package ``onnx`` is missing, or the model has no such form.
    """
    if importlib.util.find_spec("onnx") is None:
        raise InputError("ONNX files need the onnx package", hint="pip install 'pyprune[onnx]'")
    ours = [name for name, module in model.named_modules() if isinstance(module, SparseLinear | PackedEncoder)]
    if ours:
        raise InputError(
            "ONNX has no form for compressed matrices", seen=ours[0], hint="pyprune.load(path, dense=True), then this"
        )
    module, training = _ByPlace(model), model.training
    model.eval()
    try:
        samples = [module.sample(length) for length in (6, 9)]
        with torch.no_grad():
            shapes = [[tensor.shape for tensor in module(*sample)] for sample in samples]
        names = module.outputs(samples[0])
        axes = {name: {0: "sequences", 1: "tokens"} for name in module.names}
        for name, short, long in zip(names, *shapes, strict=True):
            tokens = {axis: "tokens" for axis in range(1, len(short)) if short[axis] != long[axis]}
            axes[name] = {0: "sequences", **tokens}
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "model.onnx"
            warnings.simplefilter("ignore")  # of the tracer: what it takes for constants is tested on other lengths
            torch.onnx.export(
                module,
                samples[0],
                str(part),
                input_names=module.names,
                output_names=names,
                dynamic_axes=axes,
                opset_version=_OPSET,
                dynamo=False,
            )
            data = part.read_bytes()
    finally:
        model.train(training)
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, data, "the ONNX file")
    return {"inputs": _read(data), "outputs": names}


class _ByPlace(nn.Module):
    """Inputs and outputs by place, as an export wants them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        known = inspect.signature(model.forward).parameters
        # Where there is one type of tokens only, nobody gives it.
        types = getattr(model.config, "type_vocab_size", 0) > 1
        self.names = [name for name in _INPUTS if name in known and (types or name != "token_type_ids")]

    def sample(self, length: int) -> tuple[Tensor, ...]:
        """Two sequences, one of them padded."""
        given = {name: torch.zeros(2, length, dtype=torch.int64) for name in _INPUTS}
        given["input_ids"] += 5
        given["attention_mask"][0] = given["attention_mask"][1, :-2] = 1
        device = next(self.model.parameters()).device
        return tuple(given[name].to(device) for name in self.names)

    def outputs(self, sample: tuple[Tensor, ...]) -> list[str]:
        """Names of the outputs."""
        with torch.no_grad():
            return list(self._call(sample))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """All tensors that the model gives."""
        return tuple(self._call(tensors).values())

    def _call(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        found: Any = self.model(**dict(zip(self.names, tensors, strict=True)))
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _read(data: bytes) -> list[str]:
    """Inputs that are in the file: one that nothing reads, as the mask where no attention is left, is not."""
    import onnx

    return [entry.name for entry in onnx.load_model_from_string(data).graph.input]
