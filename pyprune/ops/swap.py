# SPDX-License-Identifier: Apache-2.0
"""Pairs exchanged in a mask, one kept column out and one pruned column in, while the loss of the row falls."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError, NumericsError
from pyprune.ops import library
from pyprune.ops.matmul import matmul
from pyprune.ops.rescale import rescale


def swap(
    gram: Tensor,  # [k, k]
    rhs: Tensor,  # [rows, k]
    mask: Tensor,  # [rows, k] bool, True = keep
    *,
    least: float | Tensor = 0.0,  # or [rows]
    most: int | None = None,
    of: int = 0,
    columns: Tensor | None = None,  # int64 [rows, count]
    inverse: Tensor | None = None,  # [k, k]
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:  # mask [rows, k], exchanged [rows], worth [rows, k]
    """Improve each row's support ``S`` by the best exchange of one column in it for one outside, again and again.

    A row's loss is that of its restricted fit, ``f(S) = min_w w G wᵀ − 2 w cᵀ`` over ``w`` with support ``S``. Putting
    ``q`` in the place of ``p`` is one 2 x 2 pivot of the principal tableau and changes it by
    ``(d x² − 2 t x g − a g²) / (a d + t²)``, with ``a = [G_SS⁻¹]_pp``, ``d`` the Schur complement of ``q``, ``t`` their
    coupling, ``x`` the weight of ``p`` and ``g`` the gradient at ``q``. A support where no exchange is left is "swap
    inescapable" (Hazimeh & Mazumder 2020, "Fast best subset selection").

    Parameters
    ----------
    gram : Tensor, shape (k, k)
        Symmetric positive definite (damped), shared by the rows.
    rhs : Tensor, shape (rows, k)
        ``c``, the cross moment of each row, damping included.
    mask : Tensor of bool, shape (rows, k)
        Where to start; not changed.
    least : float or Tensor, shape (rows,)
        An exchange has to gain more than this.
    most : int, optional
        Exchanges of a row.
    of : int
        With ``of > 0`` only columns of the same group of ``of`` consecutive ones are exchanged.
    columns : Tensor of int64, shape (rows, count), optional
        The columns in question, ascending in each row; the others' weights stay as they are, and ``rhs`` is what they
        leave: ``c − w G`` with their weights ``w``. The true gain of an exchange is then at least the one found.
    inverse : Tensor, shape (k, k), optional
        ``gram⁻¹``. With it rows that keep more than half cost less. Not with ``columns``.
    dtype : torch.dtype
        Arithmetic, float64 or float32; the latter for half the time on well conditioned grams: gains of a hundred
        thousandth of the row's energy may then be mistaken. The reference uses float64 always.

    Returns
    -------
    mask : Tensor of bool, shape (rows, k)
        As many kept as before in each row, and in each group.
    exchanged : Tensor of int64, shape (rows,)
        How many pairs.
    worth : Tensor, shape (rows, k), float64
        With the mask returned: what the loss would rise by without a kept column, or fall by with one more. Columns
        that are not in question have an infinite loss and no gain.

    Raises
    ------
    InputError
        Shapes, dtypes or numbers do not fit.
    NumericsError
        An input is not finite, or a row's system is not positive definite.

    Examples
    --------
    >>> mask, exchanged, _ = swap(torch.eye(2), torch.tensor([[1.0, 3.0]]), torch.tensor([[True, False]]))
    >>> mask, exchanged
    (tensor([[False,  True]]), tensor([1]))
    """
    _check(gram, rhs, mask, most, of, columns, inverse, dtype)
    rows, features = rhs.shape
    limits = torch.as_tensor(least, dtype=torch.float64, device=rhs.device).expand(rows).contiguous()
    if bool((limits < 0).any()) or bool(torch.isnan(limits).any()):
        raise InputError("swap: least must not be negative", seen=str(float(limits.min())))
    found, exchanged, worth = _swap(
        gram.double().contiguous(),
        rhs.double().contiguous(),
        mask.contiguous(),
        limits,
        features * features if most is None else most,
        of,
        None if columns is None else columns.contiguous(),
        None if inverse is None else inverse.double().contiguous(),
        dtype == torch.float32,
    )
    if bool((exchanged < 0).any()):
        row = int(torch.nonzero(exchanged < 0)[0])
        raise NumericsError(
            f"swap: the restricted system of row {row} is not positive definite",
            asked=f"a support of {int(mask[row].sum())} of {features} columns",
            hint="more damping in the gram",
        )
    return found, exchanged, worth


def _check(
    gram: Tensor,
    rhs: Tensor,
    mask: Tensor,
    most: int | None,
    of: int,
    columns: Tensor | None,
    inverse: Tensor | None,
    dtype: torch.dtype,
) -> None:
    library.check_float("swap", gram=gram, rhs=rhs)
    if gram.dim() != 2 or rhs.dim() != 2 or gram.shape[0] != gram.shape[1] or rhs.shape[1] != gram.shape[0]:
        raise InputError(
            "swap: shapes do not fit",
            asked="gram [k, k] and rhs [rows, k]",
            seen=f"gram {list(gram.shape)}, rhs {list(rhs.shape)}",
        )
    library.check_shape("swap", "mask", mask, tuple(rhs.shape))
    if mask.dtype != torch.bool:
        raise InputError("swap: mask must be bool (True = keep)", seen=str(mask.dtype))
    if dtype not in (torch.float32, torch.float64):
        raise InputError("swap: dtype must be float32 or float64", seen=str(dtype))
    if of < 0 or (of and rhs.shape[1] % of):
        raise InputError("swap: the groups do not fit", asked=f"groups of {of}", seen=f"{rhs.shape[1]} columns")
    if most is not None and most < 0:
        raise InputError("swap: most must not be negative", seen=str(most))
    if columns is not None:
        _check_columns(columns, rhs, inverse)
    if inverse is not None:
        library.check_float("swap", inverse=inverse)
        library.check_shape("swap", "inverse", inverse, tuple(gram.shape))
    library.check_same_device("swap", gram, rhs, mask, columns, inverse)
    library.reject_autograd("swap", gram, rhs, inverse)
    for name, tensor in (("gram", gram), ("rhs", rhs), ("inverse", inverse)):
        if tensor is not None and not library.all_finite(tensor):
            raise NumericsError(f"swap: {name} holds NaN or inf", hint="check the calibration statistics")


def _check_columns(columns: Tensor, rhs: Tensor, inverse: Tensor | None) -> None:
    if inverse is not None:
        raise InputError("swap: an inverse is of no use with columns")
    if columns.dtype != torch.int64 or columns.dim() != 2 or len(columns) != len(rhs):
        raise InputError("swap: columns must be int64 [rows, count]", seen=f"{columns.dtype} {list(columns.shape)}")
    if columns.numel() and (int(columns.min()) < 0 or int(columns.max()) >= rhs.shape[1]):
        raise InputError("swap: columns are out of range", seen=f"{int(columns.min())} to {int(columns.max())}")
    if bool((columns.diff(dim=1) <= 0).any()):
        raise InputError("swap: columns must rise in each row")


@backends.implements("swap", "reference")
def swap_reference(
    gram: Tensor,
    rhs: Tensor,
    mask: Tensor,
    least: Tensor,
    most: int,
    of: int,
    columns: Tensor | None,
    inverse: Tensor | None,
    single: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The tableau of every support written out, in float64; an inverse is not needed."""
    found = mask.clone()
    exchanged = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
    worth = torch.where(mask, torch.inf, 0.0).double()
    for row in range(len(rhs)):
        own = torch.arange(len(gram), device=gram.device) if columns is None else columns[row]
        system, target, keep = gram[own][:, own], rhs[row, own], mask[row, own]
        while True:
            swept = tableau(system, target[None], keep)
            if swept is None:
                exchanged[row] = -1
                break
            diagonal, border = swept.diagonal()[:-1], swept[:-1, -1]
            gains = _gains(swept[:-1, :-1], border)
            allowed = keep[:, None] & ~keep
            if of:
                allowed &= (own // of)[:, None] == own // of
            gains = torch.where(allowed, gains, -torch.inf)
            best = int(gains.argmax()) if gains.numel() else 0
            if not gains.numel() or float(gains.reshape(-1)[best]) <= float(least[row]) or exchanged[row] == most:
                worth[row, own] = border**2 / diagonal.abs()
                found[row, own] = keep
                break
            keep = keep.clone()
            keep[best // len(own)], keep[best % len(own)] = False, True
            exchanged[row] += 1
    return found, exchanged, worth


def tableau(system: Tensor, target: Tensor, keep: Tensor) -> Tensor | None:
    """``[[H, Cᵀ], [C, 0]]`` swept on the columns kept (Goodnight 1979), ``[k + borders, k + borders]``.

    ``−H_SS⁻¹`` on the support, the weights ``C_S H_SS⁻¹`` on the border there, Schur complement and gradient elsewhere.

    Parameters
    ----------
    system : Tensor, shape (k, k)
    target : Tensor, shape (borders, k)
    keep : Tensor of bool, shape (k,)

    Returns
    -------
    Tensor or None
        None where the restricted system is not positive definite.
    """
    borders, size = target.shape
    bordered = torch.zeros(size + borders, size + borders, dtype=system.dtype, device=system.device)
    bordered[:size, :size], bordered[:size, size:], bordered[size:, :size] = system, target.T, target
    kept = torch.nonzero(keep)[:, 0]
    rest = torch.nonzero(~torch.cat([keep, keep.new_zeros(borders)]))[:, 0]
    factor, info = torch.linalg.cholesky_ex(system[kept][:, kept])
    if int(info):
        return None
    outer = bordered[kept][:, rest]
    inner = torch.cholesky_solve(outer, factor)
    swept = torch.empty_like(bordered)
    swept[kept[:, None], kept] = -torch.cholesky_inverse(factor)
    swept[kept[:, None], rest], swept[rest[:, None], kept] = inner, inner.T
    swept[rest[:, None], rest] = bordered[rest][:, rest] - outer.T @ inner
    return swept


def _gains(swept: Tensor, border: Tensor) -> Tensor:
    """By how much the loss falls with row ``p`` out and column ``q`` in, ``[k, k]``."""
    a, d, x, g = -swept.diagonal()[:, None], swept.diagonal(), border[:, None], border
    return (a * g**2 + 2 * swept * x * g - d * x**2) / (a * d + swept**2)


_Result = tuple[Tensor, Tensor, Tensor]


def _again_in_double(run: Callable[..., _Result]) -> Callable[..., _Result]:
    """Rows whose system is not positive definite in float32 are done again in float64."""

    @functools.wraps(run)
    def both(
        gram: Tensor,
        rhs: Tensor,
        mask: Tensor,
        least: Tensor,
        most: int,
        of: int,
        columns: Tensor | None,
        inverse: Tensor | None,
        single: bool,
    ) -> _Result:
        found, exchanged, worth = run(gram, rhs, mask, least, most, of, columns, inverse, single)
        if single and bool((exchanged < 0).any()):
            rest = exchanged < 0
            chosen = None if columns is None else columns[rest].contiguous()
            found[rest], exchanged[rest], worth[rest] = run(
                gram, rhs[rest], mask[rest], least[rest], most, of, chosen, inverse, False
            )
        return found, exchanged, worth

    return both


@backends.implements("swap", "cpp")
@_again_in_double
def _swap_cpp(
    gram: Tensor,
    rhs: Tensor,
    mask: Tensor,
    least: Tensor,
    most: int,
    of: int,
    columns: Tensor | None,
    inverse: Tensor | None,
    single: bool,
) -> _Result:
    rows, features = rhs.shape
    dtype = torch.float32 if single else torch.float64
    system, target = _unit(gram, rhs, dtype)
    other, dense = (None, None) if inverse is None else _unit(inverse, matmul(rhs, inverse), dtype)
    found = mask.clone()
    exchanged = torch.empty(rows, dtype=torch.int64)
    worth = torch.empty(rows, features, dtype=torch.float64)
    backends.extension().swap(
        found.data_ptr(),
        exchanged.data_ptr(),
        worth.data_ptr(),
        system.data_ptr(),
        0 if other is None else other.data_ptr(),
        target.data_ptr(),
        0 if dense is None else dense.data_ptr(),
        library.ELEMENT_TYPE[dtype],
        0 if columns is None else columns.data_ptr(),
        features if columns is None else columns.shape[1],
        least.data_ptr(),
        most,
        of,
        rows,
        features,
        backends.threads(),
    )
    return found, exchanged, worth


@backends.implements("swap", "triton")
@_again_in_double
def _swap_triton(
    gram: Tensor,
    rhs: Tensor,
    mask: Tensor,
    least: Tensor,
    most: int,
    of: int,
    columns: Tensor | None,
    inverse: Tensor | None,
    single: bool,
) -> _Result:
    from pyprune.triton_kernels.swap import improve  # imports triton, only where it is used

    dtype = torch.float32 if single else torch.float64
    found, exchanged, worth = mask.clone(), rhs.new_empty(len(rhs), dtype=torch.int64), torch.empty_like(rhs)
    ways = [(torch.ones_like(exchanged, dtype=torch.bool), gram, rhs)]
    if inverse is not None:  # rows that keep more than half, in the tableau of what they do not keep
        many = 2 * mask.sum(dim=1) > mask.shape[1]
        ways = [(~many, gram, rhs), (many, inverse, matmul(rhs, inverse))]
    for complement, (own, matrix, border) in enumerate(ways):
        rows = torch.nonzero(own)[:, 0]
        system, target = _unit(matrix, border[rows], torch.float64)
        # Rows by powers of two, so that float32 holds them; losses change by their squares.
        largest = target.abs().amax(dim=1) if target.numel() else least[rows]
        scale = torch.exp2(-torch.where(largest > 0, largest, 1.0).log2().floor())
        part = found[rows], exchanged[rows], worth[rows]
        with library.exact_products():
            improve(
                *part,
                system.to(dtype),
                (target * scale[:, None]).to(dtype),
                least[rows] * scale * scale,
                None if columns is None else columns[rows],
                most=most,
                of=of,
                complement=complement > 0,
            )
        found[rows], exchanged[rows], worth[rows] = part[0], part[1], part[2] / scale[:, None] / scale[:, None]
    return found, exchanged, worth


def _unit(matrix: Tensor, border: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scaled to a unit diagonal, which is where float32 loses least; losses do not change."""
    root = matrix.diagonal().clamp(min=0).sqrt()
    root = torch.where(root > 0, root, 1.0)
    return rescale(matrix, 1.0 / root, dtype=dtype), (border / root).to(dtype).contiguous()


_swap = library.register(
    "swap(Tensor gram, Tensor rhs, Tensor mask, Tensor least, int most, int of, Tensor? columns, Tensor? inverse,"
    " bool single) -> (Tensor, Tensor, Tensor)",
    fake=lambda gram, rhs, mask, least, most, of, columns, inverse, single: (
        torch.empty_like(mask),
        rhs.new_empty(rhs.shape[0], dtype=torch.int64),
        torch.empty_like(rhs),
    ),
)
