# SPDX-License-Identifier: Apache-2.0
"""Cross moment of targets and features: ``Σ y xᵀ`` over kept tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library
from pyprune.ops.gram import check_accumulator


def cross_gram(
    y: Tensor,  # [..., out]
    x: Tensor,  # [..., in]
    keep: Tensor | None = None,  # [...] bool
    out: Tensor | None = None,  # [out, in]
) -> Tensor:  # [out, in]
    """Sum of outer products ``Σ_t keep_t · y_t x_tᵀ``, in the layout of a weight.

    Parameters
    ----------
    y : Tensor, shape (..., out)
        Targets, the same tokens as ``x`` and the same dtype.
    x : Tensor, shape (..., in)
        Features; float32, float64, bfloat16 or float16.
    keep : Tensor of bool, shape (...), optional
        ``False`` for padding; padded rows are never read.
    out : Tensor, shape (out, in), optional
        float32 or float64, contiguous; the sum is added to it and it is returned.

    Notes
    -----
    Accuracy as in :func:`pyprune.ops.gram`: float32 products, float64 sums at least every 256 tokens.

    Raises
    ------
    InputError
        Shapes, dtypes or devices do not fit.

    Examples
    --------
    >>> cross_gram(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([[1., 2.]])
    """
    library.check_float("cross_gram", y=y, x=x)
    if y.shape[:-1] != x.shape[:-1] or y.dtype != x.dtype:
        raise InputError(
            "cross_gram: y and x must hold the same tokens in the same dtype",
            seen=f"y {list(y.shape)} {y.dtype}, x {list(x.shape)} {x.dtype}",
        )
    targets = library.flatten_tokens("cross_gram", "y", y)
    features = library.flatten_tokens("cross_gram", "x", x)
    flat_keep = library.flatten_keep("cross_gram", keep, x.shape[:-1])
    shape = (targets.shape[1], features.shape[1])
    if out is None:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        out = torch.zeros(shape, dtype=dtype, device=x.device)
    check_accumulator("cross_gram", out, shape)
    library.check_same_device("cross_gram", targets, features, flat_keep, out)
    library.reject_autograd("cross_gram", y, x)
    _cross_gram(out, targets, features, flat_keep)
    return out


@backends.implements("cross_gram", "reference")
def cross_gram_reference(out: Tensor, y: Tensor, x: Tensor, keep: Tensor | None) -> None:
    """``out += YᵀX`` over kept rows, in float64."""
    if keep is not None:
        y, x = y[keep], x[keep]
    out.add_((y.double().T @ x.double()).to(out.dtype))


@backends.implements("cross_gram", "cpp")
def _cross_gram_cpp(out: Tensor, y: Tensor, x: Tensor, keep: Tensor | None) -> None:
    total = out if out.dtype == torch.float64 else torch.zeros_like(out, dtype=torch.float64)
    backends.extension().cross_gram(
        total.data_ptr(),
        y.data_ptr(),
        x.data_ptr(),
        library.ELEMENT_TYPE[x.dtype],
        x.shape[0],
        y.shape[1],
        x.shape[1],
        y.stride(0),
        x.stride(0),
        0 if keep is None else keep.data_ptr(),
        backends.threads(),
    )
    if total is not out:
        out.add_(total.to(out.dtype))


@backends.implements("cross_gram", "triton")
def _cross_gram_triton(out: Tensor, y: Tensor, x: Tensor, keep: Tensor | None) -> None:
    if x.dtype == torch.float64:
        cross_gram_reference(out, y, x, keep)
        return
    from pyprune.triton_kernels.cross_gram import cross_gram_accumulate  # imports triton, only where it is used

    cross_gram_accumulate(out, y, x, keep)


_cross_gram = library.register(
    "cross_gram(Tensor(a!) out, Tensor y, Tensor x, Tensor? keep) -> ()",
    fake=lambda out, y, x, keep: None,
)
