# SPDX-License-Identifier: Apache-2.0
"""The short ways from :func:`pyprune.ops.spmm` to the kernel of few tokens, where the processor has windows."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops import library
from pyprune.ops.library import ELEMENT_TYPE
from pyprune.ops.sparse_weight import SparseWeight
from pyprune.ops.sparse_windows import FEW, Made

ACTIVATIONS = ("none", "gelu", "relu")  # by the numbers of csrc/common/sparse_rows_view.h
INPUTS = (torch.float32, torch.bfloat16, torch.float16)  # of the compiled kernels


def wants_gradient(x: Tensor, bias: Tensor | None) -> bool:
    """Whether autograd watches."""
    return torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))


def again(x: Tensor, weight: SparseWeight, bias: Tensor | None, activation: str) -> Tensor | None:
    """The product of few tokens with a weight that met few before; None where that is not so, or anything is unusual.

    Such a product takes as long as a few lines of Python: nothing is asked twice, and what does not fit goes the long
    way, and to an error there.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor or type(weight) is not SparseWeight:
        return None
    made = weight.windows.made.get(x.dtype)
    if made is None or x.numel() > made.most or not x.is_contiguous() or not x.is_cpu:
        return None
    shape, values = x.shape, weight.parts["values"]
    if values is not made.values or values._version != made.version or values.data_ptr() != made.address:
        return None
    if not shape or shape[-1] != made.columns or activation not in ACTIVATIONS:
        return None
    bias_at, bias_type = 0, 0
    if bias is not None:
        if bias.dtype not in INPUTS or bias.shape != made.rows or not bias.is_contiguous() or not bias.is_cpu:
            return None
        bias_at, bias_type = bias.data_ptr(), ELEMENT_TYPE[bias.dtype]
    if torch.is_grad_enabled() and wants_gradient(x, bias):
        return None
    if len(shape) == 2:
        tokens = shape[0]
        y = x.new_empty(tokens, made.out)
    else:
        tokens = x.numel() // made.columns
        y = x.new_empty(*shape[:-1], made.out)
    done = made.multiply(
        made.matrix,
        y.data_ptr(),
        x.data_ptr(),
        made.type,
        tokens,
        made.columns,
        0 if weight.scale is None else weight.scale.data_ptr(),
        bias_at,
        bias_type,
        0 if activation == "none" else ACTIVATIONS.index(activation),
        torch.get_num_threads(),
    )
    return y if done else None


def _by_windows(
    made: Made,
    y: Tensor,
    x: Tensor,
    tokens: int,
    stride: int,
    scale: Tensor | None,
    bias: Tensor | None,
    activation: str,
) -> bool:
    """Fill ``y``; False where the environment asks for something else."""
    done: bool = made.multiply(
        made.matrix,
        y.data_ptr(),
        x.data_ptr(),
        made.type,
        tokens,
        stride,
        0 if scale is None else scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else ELEMENT_TYPE[bias.dtype],
        0 if activation == "none" else ACTIVATIONS.index(activation),
        torch.get_num_threads(),
    )
    return done


def first(x: Tensor, weight: SparseWeight, bias: Tensor | None, activation: str) -> Tensor | None:
    """The product of few tokens, by windows that are made if need be; None where there are none, or more tokens."""
    out, columns = weight.shape
    if not 0 < x.numel() <= FEW * columns:
        return None
    made = weight.windows.prepared(weight, x.dtype)
    if made is None:
        return None
    flat = x if x.dim() == 2 and x.stride(1) == 1 else library.flatten_tokens("spmm", "x", x)
    y = flat.new_empty(flat.shape[0], out)
    bias = None if bias is None else bias.contiguous()
    if not _by_windows(made, y, flat, flat.shape[0], flat.stride(0), weight.scale, bias, activation):
        return None
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], out)
