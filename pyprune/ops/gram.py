# SPDX-License-Identifier: Apache-2.0
"""Gram matrix of token features: ``Σ x xᵀ`` over kept tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library


def gram(
    x: Tensor,  # [..., in]
    keep: Tensor | None = None,  # [...] bool
    out: Tensor | None = None,  # [in, in]
) -> Tensor:  # [in, in]
    """Sum of outer products of the kept tokens, ``Σ_t keep_t · x_t x_tᵀ``.

    Divide by the number of kept tokens for the ``gram`` of a :class:`pyprune.LayerProblem`.

    Parameters
    ----------
    x : Tensor, shape (..., in)
        Features, one token a row; float32, float64, bfloat16 or float16.
    keep : Tensor of bool, shape (...), optional
        ``False`` for padding. Padded rows are never read, so NaN there does no harm.
    out : Tensor, shape (in, in), optional
        float32 or float64, contiguous, symmetric; the sum is added to it and it is returned. Without it a new tensor:
        float64 for float64 input, else float32.

    Notes
    -----
    Products are taken in float32 (float64 for float64 input) and summed in float64 at least every 256 tokens,
    so that a float64 ``out`` stays accurate over millions of tokens. The result is exactly symmetric.

    Raises
    ------
    InputError
        Shapes, dtypes or devices do not fit.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]])
    >>> gram(x, keep=torch.tensor([True, True, False]))
    tensor([[10., 14.],
            [14., 20.]])
    """
    library.check_float("gram", x=x)
    flat = library.flatten_tokens("gram", "x", x)
    flat_keep = library.flatten_keep("gram", keep, x.shape[:-1])
    features = flat.shape[1]
    if out is None:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        out = torch.zeros(features, features, dtype=dtype, device=x.device)
    check_accumulator("gram", out, (features, features))
    library.check_same_device("gram", flat, flat_keep, out)
    library.reject_autograd("gram", x)
    _gram(out, flat, flat_keep)
    return out


def check_accumulator(op: str, out: Tensor, shape: tuple[int, int]) -> None:
    """Raise :class:`InputError` where ``out`` cannot take the sum."""
    library.check_shape(op, "out", out, shape)
    if out.dtype not in (torch.float32, torch.float64) or not out.is_contiguous():
        raise InputError(
            f"{op}: out must be contiguous float32 or float64",
            seen=f"{out.dtype}, strides {out.stride()}",
        )


@backends.implements("gram", "reference")
def gram_reference(out: Tensor, x: Tensor, keep: Tensor | None) -> None:
    """``out += XᵀX`` over kept rows, in float64."""
    rows = (x if keep is None else x[keep]).double()
    total = rows.T @ rows
    out.add_(((total + total.T) / 2).to(out.dtype))  # a matrix product need not be symmetric to the last bit


@backends.implements("gram", "cpp")
def _gram_cpp(out: Tensor, x: Tensor, keep: Tensor | None) -> None:
    total = out if out.dtype == torch.float64 else torch.zeros_like(out, dtype=torch.float64)
    backends.extension().gram(
        total.data_ptr(),
        x.data_ptr(),
        library.ELEMENT_TYPE[x.dtype],
        x.shape[0],
        x.shape[1],
        x.stride(0),
        0 if keep is None else keep.data_ptr(),
        backends.threads(),
    )
    if total is not out:
        out.add_(total.to(out.dtype))


@backends.implements("gram", "cuda")
def _gram_cuda(out: Tensor, x: Tensor, keep: Tensor | None) -> None:
    if x.dtype == torch.float64:  # the kernels take their products in float32
        gram_reference(out, x, keep)
        return
    total = out if out.dtype == torch.float64 else torch.zeros_like(out, dtype=torch.float64)
    with library.cuda_stream(x) as stream:
        backends.extension().gram_cuda(
            total.data_ptr(),
            x.data_ptr(),
            library.ELEMENT_TYPE[x.dtype],
            x.shape[0],
            x.shape[1],
            x.stride(0),
            0 if keep is None else keep.data_ptr(),
            stream,
        )
    if total is not out:
        out.add_(total.to(out.dtype))


@backends.implements("gram", "triton")
def _gram_triton(out: Tensor, x: Tensor, keep: Tensor | None) -> None:
    if x.dtype == torch.float64:
        gram_reference(out, x, keep)
        return
    from pyprune.triton_kernels.gram import gram_accumulate  # imports triton, only where it is used

    gram_accumulate(out, x, keep)


_gram = library.register(
    "gram(Tensor(a!) out, Tensor x, Tensor? keep) -> ()",
    fake=lambda out, x, keep: None,
)
