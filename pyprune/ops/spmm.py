# SPDX-License-Identifier: Apache-2.0
"""Products with a compressed matrix: ``y = x Wᵀ + b``, the zeros of ``W`` neither stored nor multiplied."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library, semi_structured, sparse_rows, sparse_tiles, spmm_few, spmm_gpu
from pyprune.ops.sparse_weight import SparseWeight, restore, to_dense

ACTIVATIONS = spmm_few.ACTIVATIONS
ROWS_INPUTS = spmm_few.INPUTS

# The order in which the parts of a format are handed to the op.
PARTS = {
    "dense": ("values",),
    "bitmask": ("bits", "values"),
    "nm": ("bits", "values"),
    "block": ("bits", "values"),
    "rows": sparse_rows.PARTS,
    "tiles": sparse_tiles.PARTS,
    "semi": semi_structured.PARTS,
}


def spmm(
    x: Tensor,  # [..., in]
    weight: SparseWeight,  # [out, in]
    bias: Tensor | None = None,  # [out]
    *,
    activation: str = "none",
) -> Tensor:  # [..., out]
    """Multiply by a compressed matrix; a drop-in for ``torch.nn.functional.linear``.

    Sums are float32, whatever the types of ``x`` and of the values; the result has the type of ``x``, rounded once
    (after torch's 2:4 product twice, if bias or activation follow). There is a gradient for ``x`` and for ``bias``,
    none for the values.

    Parameters
    ----------
    x : Tensor, shape (..., in)
        float32, bfloat16 or float16; float64 is multiplied in float64, by the reference.
    weight : SparseWeight, shape (out, in)
        On the device of ``x``. In a stored format it is arranged for the kernel at every call: keep
        :func:`prepare` of it where it is used more than once.
    bias : Tensor, shape (out,), optional
        Floating.
    activation : {"none", "gelu", "relu"}
        Applied to the sum in the same pass; GELU is the exact one (erf).

    Returns
    -------
    Tensor, shape (..., out)

    Raises
    ------
    InputError
        Shapes, dtypes or devices do not fit, or an unknown activation.

    Examples
    --------
    >>> from pyprune.ops.sparse_weight import compress
    >>> spmm(torch.tensor([[1.0, 2.0, 3.0]]), compress(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 1.0]])))
    tensor([[4., 4.]])
    """
    few = spmm_few.again(x, weight, bias, activation)
    if few is not None:
        return few
    if _direct(x, weight, bias, activation):
        few = spmm_few.first(x, weight, bias, activation)
        return _spmm_rows(x, weight, bias, activation) if few is None else few
    library.check_float("spmm", x=x)
    if not isinstance(weight, SparseWeight):
        raise InputError("spmm: the weight must be a SparseWeight", hint="pyprune.ops.sparse_weight.compress(weight)")
    if activation not in ACTIVATIONS:
        raise InputError(f"spmm: unknown activation {activation!r}", hint=", ".join(ACTIVATIONS))
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise InputError("spmm: shapes do not fit", asked=f"x [..., {weight.shape[1]}]", seen=f"x {list(x.shape)}")
    if bias is not None:
        library.check_float("spmm", bias=bias)
        library.check_shape("spmm", "bias", bias, weight.shape[:1])
    library.check_same_device("spmm", x, weight.values, bias)
    fused = "none" if spmm_few.wants_gradient(x, bias) else activation
    y: Tensor = _spmm(
        x,
        [weight.parts[name] for name in PARTS[weight.format]],
        weight.scale,
        bias,
        weight.format,
        weight.shape[0],
        weight.geometry,
        fused,
    )
    return y if fused == activation else _activate(y, activation)


def _direct(x: Tensor, weight: SparseWeight, bias: Tensor | None, activation: str) -> bool:
    # Everything fits and nobody watches: torch's dispatcher would take 50 us, longer than a small product. What does
    # not fit goes the other way, and to an error there.
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and type(weight) is SparseWeight
        and weight.format == "rows"
        and x.is_cpu
        and x.dtype in ROWS_INPUTS
        and x.dim() > 0
        and x.shape[-1] == weight.shape[1]
        and (bias is None or (bias.dtype in ROWS_INPUTS and bias.is_cpu and bias.shape == weight.shape[:1]))
        and activation in ACTIVATIONS
        and not spmm_few.wants_gradient(x, bias)
        and backends.choose("spmm", "cpu").backend == "cpp"
    )


def prepare(weight: SparseWeight, x: torch.dtype | None = None) -> SparseWeight:
    """The same matrix in the arrangement that the kernel of its device wants; itself if it is in it already.

    On a CPU that is "rows"; on a GPU "tiles", "semi" for 2:4 in 16 bits where torch can multiply by it, and blocks
    whose sides are 16, 32, 64 or 128 as they are. :func:`pyprune.ops.sparse_weight.restore` turns an arrangement back
    into a stored format. A dense matrix stays as it is. A file never holds an arrangement.
    """
    device = weight.device.type
    if weight.format == "dense" or device not in ("cpu", "cuda"):
        return weight
    backend = backends.choose("spmm", device).backend
    if backend == "cpp":
        return weight if weight.format == "rows" else _in_rows(weight, weight.dtype if x is None else x)
    return weight if backend == "reference" else spmm_gpu.arrange(weight, backend)


def _in_rows(weight: SparseWeight, x: torch.dtype) -> SparseWeight:
    rows = weight if weight.format in ("bitmask", "nm") else restore(weight)
    mask, kept, pairs = rows.mask(), rows.values.flatten(), weight.dtype == x == torch.bfloat16
    with torch.inference_mode(False):  # tensors that count how often they were changed: sparse_windows.py asks
        parts, geometry = sparse_rows.arrange(mask, kept, pairs)
    return SparseWeight(weight.shape, "rows", parts, weight.scale, geometry)


def _activate(y: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return torch.nn.functional.gelu(y)
    return y if activation == "none" else y.relu()


@backends.implements("spmm", "reference")
def spmm_reference(
    x: Tensor,
    parts: Sequence[Tensor],
    scale: Tensor | None,
    bias: Tensor | None,
    format: str,
    out: int,
    geometry: Sequence[int],
    activation: str,
) -> Tensor:
    """``activation(x Wᵀ + b)`` in float64, with the zeros."""
    weight = _dense(parts, scale, format, out, x.shape[-1], geometry, torch.float64)
    y = torch.nn.functional.linear(x.double(), weight, None if bias is None else bias.double())
    return _activate(y, activation).to(x.dtype)


@backends.implements("spmm", "cpp")
def _spmm_cpp(
    x: Tensor,
    parts: Sequence[Tensor],
    scale: Tensor | None,
    bias: Tensor | None,
    format: str,
    out: int,
    geometry: Sequence[int],
    activation: str,
) -> Tensor:
    if x.dtype == torch.float64:
        return spmm_reference(x, parts, scale, bias, format, out, geometry, activation)
    if format == "dense":
        return _spmm_dense(x, parts[0], scale, bias, activation)
    named = dict(zip(PARTS[format], parts, strict=True))
    weight = SparseWeight((out, x.shape[-1]), format, named, scale, (geometry[0], geometry[1]))
    return _spmm_rows(x, prepare(weight), bias, activation)


def _spmm_by(
    backend: str,
    x: Tensor,
    parts: Sequence[Tensor],
    scale: Tensor | None,
    bias: Tensor | None,
    format: str,
    out: int,
    geometry: Sequence[int],
    activation: str,
) -> Tensor:
    if x.dtype == torch.float64:
        return spmm_reference(x, parts, scale, bias, format, out, geometry, activation)
    named = dict(zip(PARTS[format], parts, strict=True))
    given = SparseWeight((out, x.shape[-1]), format, named, scale, (geometry[0], geometry[1]))
    weight = spmm_gpu.arrange(given, backend)
    if weight.format == "dense":
        return _spmm_dense(x, weight.values, scale, bias, activation)
    if spmm_gpu.spread_wanted(x, weight, backend):
        dtype = x.dtype if x.dtype == weight.dtype else torch.float32
        spread = [weight.parts[name] for name in PARTS[weight.format]]
        dense = _dense(spread, scale, weight.format, out, x.shape[-1], weight.geometry, dtype)
        return _spmm_dense(x, dense, None, bias, activation)
    flat = library.flatten_tokens("spmm", "x", x)
    y = spmm_gpu.multiply(flat, weight, bias, ACTIVATIONS.index(activation), backend)
    return y.reshape(*x.shape[:-1], out)


backends.implements("spmm", "cuda")(functools.partial(_spmm_by, "cuda"))
backends.implements("spmm", "triton")(functools.partial(_spmm_by, "triton"))
backends.implements("spmm", "torch")(functools.partial(_spmm_by, "torch"))


def _spmm_rows(x: Tensor, weight: SparseWeight, bias: Tensor | None, activation: str) -> Tensor:
    flat = x if x.dim() == 2 and x.stride(1) == 1 else library.flatten_tokens("spmm", "x", x)
    tokens, scale = flat.shape[0], weight.scale
    y = flat.new_empty(tokens, weight.shape[0])
    if bias is not None and (bias.dtype != torch.float32 or not bias.is_contiguous()):
        bias = bias.to(torch.float32).contiguous()
    parts = weight.parts
    rows = weight.places.made(parts.values(), lambda: sparse_rows.view(parts, weight.shape, weight.geometry))
    backends.extension().spmm(
        y.data_ptr(),
        flat.data_ptr(),
        library.ELEMENT_TYPE[x.dtype],
        tokens,
        flat.stride(0),
        rows,
        0 if scale is None else scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        ACTIVATIONS.index(activation),
        backends.threads(),
    )
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], weight.shape[0])


def _spmm_dense(x: Tensor, values: Tensor, scale: Tensor | None, bias: Tensor | None, activation: str) -> Tensor:
    # torch multiplies bfloat16 slower than float32 where the processor cannot.
    native = x.dtype == values.dtype and (
        x.is_cuda or (x.dtype == torch.bfloat16 and backends.instructions() == "avx512bf16")
    )
    dtype = x.dtype if native else torch.float32
    shape = (values.shape[0], values.shape[1])
    weight = to_dense("dense", {"values": values}, scale, shape, (1, 1), dtype)
    with library.exact_products():
        y = torch.nn.functional.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype))
    return _activate(y, activation).to(x.dtype)


def _dense(
    parts: Sequence[Tensor],
    scale: Tensor | None,
    format: str,
    out: int,
    columns: int,
    geometry: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    named = dict(zip(PARTS[format], parts, strict=True))
    if format == "tiles" and _spread_by_triton(parts[0], dtype):
        from pyprune.triton_kernels.spmm import spread_tiles  # imports triton, only where it is used

        dense: Tensor = spread_tiles(parts[0].new_empty(out, columns, dtype=dtype), named, scale)
        return dense
    return to_dense(format, named, scale, (out, columns), (geometry[0], geometry[1]), dtype)


def _spread_by_triton(values: Tensor, dtype: torch.dtype) -> bool:
    return values.is_cuda and dtype != torch.float64 and backends.unavailable("triton") is None


def _fake(
    x: Tensor, parts: Any, scale: Any, bias: Any, format: str, out: int, geometry: Any, activation: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out))


_spmm = library.register(
    "spmm(Tensor x, Tensor[] parts, Tensor? scale, Tensor? bias, str format, SymInt out, int[] geometry, "
    "str activation) -> Tensor",
    fake=_fake,
)


# The matrix with its zeros, for the gradient: an op, so that torch.compile need not look into the arrangement.
library._LIBRARY.define(
    "spmm_dense(Tensor[] parts, Tensor? scale, str format, SymInt out, SymInt columns, int[] geometry, "
    "ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library._LIBRARY.impl("spmm_dense", lambda *given: _dense(*given).clone(), "CompositeExplicitAutograd")
torch.library.register_fake(
    "pyprune::spmm_dense",
    lambda parts, scale, format, out, columns, geometry, dtype: parts[0].new_empty((out, columns), dtype=dtype),
    lib=library._LIBRARY,
)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, parts, scale, bias, ctx.format, ctx.out, ctx.geometry, _ = inputs
    ctx.columns, ctx.dtype = x.shape[-1], x.dtype
    ctx.has_scale, ctx.bias_dtype = scale is not None, None if bias is None else bias.dtype
    ctx.save_for_backward(*parts, *([scale] if ctx.has_scale else []))


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    scale = saved.pop() if ctx.has_scale else None
    to_x = None
    if ctx.needs_input_grad[0]:
        dense = torch.ops.pyprune.spmm_dense.default
        to_x = gradient @ dense(saved, scale, ctx.format, ctx.out, ctx.columns, ctx.geometry, ctx.dtype)
    to_bias = gradient.reshape(-1, ctx.out).sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[3] else None
    return to_x, [None] * len(saved), None, to_bias, None, None, None, None


torch.library.register_autograd("pyprune::spmm", _gradient, setup_context=_remember, lib=library._LIBRARY)
