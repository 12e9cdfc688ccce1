# SPDX-License-Identifier: Apache-2.0
"""Row-wise masked least squares with a ridge centred on an anchor."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError, NumericsError
from pyprune.ops import library
from pyprune.ops.cholesky import cholesky
from pyprune.ops.masked_cg import masked_cg
from pyprune.ops.masked_systems import finish_in_double, solve_by_cuda
from pyprune.ops.matmul import matmul
from pyprune.ops.rescale import rescale

# Above this condition number the complement's detour through the full inverse could cost visible digits.
_COMPLEMENT_CONDITION = 1e6

# Conjugate gradients are taken where they are estimated at less than this part of the direct cost (multiply-adds; the
# small systems of the direct way run a little slower than one large product).
_ITERATION_GAIN = 0.8
_PRECONDITION_RIDGE = 1e-3  # relative to a unit diagonal
_SWEEPS = 5

# Refinement ends with a correction worth no more than this part of a row's energy; it is still added, so that what is
# left is smaller by another factor of 1e4 or more. By whether the result is wanted in float64.
_TOLERANCE = {False: 1e-10, True: 1e-14}


def masked_lstsq(
    gram: Tensor,  # [k, k]
    rhs: Tensor,  # [rows, k]
    mask: Tensor,  # [rows, k] bool, True = keep
    *,
    anchor: Tensor | None = None,  # [rows, k]
    damp: float = 0.0,
) -> Tensor:  # [rows, k]
    """Solve ``min_w  w G wᵀ − 2 w cᵀ + λ‖w − a‖²`` for each row, over ``w`` with zeros where the mask is False.

    On the support ``S`` of a row this is ``(G_SS + λI) w_S = c_S + λ a_S``; everything else is exactly zero.

    Parameters
    ----------
    gram : Tensor, shape (k, k)
        Symmetric positive semi-definite, shared by all rows.
    rhs : Tensor, shape (rows, k)
        ``c``, the cross moment of each row.
    mask : Tensor of bool, shape (rows, k)
        ``True`` = the weight may be non-zero.
    anchor : Tensor, shape (rows, k), optional
        ``a``, the point the ridge pulls towards (the dense weight); zero without it.
    damp : float
        Ridge relative to the mean diagonal: ``λ = damp · mean(diag gram)``.

    Returns
    -------
    Tensor, shape (rows, k)
        In the dtype of ``rhs``, as exact as it can hold whatever the input: see the notes.

    Raises
    ------
    InputError
        Shapes, dtypes or ``damp`` do not fit.
    NumericsError
        An input is not finite, or a restricted system is singular (raise ``damp``).

    Notes
    -----
    By Cholesky on the support, or through the inverse of the whole system on the complement
    (``w = w̄ − A[:,P] A_PP⁻¹ w̄_P`` with ``A = (G + λI)⁻¹``, ``w̄`` the dense solution), whichever is smaller; by
    conjugate gradients, all rows in one product, where that costs less (above some 5,000 columns at 50 %). Factors are
    float32 and residuals float64, refined until a correction is worth less than 1e-10 of the row's energy (1e-14 for a
    float64 ``rhs``); rows where that fails, by their condition, are solved in float64 throughout. The same on a GPU,
    without TF32; in Triton there is no complement, and conjugate gradients pay from some hundred columns on.

    Examples
    --------
    >>> gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> masked_lstsq(gram, torch.tensor([[3.0, 3.0]]), torch.tensor([[True, False]]))
    tensor([[1.5000, 0.0000]])
    """
    _check(gram, rhs, mask, anchor, damp)
    ridge = damp * float(gram.diagonal().double().mean()) if gram.numel() else 0.0
    system = gram.double() + ridge * torch.eye(gram.shape[0], dtype=torch.float64, device=gram.device)
    target = rhs.double()
    if anchor is not None:
        target = target + ridge * anchor.double()
    solution, status = solve_rows(
        system.contiguous(), target.contiguous(), mask.contiguous(), _TOLERANCE[rhs.dtype == torch.float64]
    )
    failed = int((status != 0).sum())
    if failed:
        row = int(torch.nonzero(status)[0])
        raise NumericsError(
            f"masked_lstsq: the restricted system of row {row} is singular ({failed} of {len(status)} rows)",
            asked=f"damp={damp:g} on a gram [{gram.shape[0]}, {gram.shape[0]}], support of {int(mask[row].sum())}",
            seen=f"Cholesky stopped at pivot {int(status[row]) - 1} of the support",
            hint="a larger damp (for example 1e-4), or more calibration tokens than input features",
        )
    return torch.as_tensor(solution).to(rhs.dtype)


def _check(gram: Tensor, rhs: Tensor, mask: Tensor, anchor: Tensor | None, damp: float) -> None:
    library.check_float("masked_lstsq", gram=gram, rhs=rhs)
    if gram.dim() != 2 or rhs.dim() != 2 or gram.shape[0] != gram.shape[1] or rhs.shape[1] != gram.shape[0]:
        raise InputError(
            "masked_lstsq: shapes do not fit",
            asked="gram [k, k] and rhs [rows, k]",
            seen=f"gram {list(gram.shape)}, rhs {list(rhs.shape)}",
        )
    library.check_shape("masked_lstsq", "mask", mask, tuple(rhs.shape))
    if mask.dtype != torch.bool:
        raise InputError("masked_lstsq: mask must be bool (True = keep)", seen=str(mask.dtype))
    if not (math.isfinite(damp) and damp >= 0):
        raise InputError("masked_lstsq: damp must be finite and not negative", seen=str(damp))
    if anchor is not None:
        library.check_float("masked_lstsq", anchor=anchor)
        library.check_shape("masked_lstsq", "anchor", anchor, tuple(rhs.shape))
    library.check_same_device("masked_lstsq", gram, rhs, mask, anchor)
    library.reject_autograd("masked_lstsq", gram, rhs, anchor)
    for name, tensor in (("gram", gram), ("rhs", rhs), ("anchor", anchor)):
        if tensor is not None and not library.all_finite(tensor):
            raise NumericsError(f"masked_lstsq: {name} holds NaN or inf", hint="check the calibration statistics")


@backends.implements("masked_lstsq", "reference")
def masked_lstsq_reference(
    system: Tensor, target: Tensor, mask: Tensor, tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Gather the support of each row and solve; ``status`` is 1 + the failing pivot, or 0."""
    solution = torch.zeros_like(target)
    status = torch.zeros(len(target), dtype=torch.int64, device=target.device)
    for row, keep in enumerate(mask):
        support = torch.nonzero(keep)[:, 0]
        factor, info = torch.linalg.cholesky_ex(system[support][:, support])
        status[row] = info
        if info == 0 and len(support):
            solution[row, support] = torch.cholesky_solve(target[row, support, None], factor)[:, 0]
    return solution, status


