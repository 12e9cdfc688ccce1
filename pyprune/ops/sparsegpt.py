# SPDX-License-Identifier: Apache-2.0
"""SparseGPT's sweep: columns pruned left to right, the error of each pushed onto the columns after it."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError, NumericsError
from pyprune.ops import library
from pyprune.ops.nm import nm_reference
from pyprune.ops.select import _select, select_reference


def sparsegpt(
    weight: Tensor,  # [rows, k]
    factor: Tensor,  # [k, k], upper triangular
    *,
    prune: Tensor | None = None,  # int64 [blocks]
    per_row: bool = False,
    keep: int = 0,
    of: int = 0,
    mask: Tensor | None = None,  # [rows, k] bool
    block: int = 128,
) -> tuple[Tensor, Tensor]:  # weight [rows, k], mask [rows, k] bool
    """Prune columns in order, compensating each removal in the columns to its right (Frantar & Alistarh 2023).

    With ``H = R Rᵀ`` the loss of a change ``δ`` of a row is ``‖δR‖²``; going from left to right, a kept weight moves
    so that its term of the sum vanishes. This is the published sweep, where removing ``w_j`` adds
    ``−(w_j / U_jj) U[j, j:]`` with ``U = R⁻¹``, the Cholesky factor of ``H⁻¹``; but nothing is inverted. Which weights
    go is decided block by block from ``(w_j R_jj)²`` (exact counts), group by group for N:M, or beforehand by ``mask``.

    Parameters
    ----------
    weight : Tensor, shape (rows, k)
        Where to start. float64 is swept in float64, anything else in float32.
    factor : Tensor, shape (k, k)
        Upper triangular ``R`` of the damped gram: ``pyprune.ops.cholesky(gram, ridge=…, reverse=True).factor``.
    prune : Tensor of int64, shape (blocks,), optional
        Number of weights to remove from each block of ``block`` columns: of the whole block, or of each row with
        ``per_row=True``.
    keep, of : int
        N:M instead: keep ``keep`` of every ``of`` columns; ``block`` must then be a multiple of ``of``.
    mask : Tensor of bool, shape (rows, k), optional
        A given mask instead.
    block : int
        Columns whose mask is chosen at once, and whose errors are pushed on together.

    Returns
    -------
    weight : Tensor, shape (rows, k), float32 or float64
        Exactly zero where pruned.
    mask : Tensor of bool, shape (rows, k)
        True = kept.

    Raises
    ------
    InputError
        Shapes or counts do not fit, or not exactly one of ``prune``, ``of``, ``mask`` is given.
    NumericsError
        Inputs are not finite, or the factor has a diagonal entry that is not positive.
    """
    counts = _check(weight, factor, prune, per_row, keep, of, mask, block)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    swept, kept = _sparsegpt(
        weight.to(dtype).contiguous(), factor.to(dtype).contiguous(), mask, counts, per_row, keep, of, block
    )
    return swept, kept


def _check(
    weight: Tensor,
    factor: Tensor,
    prune: Tensor | None,
    per_row: bool,
    keep: int,
    of: int,
    mask: Tensor | None,
    block: int,
) -> Tensor:
    library.check_float("sparsegpt", weight=weight, factor=factor)
    if weight.dim() != 2 or tuple(factor.shape) != (weight.shape[1], weight.shape[1]):
        raise InputError(
            "sparsegpt: shapes do not fit",
            asked="weight [rows, k] and factor [k, k]",
            seen=f"weight {list(weight.shape)}, factor {list(factor.shape)}",
        )
    rows, features = weight.shape
    if (prune is not None) + (of > 0) + (mask is not None) != 1:
        raise InputError("sparsegpt: give exactly one of prune, of (with keep), mask")
    if block < 1 or (of and (block % of or features % of or not 0 <= keep <= of)):
        raise InputError("sparsegpt: the groups or blocks do not fit", seen=f"{keep=}, {of=}, {block=}, {features=}")
    if mask is not None:
        library.check_shape("sparsegpt", "mask", mask, (rows, features))
        if mask.dtype != torch.bool or not mask.is_contiguous():
            raise InputError("sparsegpt: mask must be contiguous bool (True = keep)")
    blocks = -(-features // block)
    counts = torch.zeros(blocks, dtype=torch.int64, device=weight.device) if prune is None else prune
    library.check_shape("sparsegpt", "prune", counts, (blocks,))
    widths = torch.tensor([min(block, features - start) for start in range(0, features, block)], dtype=torch.int64)
    most = widths if per_row else widths * rows
    if blocks and bool(((counts.cpu() < 0) | (counts.cpu() > most)).any()):
        raise InputError("sparsegpt: prune asks for more weights than a block has", seen=str(counts.tolist()))
    library.check_same_device("sparsegpt", weight, factor, mask, counts)
    library.reject_autograd("sparsegpt", weight, factor)
    if not (library.all_finite(weight) and library.all_finite(factor) and bool((factor.diagonal() > 0).all())):
        raise NumericsError("sparsegpt: weight or factor holds NaN, inf, or a diagonal that is not positive")
    return counts.to(torch.int64).contiguous()


@backends.implements("sparsegpt", "reference")
def sparsegpt_reference(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    prune: Tensor,
    per_row: bool,
    keep: int,
    of: int,
    block: int,
) -> tuple[Tensor, Tensor]:
    """The published loop over columns with ``U = R⁻¹``, in float64, without lazy updates."""
    dtype, weight = weight.dtype, weight.to(torch.float64, copy=True)
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.clone()
    identity = torch.eye(len(factor), dtype=torch.float64, device=factor.device)
    factor = torch.linalg.solve_triangular(factor.double(), identity, upper=True)
    diagonal = factor.diagonal()
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        if mask is None and not of:
            scores = (weight[:, start:stop] / diagonal[start:stop]) ** 2
            gone = int(prune[start // block])
            total = scores.shape[1] if per_row else scores.numel()
            kept[:, start:stop] = select_reference(scores, total - gone, per_row)
        for column in range(start, stop):
            if of and column % of == 0:
                group = slice(column, column + of)
                kept[:, group] = nm_reference((weight[:, group] / diagonal[group]) ** 2, keep, of)
            error = torch.where(kept[:, column], 0.0, weight[:, column] / diagonal[column])
            weight[:, column:] -= torch.outer(error, factor[column, column:])
    return torch.where(kept, weight, 0.0).to(dtype), kept


@backends.implements("sparsegpt", "cpp")
def _sparsegpt_cpp(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    prune: Tensor,
    per_row: bool,
    keep: int,
    of: int,
    block: int,
) -> tuple[Tensor, Tensor]:
    rows, features = weight.shape
    swept = library.empty(rows, features, dtype=weight.dtype).copy_(weight)
    kept = torch.ones(rows, features, dtype=torch.bool) if mask is None else mask.clone()
    backends.extension().sparsegpt(
        swept.data_ptr(),
        library.ELEMENT_TYPE[weight.dtype],
        kept.data_ptr(),
        factor.data_ptr(),
        prune.data_ptr(),
        rows,
        features,
        block,
        mask is not None,
        per_row,
        keep,
        of,
        backends.threads(),
    )
    return swept, kept


@backends.implements("sparsegpt", "triton")
def _sparsegpt_triton(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    prune: Tensor,
    per_row: bool,
    keep: int,
    of: int,
    block: int,
) -> tuple[Tensor, Tensor]:
    from pyprune.triton_kernels.sparsegpt import sweep  # imports triton, only where it is used

    swept = weight.T.contiguous()
    kept = torch.ones_like(swept, dtype=torch.bool) if mask is None else mask.T.contiguous()
    counts = prune.tolist() if mask is None and not of else None
    with library.exact_products():
        sweep(swept, kept, factor, counts, per_row=per_row, keep=keep, of=of, block=block, select=_select)
    return swept.T.contiguous(), kept.T.contiguous()


_sparsegpt = library.register(
    "sparsegpt(Tensor weight, Tensor factor, Tensor? mask, Tensor prune, bool per_row, int keep, int of, int block)"
    " -> (Tensor, Tensor)",
    fake=lambda weight, factor, mask, prune, per_row, keep, of, block: (
        torch.empty_like(weight),
        torch.empty_like(weight, dtype=torch.bool),
    ),
)
