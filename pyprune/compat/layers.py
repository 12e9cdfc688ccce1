# SPDX-License-Identifier: Apache-2.0
"""A layer as a matrix: its weight as ``[out, in]`` and back, its inputs as tokens ``[tokens, in]``."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from pyprune.errors import InputError
from pyprune.ops import library

Kind = Literal["linear", "conv1d", "conv2d"]


def kind_of(layer: Any) -> Kind:
    """How a layer stores its matrix: ``[out, in]``, transformers' Conv1D ``[in, out]``, or ``[out, in, kh, kw]``.

    Conv1D is known by its name, or by the ``nf`` beside a 2-D weight, so that transformers need not be loaded.

    Raises
    ------
    InputError
        The layer is of another kind, is grouped, or computes its weight from other parameters.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise InputError("a layer with a weight is needed", seen=type(layer).__name__)
    if isinstance(layer, nn.Module) and parametrize.is_parametrized(layer, "weight"):
        raise InputError(
            f"{name_of(layer)}: the weight is computed from other parameters, so writing to it would be lost",
            hint="torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first",
        )
    library.check_float(name_of(layer), weight=weight)
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            raise InputError(
                f"{name_of(layer)}: grouped convolutions are not one matrix", seen=f"groups={layer.groups}"
            )
        return "conv2d"
    if isinstance(layer, nn.Linear):
        return "linear"
    ancestors = [ancestor.__name__ for ancestor in type(layer).__mro__]
    if weight.dim() == 2 and ("Conv1D" in ancestors or hasattr(layer, "nf")):
        return "conv1d"
    if weight.dim() == 2 and any(name.endswith("Linear") for name in ancestors):
        return "linear"
    raise InputError(
        f"{name_of(layer)} is no layer whose matrix is known",
        seen=f"{type(layer).__name__} with a weight {list(weight.shape)}",
        hint="nn.Linear, nn.Conv2d, or Conv1D of transformers",
    )


def name_of(layer: Any) -> str:
    """What errors and notes call a layer: its class and the shape of its weight."""
    return f"{type(layer).__name__}{list(layer.weight.shape)}"


def shape_of(layer: Any) -> tuple[int, int]:
    """``(out, in)`` of the layer's matrix."""
    kind, shape = kind_of(layer), layer.weight.shape
    return (shape[1], shape[0]) if kind == "conv1d" else (shape[0], shape[1:].numel())


def matrix_of(layer: Any) -> Tensor:
    """A copy of the layer's weight, contiguous ``[out, in]``, in its own dtype."""
    weight: Tensor = layer.weight.detach()
    if kind_of(layer) == "conv1d":
        weight = weight.T
    return weight.reshape(shape_of(layer)).clone(memory_format=torch.contiguous_format)


def write_back(layer: Any, matrix: Tensor) -> None:
    """Put ``matrix`` ``[out, in]`` into the layer's parameter, in its dtype and shape; the parameter stays the same."""
    layer.weight.data = stored_shape(layer, matrix)


def stored_shape(layer: Any, matrix: Tensor) -> Tensor:
    """``matrix`` ``[out, in]`` as the layer stores it: dtype, shape, contiguous."""
    stored = matrix.T if kind_of(layer) == "conv1d" else matrix
    return stored.reshape(layer.weight.shape).to(layer.weight.dtype).contiguous()


def samples_of(layer: Any, inputs: Tensor, *, rows_are_samples: bool) -> int:
    """How many samples a batch holds: its images or sequences; of a matrix ``[tokens, in]`` its rows, or one."""
    library.check_float(name_of(layer), inputs=inputs)
    single = 3 if kind_of(layer) == "conv2d" else 1 if rows_are_samples else 2
    return int(inputs.shape[0]) if inputs.dim() > single else 1


def tokens_of(layer: Any, inputs: Tensor) -> Tensor:
    """The inputs of a layer as ``[tokens, in]``; a convolution's are unfolded, one token per output position.

    Raises
    ------
    InputError
        The last dimension (of a convolution: the channels) is not what the layer reads.
    """
    library.check_float(name_of(layer), inputs=inputs)
    inputs = inputs.detach().to(layer.weight.device)
    convolution = kind_of(layer) == "conv2d"
    wanted = layer.in_channels if convolution else shape_of(layer)[1]
    channels = -3 if convolution else -1
    misfit = inputs.dim() not in (3, 4) if convolution else inputs.dim() < 1
    if misfit or inputs.shape[channels] != wanted:
        raise InputError(
            f"{name_of(layer)}: the inputs are not this layer's",
            asked=f"[images, {wanted}, height, width]" if convolution else f"[..., {wanted}]",
            seen=str(list(inputs.shape)),
            hint="a forward hook gets the inputs as a tuple: pass inp[0]",
        )
    if convolution:
        return _patches(layer, inputs if inputs.dim() == 4 else inputs[None])
    return inputs.reshape(inputs.shape[:-1].numel(), wanted)


def _patches(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """What each output position sees, ``[images * positions, channels * kh * kw]``."""
    if isinstance(layer.padding, str):
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        height, width = reach if layer.padding == "same" else (0, 0)
        top, left = height // 2, width // 2
        bottom, right = height - top, width - left
    else:
        top = bottom = layer.padding[0]
        left = right = layer.padding[1]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(images, (left, right, top, bottom), mode=mode)
    patches = functional.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def columns_last(layer: Any) -> Tensor:
    """Order of the columns with a convolution's input channels innermost, int64 ``[in]``; else the order as it is.

    Groups of consecutive weights then lie along the input channels, as hardware wants them.
    """
    columns = torch.arange(shape_of(layer)[1], device=layer.weight.device)
    if layer.weight.dim() != 4:
        return columns
    return columns.reshape(layer.weight.shape[1:]).permute(1, 2, 0).flatten()
