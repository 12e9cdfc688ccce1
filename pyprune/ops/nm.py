# SPDX-License-Identifier: Apache-2.0
"""N:M selection: the largest ``keep`` of every ``of`` consecutive scores of a row."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library
from pyprune.ops.select import check_scores


def nm(
    scores: Tensor,  # [rows, cols]
    keep: int,
    of: int,
) -> Tensor:  # [rows, cols] bool
    """Mask that keeps the ``keep`` largest of every ``of`` consecutive scores along a row.

    Among equal scores the earlier one is kept; every group ends with exactly ``keep`` entries.

    Parameters
    ----------
    scores : Tensor, shape (rows, cols)
        Any floating dtype, no NaN; ``cols`` must be a multiple of ``of``.
    keep, of : int
        ``0 <= keep <= of`` and ``of >= 1``.

    Raises
    ------
    InputError
        The group size does not fit.
    NumericsError
        A score is NaN.

    Examples
    --------
    >>> nm(torch.tensor([[3.0, 1.0, 2.0, 2.0]]), keep=2, of=4)
    tensor([[ True, False,  True, False]])
    """
    check_scores("nm", scores)
    if of < 1 or not 0 <= keep <= of or scores.shape[1] % of:
        raise InputError(
            "nm: the groups do not fit",
            asked=f"keep {keep} of every {of}",
            seen=f"rows of {scores.shape[1]}",
            hint="0 <= keep <= of, and a row length that is a multiple of `of`",
        )
    wide = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    mask: Tensor = _nm(wide.contiguous(), keep, of)
    return mask


@backends.implements("nm", "torch")  # choices are exact in any arithmetic
@backends.implements("nm", "reference")
def nm_reference(scores: Tensor, keep: int, of: int) -> Tensor:
    """Rank inside each group by a stable descending sort."""
    groups = scores.reshape(-1, of)
    order = torch.argsort(groups, dim=1, descending=True, stable=True)[:, :keep]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True).reshape(scores.shape)


@backends.implements("nm", "cpp")
def _nm_cpp(scores: Tensor, keep: int, of: int) -> Tensor:
    # N:M on a row-major matrix is an exact-count selection on rows of length `of`.
    mask = torch.empty(scores.shape, dtype=torch.bool)
    backends.extension().nm(
        mask.data_ptr(),
        scores.data_ptr(),
        library.ELEMENT_TYPE[scores.dtype],
        scores.numel() // of,
        of,
        keep,
        backends.threads(),
    )
    return mask


@backends.implements("nm", "triton")
def _nm_triton(scores: Tensor, keep: int, of: int) -> Tensor:
    from pyprune.triton_kernels.nm import keep_of_groups  # imports triton, only where it is used

    mask = torch.empty_like(scores, dtype=torch.bool)
    keep_of_groups(mask, scores, keep, of)
    return mask


_nm = library.register(
    "nm(Tensor scores, int keep, int of) -> Tensor",
    fake=lambda scores, keep, of: torch.empty_like(scores, dtype=torch.bool),
)
