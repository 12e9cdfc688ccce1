# SPDX-License-Identifier: Apache-2.0
"""One iteration of ADMM on a masked least-squares problem, fused."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library


def admm_step(
    state: Tensor,  # [rows, k]
    mask: Tensor,  # [rows, k] bool
    start: Tensor,  # [rows, k]
    multiplier: Tensor,  # [k, k]
    relax: float = 1.0,
    *,
    momentum: float = 0.0,
    previous: Tensor | None = None,  # [rows, k]
) -> Tensor:  # [rows, k]
    """Move the ADMM state of ``min ½ tr (W − S) H (W − S)ᵀ``, ``W`` on a mask, by one iteration; in place.

    With the sparse copy ``D = mask ∘ Z`` and the scaled dual ``U = Z − D`` the dense copy is ``B = S + (D − U − S) M``,
    ``M = ρ (H + ρI)⁻¹``, and the new state ``Z = relax·B + (1 − relax) D + U`` (Boyd et al. 2011, sections 3.1 and
    3.4.3). The next mask is chosen from ``Z`` by the caller: the state and the mask are all there is.

    Parameters
    ----------
    state : Tensor, shape (rows, k), float32
        ``Z``, contiguous; changed and returned.
    mask : Tensor of bool, shape (rows, k)
    start : Tensor, shape (rows, k), float32
        ``S``, the dense optimum.
    multiplier : Tensor, shape (k, k), float32
        ``M``.
    relax : float
        Over-relaxation, 1 to 2; below 1 it damps.
    momentum : float
        Heavy ball: this part of the last move is added to the new state.
    previous : Tensor, shape (rows, k), float32, optional
        The state before, contiguous; becomes the state as it was given. Needed with ``momentum``.

    Raises
    ------
    InputError
        Shapes, dtypes or devices do not fit.

    Examples
    --------
    >>> weight = torch.tensor([[3.0, 1.0]])
    >>> admm_step(weight.clone(), torch.tensor([[True, False]]), weight, torch.eye(2) / 2)
    tensor([[3., 1.]])
    """
    library.check_float("admm_step", state=state, start=start, multiplier=multiplier)
    if state.dim() != 2:
        raise InputError("admm_step: state must be a matrix", seen=str(list(state.shape)))
    library.check_shape("admm_step", "start", start, tuple(state.shape))
    library.check_shape("admm_step", "mask", mask, tuple(state.shape))
    library.check_shape("admm_step", "multiplier", multiplier, (state.shape[1], state.shape[1]))
    if {state.dtype, start.dtype, multiplier.dtype} != {torch.float32} or mask.dtype != torch.bool:
        raise InputError("admm_step: tensors must be float32, the mask bool")
    if not state.is_contiguous():
        raise InputError("admm_step: state must be contiguous", seen=f"strides {state.stride()}")
    if previous is None:
        if momentum:
            raise InputError("admm_step: momentum needs the previous state", hint="previous=state.clone() at first")
        previous = state.clone()
    library.check_shape("admm_step", "previous", previous, tuple(state.shape))
    if previous.dtype != state.dtype or not previous.is_contiguous():
        raise InputError(
            "admm_step: previous must be like state", seen=f"{previous.dtype}, strides {previous.stride()}"
        )
    library.check_same_device("admm_step", state, previous, mask, start, multiplier)
    library.reject_autograd("admm_step", state, start, multiplier)
    _admm_step(
        state, previous, mask.contiguous(), start.contiguous(), multiplier.contiguous(), float(relax), float(momentum)
    )
    return state


@backends.implements("admm_step", "reference")
def admm_step_reference(
    state: Tensor, previous: Tensor, mask: Tensor, start: Tensor, multiplier: Tensor, relax: float, momentum: float
) -> None:
    """By torch, in float64."""
    z, s = state.double(), start.double()
    dense = s + (torch.where(mask, z, -z) - s) @ multiplier.double()
    moved = relax * dense + torch.where(mask, (1.0 - relax) * z, z) + momentum * (z - previous.double())
    previous.copy_(state)
    state.copy_(moved)


@backends.implements("admm_step", "torch")
def _admm_step_torch(
    state: Tensor, previous: Tensor, mask: Tensor, start: Tensor, multiplier: Tensor, relax: float, momentum: float
) -> None:
    with library.exact_products():
        dense = torch.addmm(start, torch.where(mask, state, -state).sub_(start), multiplier)
    moved = torch.where(mask, (1.0 - relax) * state, state).add_(dense, alpha=relax)
    moved.add_(state, alpha=momentum).sub_(previous, alpha=momentum)
    previous.copy_(state)
    state.copy_(moved)


@backends.implements("admm_step", "triton")
def _admm_step_triton(
    state: Tensor, previous: Tensor, mask: Tensor, start: Tensor, multiplier: Tensor, relax: float, momentum: float
) -> None:
    from pyprune.triton_kernels.admm_step import admm_fold, admm_input  # imports triton, only where it is used

    with library.exact_products():
        product = admm_input(torch.empty_like(state), state, mask, start) @ multiplier
    admm_fold(state, previous, mask, start, product, relax, momentum)


@backends.implements("admm_step", "cpp")
def _admm_step_cpp(
    state: Tensor, previous: Tensor, mask: Tensor, start: Tensor, multiplier: Tensor, relax: float, momentum: float
) -> None:
    backends.extension().admm_step(
        state.data_ptr(),
        previous.data_ptr(),
        mask.data_ptr(),
        start.data_ptr(),
        multiplier.data_ptr(),
        relax,
        momentum,
        state.shape[0],
        state.shape[1],
        backends.threads(),
    )


_admm_step = library.register(
    "admm_step(Tensor(a!) state, Tensor(b!) previous, Tensor mask, Tensor start, Tensor multiplier, float relax,"
    " float momentum) -> ()",
    fake=lambda state, previous, mask, start, multiplier, relax, momentum: None,
)
