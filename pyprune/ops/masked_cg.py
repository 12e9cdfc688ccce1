# SPDX-License-Identifier: Apache-2.0
"""A few conjugate gradient steps on row-wise masked least squares, all rows in one product."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library
from pyprune.ops.matmul import matmul


def masked_cg(
    system: Tensor,  # [k, k]
    target: Tensor,  # [rows, k]
    mask: Tensor,  # [rows, k] bool
    start: Tensor,  # [rows, k]
    *,
    steps: int,
    tolerance: float = 0.0,
    precondition: Tensor | None = None,  # [k, k]
    basis: Tensor | None = None,  # [rank, k]
    dense: Tensor | None = None,  # [rows, k]
) -> tuple[Tensor, Tensor]:  # [rows, k], [rows]
    """Improve ``x`` towards ``H_SS x_S = c_S`` on each row's support by conjugate gradients.

    Parameters
    ----------
    system : Tensor, shape (k, k), float32
        ``H``, symmetric positive definite. It should have a unit diagonal, which then is the preconditioner.
    target : Tensor, shape (rows, k), float32
        ``c``.
    mask : Tensor of bool, shape (rows, k)
        ``True`` on the support.
    start : Tensor, shape (rows, k), float32
        Where to start; entries outside the mask are taken as zero. Not changed.
    steps : int
        At most so many.
    tolerance : float
        A row stops when a step gained no more than this part of the row's error, or of its energy ``x·c`` without
        ``dense``.
    precondition : Tensor, shape (k, k), float32, optional
        An approximate inverse of ``H``, such as ``(H + ρI)⁻¹``: one product more a step, far fewer steps where ``H`` is
        badly conditioned.
    basis : Tensor, shape (rank, k), float32, optional
        Instead: ``B`` with ``H ≈ BᵀB + D``, ``D = diag(H − BᵀB)``, which is inverted on each row's support without a
        product; :func:`leading_part` makes one. ``D`` is kept above 1e-3 of the diagonal.
    dense : Tensor, shape (rows, k), float32, optional
        ``H⁻¹ c``, from which the error ``(d − x) H (d − x)`` is known without another product.

    Returns
    -------
    solution : Tensor, shape (rows, k), float32
    worth : Tensor, shape (rows,), float64
        What each row's last step gained, as a part of its error (or energy).

    Raises
    ------
    InputError
        Shapes, dtypes or devices do not fit.

    Notes
    -----
    float32 with float64 dot products. For a certified solution use :func:`pyprune.ops.masked_lstsq`.

    Examples
    --------
    >>> system = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    >>> mask = torch.tensor([[True, False]])
    >>> masked_cg(system, torch.tensor([[2.0, 3.0]]), mask, torch.zeros(1, 2), steps=2)[0]
    tensor([[2., 0.]])
    """
    library.check_float("masked_cg", system=system, target=target, start=start)
    if target.dim() != 2:
        raise InputError("masked_cg: target must be a matrix", seen=str(list(target.shape)))
    square = (target.shape[1], target.shape[1])
    library.check_shape("masked_cg", "system", system, square)
    library.check_shape("masked_cg", "mask", mask, tuple(target.shape))
    library.check_shape("masked_cg", "start", start, tuple(target.shape))
    if precondition is not None:
        library.check_float("masked_cg", precondition=precondition)
        library.check_shape("masked_cg", "precondition", precondition, square)
    if basis is not None:
        library.check_float("masked_cg", basis=basis)
        if basis.dim() != 2 or basis.shape[1] != square[0] or basis.shape[0] > 256 or precondition is not None:
            raise InputError(
                "masked_cg: the basis does not fit",
                asked=f"[rank, {square[0]}], rank at most 256, and no other preconditioner",
                seen=str(list(basis.shape)),
            )
    if dense is not None:
        library.check_float("masked_cg", dense=dense)
        library.check_shape("masked_cg", "dense", dense, tuple(target.shape))
    tensors = [t for t in (system, target, start, precondition, basis, dense) if t is not None]
    if {t.dtype for t in tensors} != {torch.float32} or mask.dtype != torch.bool:
        raise InputError("masked_cg: tensors must be float32, the mask bool")
    if steps < 0 or not tolerance >= 0.0:
        raise InputError("masked_cg: steps and tolerance must not be negative", seen=f"{steps}, {tolerance}")
    library.check_same_device("masked_cg", mask, *tensors)
    library.reject_autograd("masked_cg", *tensors)
    solution, worth = _masked_cg(
        system.contiguous(),
        target.contiguous(),
        mask.contiguous(),
        start.contiguous(),
        steps,
        tolerance,
        None if precondition is None else precondition.contiguous(),
        None if basis is None else basis.contiguous(),
        None if dense is None else dense.contiguous(),
    )
    return solution, worth


def leading_part(system: Tensor, rank: int) -> Tensor:
    """``B`` ``[rank, k]`` with ``BᵀB`` the leading part of ``system`` less what the rest has on average.

    By two rounds of randomised subspace iteration (Halko et al. 2011) from a fixed seed, float32.
    """
    size = len(system)
    width = min(size, rank + 8)
    rank = min(rank, size)
    generator = torch.Generator().manual_seed(0)
    space = torch.randn(size, width, generator=generator).to(system.device)
    for _ in range(3):
        space = matmul(system, torch.linalg.qr(space).Q.contiguous())
    space = torch.linalg.qr(space).Q.contiguous()
    small = space.T @ matmul(system, space)
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    values, vectors = values[-rank:], vectors[:, -rank:]
    rest = float((system.diagonal().sum() - values.sum()) / max(size - rank, 1))
    basis: Tensor = ((space @ vectors) * (values - rest).clamp(min=0).sqrt()).T.contiguous()
    return basis


def _rest_of(system: Tensor, basis: Tensor) -> Tensor:
    """Diagonal of ``H − BᵀB``, kept positive."""
    diagonal = system.diagonal()
    return torch.maximum(diagonal - (basis * basis).sum(dim=0), 1e-3 * diagonal)


@backends.implements("masked_cg", "reference")
def masked_cg_reference(
    system: Tensor,
    target: Tensor,
    mask: Tensor,
    start: Tensor,
    steps: int,
    tolerance: float,
    precondition: Tensor | None,
    basis: Tensor | None = None,
    dense: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """By torch, in float64."""
    h, c = system.double(), target.double()
    x = torch.where(mask, start, 0.0).double()
    left = c - x @ h
    r = torch.where(mask, left, 0.0)
    loss = None if dense is None else ((dense.double() - x) * left).sum(dim=1).clamp(min=0.0)

    low_rank = None if basis is None else _woodbury(basis.double(), _rest_of(system, basis).double(), mask)

    def solve(residual: Tensor) -> Tensor:
        if low_rank is not None:
            return torch.einsum("rij,rj->ri", low_rank, residual)
        if precondition is None:
            return residual
        return torch.where(mask, residual @ precondition.double(), 0.0)

    z = solve(r)
    direction, angle = z, (r * z).sum(dim=1)
    going = angle > 0
    worth = torch.zeros(len(target), dtype=torch.float64, device=target.device)
    for _ in range(steps):
        product = torch.where(mask, direction @ h, 0.0)
        curvature = (direction * product).sum(dim=1)
        going = going & (curvature > 0)
        length = torch.where(going, angle / curvature, 0.0)
        x = x + length[:, None] * direction
        r = r - length[:, None] * product
        gain = length * angle
        if loss is not None:
            loss = (loss - gain).clamp(min=0.0)
        whole = (x * c).sum(dim=1) if loss is None else loss
        worth = torch.where(going, torch.where(whole > 0, gain / whole, 0.0), worth)
        going = going & (worth > tolerance)
        z = solve(r)
        following = (r * z).sum(dim=1)
        turn = torch.where(going, following / angle, 0.0)
        angle = torch.where(going, following, angle)
        going = going & (following > 0)
        direction = z + turn[:, None] * direction
    return x.to(target.dtype), worth


def _woodbury(basis: Tensor, rest: Tensor, mask: Tensor) -> Tensor:
    """Inverse of ``BᵀB + D`` on the support of each row, zero outside, ``[rows, k, k]``; as a plain inverse."""
    model = basis.T @ basis + torch.diag(rest)
    inverses = torch.zeros(len(mask), *model.shape, dtype=model.dtype, device=model.device)
    for row, keep in enumerate(mask):
        support = torch.nonzero(keep)[:, 0]
        inverses[row, support[:, None], support] = torch.linalg.inv(model[support][:, support])
    return inverses


@backends.implements("masked_cg", "cpp")
def _masked_cg_cpp(
    system: Tensor,
    target: Tensor,
    mask: Tensor,
    start: Tensor,
    steps: int,
    tolerance: float,
    precondition: Tensor | None,
    basis: Tensor | None = None,
    dense: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rows, features = target.shape
    inverse_rest = None if basis is None else (1.0 / _rest_of(system, basis)).contiguous()
    solution = torch.mul(start, mask, out=library.empty(rows, features, dtype=torch.float32))
    worth = torch.zeros(rows, dtype=torch.float64)
    backends.extension().masked_cg(
        solution.data_ptr(),
        worth.data_ptr(),
        system.data_ptr(),
        0 if precondition is None else precondition.data_ptr(),
        0 if basis is None else basis.data_ptr(),
        0 if inverse_rest is None else inverse_rest.data_ptr(),
        0 if basis is None else len(basis),
        target.data_ptr(),
        0 if dense is None else dense.data_ptr(),
        mask.data_ptr(),
        rows,
        features,
        steps,
        tolerance,
        backends.threads(),
    )
    return solution, worth


@backends.implements("masked_cg", "triton")
def _masked_cg_triton(
    system: Tensor,
    target: Tensor,
    mask: Tensor,
    start: Tensor,
    steps: int,
    tolerance: float,
    precondition: Tensor | None,
    basis: Tensor | None = None,
    dense: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    from pyprune.triton_kernels.masked_cg import iterate  # imports triton, only where it is used

    solution = torch.where(mask, start, 0.0)
    worth = target.new_empty(len(target), dtype=torch.float64)
    with library.exact_products():
        iterate(
            solution,
            worth,
            system,
            target,
            mask,
            steps=steps,
            tolerance=tolerance,
            precondition=precondition,
            basis=basis,
            rest=None if basis is None else _rest_of(system, basis),
            dense=dense,
        )
    return solution, worth


_masked_cg = library.register(
    "masked_cg(Tensor system, Tensor target, Tensor mask, Tensor start, int steps, float tolerance,"
    " Tensor? precondition, Tensor? basis, Tensor? dense) -> (Tensor, Tensor)",
    fake=lambda system, target, mask, start, steps, tolerance, precondition, basis, dense: (
        torch.empty_like(target),
        target.new_empty(target.shape[0], dtype=torch.float64),
    ),
)
