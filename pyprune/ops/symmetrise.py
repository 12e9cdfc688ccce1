# SPDX-License-Identifier: Apache-2.0
"""A matrix that should be symmetric, made so and looked over in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library


class Symmetrised(NamedTuple):
    """Result of :func:`symmetrise`.

    Attributes
    ----------
    matrix : Tensor, shape (k, k), float64
        Undefined where an entry of the input is not finite.
    asymmetry, largest : float
        Largest ``|a_ij − a_ji|`` and largest ``|a_ij|`` of the finite entries.
    broken : int
        Entries that are NaN or infinite.
    """

    matrix: Tensor
    asymmetry: float
    largest: float
    broken: int


def symmetrise(
    matrix: Tensor,  # [k, k]
) -> Symmetrised:
    """``(A + Aᵀ) / 2`` in float64, and how far ``A`` was from it.

    Raises
    ------
    InputError
        Not a square floating-point matrix.

    Examples
    --------
    >>> found = symmetrise(torch.tensor([[1.0, 2.0], [2.5, 1.0]]))
    >>> found.asymmetry, found.broken
    (0.5, 0)
    """
    library.check_float("symmetrise", matrix=matrix)
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError("symmetrise: the matrix must be square", seen=str(list(matrix.shape)))
    out, report = _symmetrise(matrix.detach().contiguous())
    asymmetry, largest, broken = report.tolist()
    return Symmetrised(out, asymmetry, largest, int(broken))


@backends.implements("symmetrise", "torch")
@backends.implements("symmetrise", "reference")
def symmetrise_reference(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """By torch, several passes."""
    wide = matrix.double()
    finite = torch.isfinite(wide)
    both = finite & finite.T
    differences = torch.where(both, (wide - wide.T).abs(), 0.0)
    sizes = torch.where(both, wide.abs(), 0.0)
    zero = torch.zeros((), dtype=torch.float64, device=matrix.device)
    asymmetry = differences.max() if matrix.numel() else zero
    largest = sizes.max() if matrix.numel() else zero
    return (wide + wide.T) / 2, torch.stack([asymmetry, largest, (~finite).sum().double()])


@backends.implements("symmetrise", "cpp")
def _symmetrise_cpp(matrix: Tensor) -> tuple[Tensor, Tensor]:
    out = library.empty(*matrix.shape, dtype=torch.float64)
    report = torch.zeros(3, dtype=torch.float64)
    backends.extension().symmetrise(
        out.data_ptr(),
        report.data_ptr(),
        matrix.data_ptr(),
        library.ELEMENT_TYPE[matrix.dtype],
        len(matrix),
        backends.threads(),
    )
    return out, report


_symmetrise = library.register(
    "symmetrise(Tensor matrix) -> (Tensor, Tensor)",
    fake=lambda matrix: (matrix.new_empty(matrix.shape, dtype=torch.float64), matrix.new_empty(3, dtype=torch.float64)),
)