@backends.implements("masked_lstsq", "cpp")
def _masked_lstsq_cpp(system: Tensor, target: Tensor, mask: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    return _solve(system, target, mask, tolerance, _by_cpp)


@backends.implements("masked_lstsq", "cuda")
def _masked_lstsq_cuda(system: Tensor, target: Tensor, mask: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    return _solve(system, target, mask, tolerance, solve_by_cuda)


def _solve(
    system: Tensor, target: Tensor, mask: Tensor, tolerance: float, by_cholesky: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Scaled, by a factor for each row or by iteration, whichever is estimated to cost less."""
    scaled, rhs, scale = _unit_diagonal(system, target)
    kept = mask.sum(dim=1)
    if not _iteration_pays(kept, len(system)):
        solution, status = by_cholesky(scaled, rhs, mask, kept, _inverse(scaled, kept), tolerance)
        return solution.div_(scale), status
    solution, solved = _by_iteration(scaled, rhs, mask, tolerance)
    status = torch.zeros_like(kept)
    if not bool(solved.all()):
        rest = ~solved
        solution[rest], status[rest] = by_cholesky(
            scaled, rhs[rest], mask[rest], kept[rest], _inverse(scaled, kept[rest]), tolerance
        )
    return solution.div_(scale), status


@backends.implements("masked_lstsq", "triton")
def _masked_lstsq_triton(system: Tensor, target: Tensor, mask: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    # Imports triton, only where it is used.
    from pyprune.triton_kernels.masked_lstsq import MOST, iteration_pays, solve_supports

    scaled, rhs, scale = _unit_diagonal(system, target)
    kept = mask.sum(dim=1)
    solution, solved = torch.zeros_like(rhs), kept == 0
    status = torch.zeros_like(kept)
    with library.exact_products():
        for part in ((kept > 0) & (kept <= MOST), kept > MOST):
            rows = torch.nonzero(part)[:, 0]
            if len(rows) == 0:
                continue
            if iteration_pays(kept[rows], len(system)):
                found = _by_iteration(scaled, rhs[rows], mask[rows], tolerance)
            else:
                found = solve_supports(scaled, rhs[rows], mask[rows], tolerance, int(kept[rows].max()))
            solution[rows], solved[rows] = found
        finish_in_double(scaled, rhs, mask, kept, solved, solution, status)
    return solution.div_(scale), status


def _unit_diagonal(system: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same systems in units that make their diagonal one, and these units ``[k]``.

    What float32 loses then does not depend on the scales of the features.
    """
    scale = system.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    return rescale(system, 1.0 / scale), target / scale, scale


def _by_cpp(
    system: Tensor, rhs: Tensor, mask: Tensor, kept: Tensor, inverse: Tensor | None, tolerance: float
) -> tuple[Tensor, Tensor]:
    """A factor for each row; solutions ``[rows, k]`` and status ``[rows]``."""
    rows, features = rhs.shape
    solution = library.empty(rows, features, dtype=torch.float64)
    status = torch.empty(rows, dtype=torch.int64)
    backends.extension().masked_lstsq(
        solution.data_ptr(),
        status.data_ptr(),
        system.data_ptr(),
        rhs.data_ptr(),
        mask.data_ptr(),
        0 if inverse is None else inverse.data_ptr(),
        tolerance,
        rows,
        features,
        backends.threads(),
    )
    return solution, status


def _iteration_pays(kept: Tensor, features: int) -> bool:
    """Whether conjugate gradients, about 200 products with the system for each row, cost less than factors do."""
    smaller = torch.minimum(kept, features - kept).double()
    direct = float((smaller**3).sum()) / 3 + float(features) ** 3
    return len(kept) * 200.0 * features**2 + features**3 < _ITERATION_GAIN * direct


def _by_iteration(system: Tensor, rhs: Tensor, mask: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Conjugate gradients in float32 inside float64 refinement; which rows got there, bool ``[rows]``."""
    found = cholesky(system, ridge=_PRECONDITION_RIDGE, inverse=True, dtype=torch.float32)
    solution = torch.zeros_like(rhs)
    solved = torch.zeros(len(rhs), dtype=torch.bool, device=rhs.device)
    if found.failed >= 0 or found.inverse is None:
        return solution, solved
    single = system.float()
    start = torch.where(mask, matmul(rhs.float(), found.inverse), 0.0)  # the dense fit, cut to the support
    previous = rhs.new_full((len(rhs),), torch.inf)
    for sweep in range(_SWEEPS):
        residual = rhs if sweep == 0 else matmul(solution, system, rhs.clone(), scale=-1.0)
        open_residual = torch.where(mask, residual, 0.0).float()
        step, _ = masked_cg(single, open_residual, mask, start, steps=40, tolerance=1e-6, precondition=found.inverse)
        solution += step
        start = torch.zeros_like(start)
        gain = (step * open_residual).sum(dim=1, dtype=torch.float64)
        energy = (solution * rhs).sum(dim=1)
        solved = (gain <= tolerance * energy) & (sweep > 0) | (energy == 0)
        if bool((solved | ~(gain < 0.5 * previous)).all()):
            break
        previous = gain
    return solution, solved


def _inverse(system: Tensor, count: Tensor) -> Tensor | None:
    # The shared inverse costs about k³; it pays when the rows save more than that in Cholesky work.
    features = system.shape[0]
    kept = count.double()
    saved = (kept**3 - (features - kept) ** 3).clamp(min=0).sum() / 3
    if float(saved) <= float(features) ** 3:
        return None
    found = cholesky(system, inverse=True)
    if found.failed >= 0:
        return None
    pivots = found.factor.diagonal() ** 2
    return found.inverse if float(pivots.max()) <= _COMPLEMENT_CONDITION * float(pivots.min()) else None


solve_rows = library.register(
    "masked_lstsq(Tensor system, Tensor target, Tensor mask, float tolerance) -> (Tensor, Tensor)",
    fake=lambda system, target, mask, tolerance: (
        torch.empty_like(target),
        target.new_empty(target.shape[0], dtype=torch.int64),
    ),
)
