# SPDX-License-Identifier: Apache-2.0
"""Damped Cholesky factorisations of a gram, shared by the layers that read the same input."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.errors import InputError, NumericsError
from pyprune.ops import library

_RETRIES = 6
_SMALLEST_RETRY = 1e-8  # first ridge tried after an undamped attempt failed
_SINGULAR = 1e14  # 1-norm condition beyond which a float64 solution has no digit left that counts
_ASYMMETRY = 1e-4


@dataclass(frozen=True)
class Factorisation:
    """``H = gram + ridge·I = L Lᵀ`` in float64.

    Attributes
    ----------
    lower : Tensor, shape (k, k)
        ``L``.
    inverse : Tensor, shape (k, k)
        ``H⁻¹``, symmetric.
    ridge, damping : float
        The ridge added, absolute and relative to the gram's mean diagonal.
    condition : float
        ``‖H‖₁ ‖H⁻¹‖₁``.
    notes : tuple of str
        Says so when the damping had to be raised.
    """

    lower: Tensor
    inverse: Tensor
    ridge: float
    damping: float
    condition: float
    notes: tuple[str, ...]

    @functools.cached_property
    def inverse_upper(self) -> Tensor:
        """Upper ``U`` with ``H⁻¹ = UᵀU``: the inverse of the reverse Cholesky factor, without squaring conditions."""
        damped = self.lower @ self.lower.T
        reverse = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)  # H = R Rᵀ, R upper
        identity = torch.eye(len(reverse), dtype=reverse.dtype, device=reverse.device)
        upper: Tensor = torch.linalg.solve_triangular(reverse, identity, upper=True)
        return upper


class SharedGram:
    """A checked, symmetrised float64 gram and its factorisations by damping."""

    def __init__(self, gram: Tensor, name: str) -> None:
        library.check_float(name, gram=gram)
        if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
            raise InputError(f"{name}: gram must be square", seen=str(list(gram.shape)))
        matrix = gram.detach().double()
        if not bool(torch.isfinite(matrix).all()):
            raise NumericsError(
                f"{name}: gram holds NaN or inf",
                seen=f"{int((~torch.isfinite(matrix)).sum())} of {matrix.numel()} entries are not finite",
                hint="a token's features overflowed: run calibration in fp32 or bf16, and check the weights below",
            )
        diagonal = matrix.diagonal()
        scale = float(diagonal.abs().max()) if matrix.numel() else 0.0
        if matrix.numel() and float((matrix - matrix.T).abs().max()) > _ASYMMETRY * scale:
            raise InputError(f"{name}: gram is not symmetric", hint="gram is E[x xᵀ], shape [in, in]")
        if matrix.numel() and float(diagonal.min()) < -1e-10 * scale:
            raise NumericsError(
                f"{name}: gram has a negative diagonal entry, so it is no second moment",
                seen=f"{float(diagonal.min()):.3g} at column {int(diagonal.argmin())}",
            )
        self.matrix = (matrix + matrix.T) / 2
        self._cache: dict[float, Factorisation] = {}

    def factorise(self, damping: float, name: str) -> Factorisation:
        """Factor ``gram + damping·mean(diag)·I``, raising the damping tenfold up to six times.

        Raises
        ------
        InputError
            ``damping`` is negative or not finite.
        NumericsError
            The gram is zero, or no damping tried made it positive definite.
        """
        if not (math.isfinite(damping) and damping >= 0.0):
            raise InputError(f"{name}: damping must be finite and not negative", seen=str(damping))
        if damping not in self._cache:
            self._cache[damping] = self._factorise(damping, name)
        return self._cache[damping]

    def _factorise(self, damping: float, name: str) -> Factorisation:
        mean = float(self.matrix.diagonal().mean()) if self.matrix.numel() else 1.0
        if mean <= 0.0:
            raise NumericsError(
                f"{name}: the gram is zero",
                seen=f"gram [{len(self.matrix)}, {len(self.matrix)}] without a single non-zero diagonal entry",
                hint="no real token reached this layer, or everything below it is pruned away: "
                "check attention_mask and the layers before it",
            )
        tried = [damping]
        for _ in range(_RETRIES):
            tried.append(max(tried[-1] * 10, _SMALLEST_RETRY))
        for attempt, value in enumerate(tried):
            factor = _attempt(self.matrix, value, mean)
            if factor is None:
                continue
            if attempt:
                note = (
                    f"damping raised from {damping:g} to {value:g} of the mean diagonal: "
                    "the gram is singular to working precision"
                )
                factor = Factorisation(factor.lower, factor.inverse, factor.ridge, value, factor.condition, (note,))
            return factor
        diagonal = self.matrix.diagonal()
        raise NumericsError(
            f"{name}: the gram is not positive definite",
            asked=f"damping {damping:g} of the mean diagonal, grown to {tried[-1]:g} ({len(tried)} tries)",
            seen=f"gram [{len(diagonal)}, {len(diagonal)}], diagonal from {float(diagonal.min()):.3g} "
            f"to {float(diagonal.max()):.3g}",
            hint="more calibration tokens than input features, a larger damping, or rescaled features",
        )


def _attempt(gram: Tensor, damping: float, mean: float) -> Factorisation | None:
    ridge = damping * mean
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    lower, info = torch.linalg.cholesky_ex(damped)
    if int(info) != 0:
        return None
    inverse = torch.cholesky_inverse(lower)
    inverse = (inverse + inverse.T) / 2
    if not damped.numel():
        return Factorisation(lower, inverse, ridge, damping, 1.0, ())
    condition = float(torch.linalg.matrix_norm(damped, 1) * torch.linalg.matrix_norm(inverse, 1))
    if not condition < _SINGULAR:  # NaN counts as singular
        return None
    return Factorisation(lower, inverse, ridge, damping, condition, ())
