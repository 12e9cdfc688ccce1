# SPDX-License-Identifier: Apache-2.0
"""Exact-count selection of the largest scores, per row or over the whole matrix."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError, NumericsError
from pyprune.ops import library


def select(
    scores: Tensor,  # [rows, cols]
    count: int,
    scope: Literal["row", "layer"] = "row",
) -> Tensor:  # [rows, cols] bool
    """Mask of the ``count`` largest scores (of each row, or of the matrix).

    Exactly ``count`` entries are ``True``; among equal scores the earlier one is kept.

    Parameters
    ----------
    scores : Tensor, shape (rows, cols)
        Any floating dtype, no NaN (infinities order as usual).
    count : int
        Entries kept per row (``scope="row"``) or in all (``scope="layer"``).
    scope : {"row", "layer"}

    Raises
    ------
    InputError
        ``count`` is negative or larger than what there is to choose from.
    NumericsError
        A score is NaN.

    Examples
    --------
    >>> select(torch.tensor([[3.0, 1.0, 3.0, 3.0]]), 2)
    tensor([[ True, False,  True, False]])
    """
    check_scores("select", scores)
    if scope not in ("row", "layer"):
        raise InputError(f"select: unknown scope {scope!r}", hint='"row" or "layer"')
    candidates = scores.shape[1] if scope == "row" else scores.numel()
    if not 0 <= count <= candidates:
        raise InputError("select: count is out of range", asked=str(count), seen=f"{candidates} candidates")
    wide = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    mask: Tensor = _select(wide.contiguous(), count, scope == "row")
    return mask


def check_scores(op: str, scores: Tensor) -> None:
    """Raise for scores that are not a matrix of comparable numbers."""
    library.check_float(op, scores=scores)
    if scores.dim() != 2:
        raise InputError(f"{op}: scores must be a matrix", seen=str(list(scores.shape)))
    library.reject_autograd(op, scores)
    if scores.numel() and bool(torch.isnan(scores.aminmax().min)):  # a NaN wins there
        raise NumericsError(
            f"{op}: scores contain NaN", hint="check the weights and the calibration statistics for NaN or inf"
        )


@backends.implements("select", "torch")  # choices are exact in any arithmetic
@backends.implements("select", "reference")
def select_reference(scores: Tensor, count: int, per_row: bool) -> Tensor:
    """Stable descending sort, then the first ``count``."""
    flat = scores if per_row else scores.reshape(1, -1)
    order = torch.argsort(flat, dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).reshape(scores.shape)


@backends.implements("select", "cpp")
def _select_cpp(scores: Tensor, count: int, per_row: bool) -> Tensor:
    mask = torch.empty(scores.shape, dtype=torch.bool)
    rows, cols = scores.shape if per_row else (1, scores.numel())
    backends.extension().select(
        mask.data_ptr(),
        scores.data_ptr(),
        library.ELEMENT_TYPE[scores.dtype],
        rows,
        cols,
        count,
        backends.threads(),
    )
    return mask


@backends.implements("select", "triton")
def _select_triton(scores: Tensor, count: int, per_row: bool) -> Tensor:
    from pyprune.triton_kernels.select import keep_largest  # imports triton, only where it is used

    mask = torch.empty_like(scores, dtype=torch.bool)
    flat = scores.shape if per_row else (1, scores.numel())
    keep_largest(mask.view(flat), scores.view(flat), count)
    return mask


_select = library.register(
    "select(Tensor scores, int count, bool per_row) -> Tensor",
    fake=lambda scores, count, per_row: torch.empty_like(scores, dtype=torch.bool),
)
