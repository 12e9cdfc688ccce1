# SPDX-License-Identifier: Apache-2.0
"""A symmetric matrix in other units, with a ridge."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library


def rescale(
    matrix: Tensor,  # [k, k]
    scale: Tensor,  # [k]
    *,
    ridge: float = 0.0,
    shift: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # [k, k]
    """``diag(s) (A + ridge·I) diag(s) + shift·I``, in one pass.

    Parameters
    ----------
    matrix : Tensor, shape (k, k)
        Symmetric; read in float64.
    scale : Tensor, shape (k,)
    ridge, shift : float
        Added to the diagonal before and after scaling.
    dtype : torch.dtype
        Of the result, float32 or float64; the arithmetic is float64.

    Raises
    ------
    InputError
        Shapes, dtypes or devices do not fit.

    Examples
    --------
    >>> rescale(torch.ones(2, 2), torch.tensor([1.0, 2.0]), shift=1.0)
    tensor([[2., 2.],
            [2., 5.]], dtype=torch.float64)
    """
    library.check_float("rescale", matrix=matrix, scale=scale)
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError("rescale: the matrix must be square", seen=str(list(matrix.shape)))
    library.check_shape("rescale", "scale", scale, (matrix.shape[0],))
    if dtype not in (torch.float32, torch.float64):
        raise InputError("rescale: dtype must be float32 or float64", seen=str(dtype))
    library.check_same_device("rescale", matrix, scale)
    library.reject_autograd("rescale", matrix, scale)
    single = dtype == torch.float32
    out: Tensor = _rescale(matrix.double().contiguous(), scale.double().contiguous(), ridge, shift, single)
    return out


@backends.implements("rescale", "torch")
@backends.implements("rescale", "reference")
def rescale_reference(matrix: Tensor, scale: Tensor, ridge: float, shift: float, single: bool) -> Tensor:
    """By torch, in float64."""
    damped = matrix.clone()
    damped.diagonal().add_(ridge)
    out = damped * (scale[:, None] * scale)
    out.diagonal().add_(shift)
    return out.float() if single else out


@backends.implements("rescale", "cpp")
def _rescale_cpp(matrix: Tensor, scale: Tensor, ridge: float, shift: float, single: bool) -> Tensor:
    dtype = torch.float32 if single else torch.float64
    out = library.empty(*matrix.shape, dtype=dtype)
    backends.extension().rescale(
        out.data_ptr(),
        library.ELEMENT_TYPE[dtype],
        matrix.data_ptr(),
        scale.data_ptr(),
        ridge,
        shift,
        len(matrix),
        backends.threads(),
    )
    return out


_rescale = library.register(
    "rescale(Tensor matrix, Tensor scale, float ridge, float shift, bool single) -> Tensor",
    fake=lambda matrix, scale, ridge, shift, single: torch.empty_like(
        matrix, dtype=torch.float32 if single else torch.float64
    ),
)
