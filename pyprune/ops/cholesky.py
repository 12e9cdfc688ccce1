# SPDX-License-Identifier: Apache-2.0
"""Cholesky factor and inverse of one symmetric matrix."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library


class Cholesky(NamedTuple):
    """Result of :func:`cholesky`.

    Attributes
    ----------
    factor : Tensor, shape (k, k)
        Upper triangular.
    inverse : Tensor, shape (k, k), or None
        Symmetric, where it was asked for.
    failed : int
        -1, or the pivot that was not positive to working precision; the tensors are then undefined.
    """

    factor: Tensor
    inverse: Tensor | None
    failed: int


def cholesky(
    matrix: Tensor,  # [k, k]
    *,
    ridge: float = 0.0,
    inverse: bool = False,
    reverse: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Cholesky:
    """Factor ``matrix + ridge·I = UᵀU``, or ``= R Rᵀ`` with ``reverse=True``; ``U`` and ``R`` are upper triangular.

    Parameters
    ----------
    matrix : Tensor, shape (k, k)
        Symmetric; only its upper triangle is read. Not changed.
    ridge : float
        Added to the diagonal of a copy.
    inverse : bool
        Also ``(matrix + ridge·I)⁻¹``.
    reverse : bool
        The factor with rows and columns taken from the last to the first, which SparseGPT's order needs.
    dtype : torch.dtype
        float64, or float32 for less work; the matrix is read in float64 either way.

    Raises
    ------
    InputError
        Shape, dtype or ridge do not fit. A matrix that is not positive definite is no error: see ``failed``.

    Examples
    --------
    >>> cholesky(torch.tensor([[4.0, 2.0], [2.0, 2.0]])).factor
    tensor([[2., 1.],
            [0., 1.]], dtype=torch.float64)
    """
    library.check_float("cholesky", matrix=matrix)
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError("cholesky: the matrix must be square", seen=str(list(matrix.shape)))
    if dtype not in (torch.float32, torch.float64):
        raise InputError("cholesky: dtype must be float32 or float64", seen=str(dtype))
    if not math.isfinite(ridge):
        raise InputError("cholesky: ridge must be finite", seen=str(ridge))
    library.reject_autograd("cholesky", matrix)
    single = dtype == torch.float32
    factor, inverted, failed = _cholesky(matrix.double().contiguous(), ridge, inverse, reverse, single)
    return Cholesky(factor, inverted if inverse else None, int(failed))


@backends.implements("cholesky", "reference")
def cholesky_reference(
    matrix: Tensor, ridge: float, inverse: bool, reverse: bool, single: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """By torch.linalg, in float64."""
    damped = matrix.triu() + matrix.triu(1).T
    damped.diagonal().add_(ridge)
    dtype = torch.float32 if single else torch.float64
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1) if reverse else damped)
    factor = lower.flip(0, 1) if reverse else lower.T
    inverted = matrix.new_empty(0)
    if inverse:
        inverted = torch.cholesky_inverse(lower)
        inverted = (inverted + inverted.T) / 2
        inverted = inverted.flip(0, 1) if reverse else inverted
    return factor.to(dtype).contiguous(), inverted.to(dtype).contiguous(), _failed(info, len(matrix), reverse)


@backends.implements("cholesky", "torch")
def _cholesky_torch(
    matrix: Tensor, ridge: float, inverse: bool, reverse: bool, single: bool
) -> tuple[Tensor, Tensor, Tensor]:
    damped = matrix.clone()
    damped.diagonal().add_(ridge)
    damped = damped.to(torch.float32 if single else torch.float64)
    # Turned about, the upper triangle is the lower one, and RRᵀ is LLᵀ.
    triangle, info = torch.linalg.cholesky_ex(damped.flip(0, 1) if reverse else damped, upper=not reverse)
    inverted = damped.new_empty(0)
    if inverse:
        # By two triangular solves: torch.cholesky_inverse looks at its result on the host and raises.
        with library.exact_products():
            unit = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
            inverted = torch.cholesky_solve(unit, triangle, upper=not reverse)
        inverted = (inverted + inverted.T) / 2
    if len(matrix):  # not every library says that it came upon NaN
        bad = ~(triangle.diagonal() > 0)
        info = torch.where((info == 0) & bad.any(), bad.int().argmax() + 1, info)
    if reverse:
        triangle, inverted = triangle.flip(0, 1), inverted.flip(0, 1) if inverse else inverted
    return triangle.contiguous(), inverted, _failed(info, len(matrix), reverse)


def _failed(info: Tensor, size: int, reverse: bool) -> Tensor:
    """LAPACK's report, 1 + the bad pivot or 0, in our terms."""
    return torch.where(info == 0, -1, size - info if reverse else info - 1).long()


@backends.implements("cholesky", "cpp")
def _cholesky_cpp(
    matrix: Tensor, ridge: float, inverse: bool, reverse: bool, single: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float32 if single else torch.float64
    if inverse and reverse:  # no caller wants both at once; the inverse is the same whichever way it is factored
        factor, _, failed = _cholesky_cpp(matrix, ridge, False, True, single)
        return factor, _cholesky_cpp(matrix, ridge, True, False, single)[1], failed
    factor = library.empty(*matrix.shape, dtype=dtype)
    inverted = library.empty(*(matrix.shape if inverse else (0,)), dtype=dtype)
    failed = backends.extension().cholesky(
        factor.data_ptr(),
        inverted.data_ptr() if inverse else 0,
        matrix.data_ptr(),
        library.ELEMENT_TYPE[dtype],
        ridge,
        reverse,
        len(matrix),
        backends.threads(),
    )
    return factor, inverted, torch.tensor(failed)


def _fake(matrix: Tensor, ridge: float, inverse: bool, reverse: bool, single: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float32 if single else torch.float64
    inverted = matrix.new_empty(matrix.shape if inverse else (0,), dtype=dtype)
    return matrix.new_empty(matrix.shape, dtype=dtype), inverted, matrix.new_empty((), dtype=torch.int64)


_cholesky = library.register(
    "cholesky(Tensor matrix, float ridge, bool inverse, bool reverse, bool single) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
)
