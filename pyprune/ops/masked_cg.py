# SPDX-License-Identifier: Apache-2.0
"""A few conjugate gradient steps on row-wise masked least squares, all rows in one product."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library


def masked_cg(
    system: Tensor,  # [k, k]
    target: Tensor,  # [rows, k]
    mask: Tensor,  # [rows, k] bool
    start: Tensor,  # [rows, k]
    *,
    steps: int,
    tolerance: float = 0.0,
    precondition: Tensor | None = None,  # [k, k]
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
    if dense is not None:
        library.check_float("masked_cg", dense=dense)
        library.check_shape("masked_cg", "dense", dense, tuple(target.shape))
    tensors = [t for t in (system, target, start, precondition, dense) if t is not None]
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
        None if dense is None else dense.contiguous(),
    )
    return solution, worth


@backends.implements("masked_cg", "reference")
def masked_cg_reference(
    system: Tensor,
    target: Tensor,
    mask: Tensor,
    start: Tensor,
    steps: int,
    tolerance: float,
    precondition: Tensor | None,
    dense: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """By torch: in float64 on the CPU; in float32 on a GPU, where this is the fast way."""
    wide = torch.float64 if target.device.type == "cpu" else torch.float32
    h, c = system.to(wide), target.to(wide)
    x = torch.where(mask, start, 0.0).to(wide)
    left = c - x @ h
    r = torch.where(mask, left, 0.0)
    loss = None if dense is None else ((dense.to(wide) - x) * left).sum(dim=1).double().clamp(min=0.0)

    def solve(residual: Tensor) -> Tensor:
        if precondition is None:
            return residual
        return torch.where(mask, residual @ precondition.to(wide), 0.0)

    z = solve(r)
    direction, angle = z, (r * z).sum(dim=1).double()
    going = angle > 0
    worth = torch.zeros(len(target), dtype=torch.float64, device=target.device)
    for _ in range(steps):
        product = torch.where(mask, direction @ h, 0.0)
        curvature = (direction * product).sum(dim=1).double()
        going = going & (curvature > 0)
        length = torch.where(going, angle / curvature, 0.0)
        x = x + length[:, None].to(wide) * direction
        r = r - length[:, None].to(wide) * product
        gain = length * angle
        if loss is not None:
            loss = (loss - gain).clamp(min=0.0)
        whole = (x * c).sum(dim=1).double() if loss is None else loss
        worth = torch.where(going, torch.where(whole > 0, gain / whole, 0.0), worth)
        going = going & (worth > tolerance)
        z = solve(r)
        following = (r * z).sum(dim=1).double()
        turn = torch.where(going, following / angle, 0.0)
        angle = torch.where(going, following, angle)
        going = going & (following > 0)
        direction = z + turn[:, None].to(wide) * direction
    return x.to(target.dtype), worth


@backends.implements("masked_cg", "cpp")
def _masked_cg_cpp(
    system: Tensor,
    target: Tensor,
    mask: Tensor,
    start: Tensor,
    steps: int,
    tolerance: float,
    precondition: Tensor | None,
    dense: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rows, features = target.shape
    solution = torch.mul(start, mask, out=library.empty(rows, features, dtype=torch.float32))
    worth = torch.zeros(rows, dtype=torch.float64)
    backends.extension().masked_cg(
        solution.data_ptr(),
        worth.data_ptr(),
        system.data_ptr(),
        0 if precondition is None else precondition.data_ptr(),
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


_masked_cg = library.register(
    "masked_cg(Tensor system, Tensor target, Tensor mask, Tensor start, int steps, float tolerance,"
    " Tensor? precondition, Tensor? dense) -> (Tensor, Tensor)",
    fake=lambda system, target, mask, start, steps, tolerance, precondition, dense: (
        torch.empty_like(target),
        target.new_empty(target.shape[0], dtype=torch.float64),
    ),
)
