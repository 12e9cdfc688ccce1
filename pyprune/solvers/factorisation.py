# SPDX-License-Identifier: Apache-2.0
"""Damped Cholesky factorisations of a gram, shared by the layers that read the same input."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError, NumericsError
from pyprune.ops import library

_RETRIES = 6
_SMALLEST_RETRY = 1e-8  # first ridge tried after an undamped attempt failed
_SINGULAR = 1e14  # ratio of pivots beyond which a float64 solution has no digit left that counts
_SURE = 1e5  # ratio of pivots up to which a factor in float32 settles that the matrix is positive definite
_ASYMMETRY = 1e-4


@dataclass(frozen=True)
class Factorisation:
    """``H = gram + ridge·I = R Rᵀ``, and what follows from it.

    Attributes
    ----------
    gram : Tensor, shape (k, k)
        Without the ridge.
    reverse : Tensor, shape (k, k)
        ``R``, upper triangular: float32 where that suffices to tell that ``H`` is positive definite, else float64.
    ridge, damping : float
        The ridge added, absolute and relative to the gram's mean diagonal.
    notes : tuple of str
        Says so when the damping had to be raised.
    """

    gram: Tensor
    reverse: Tensor
    ridge: float
    damping: float
    notes: tuple[str, ...]

    @functools.cached_property
    def reverse_double(self) -> Tensor:
        """``R`` in float64."""
        if self.reverse.dtype == torch.float64:
            return self.reverse
        return ops.cholesky(self.gram, ridge=self.ridge, reverse=True).factor

    @functools.cached_property
    def inverse(self) -> Tensor:
        """``H⁻¹``, symmetric, float64 ``[k, k]``."""
        found = ops.cholesky(self.gram, ridge=self.ridge, inverse=True)
        if found.inverse is None or found.failed >= 0:  # R exists, so this is a matrix at the very edge
            raise NumericsError(
                "the gram is not positive definite to working precision",
                asked=f"its inverse with damping {self.damping:g}",
                hint="a larger damping, or more calibration tokens than input features",
            )
        return found.inverse

    @functools.cached_property
    def condition(self) -> float:
        """``‖H‖₁ ‖H⁻¹‖₁``; without an inverse at hand, Hager's estimate of it (1984), which is seldom off by 3."""
        if not self.gram.numel():
            return 1.0
        # One column sum at a time of |gram| with the ridge on the diagonal.
        diagonal = self.gram.diagonal()
        norm = float((self.gram.abs().sum(dim=0) - diagonal.abs() + (diagonal + self.ridge).abs()).max())
        if "inverse" in self.__dict__:
            return norm * float(torch.linalg.matrix_norm(self.inverse, 1))
        return norm * _inverse_norm(self.reverse)

    def solve(self, rhs: Tensor) -> Tensor:
        """``rhs H⁻¹`` for rows ``rhs`` ``[rows, k]``, float64, with one step of iterative refinement."""
        solution = ops.matmul(rhs, self.inverse)
        residual = torch.sub(rhs, solution, alpha=self.ridge)
        ops.matmul(solution, self.gram, residual, scale=-1.0)
        return ops.matmul(residual, self.inverse, solution)


def _inverse_norm(reverse: Tensor) -> float:
    """1-norm of ``(R Rᵀ)⁻¹``, estimated from a few solves (Hager 1984, algorithm 1)."""
    reverse = reverse.double()

    def solve(vector: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(reverse, vector[:, None], upper=True)
        whole: Tensor = torch.linalg.solve_triangular(reverse.T, half, upper=False)
        return whole[:, 0]

    size = len(reverse)
    point = torch.full((size,), 1.0 / size, dtype=reverse.dtype, device=reverse.device)
    best = 0.0
    for _ in range(5):
        image = solve(point)
        estimate = float(image.abs().sum())
        gradient = solve(torch.where(image >= 0, 1.0, -1.0))
        best = max(best, estimate)
        steepest = int(gradient.abs().argmax())
        if float(gradient[steepest].abs()) <= float(gradient @ point):
            break
        point = torch.zeros_like(point)
        point[steepest] = 1.0
    return best


class SharedGram:
    """A checked, symmetrised float64 gram and its factorisations by damping."""

    def __init__(self, gram: Tensor, name: str) -> None:
        library.check_float(name, gram=gram)
        if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
            raise InputError(f"{name}: gram must be square", seen=str(list(gram.shape)))
        seen = ops.symmetrise(gram)
        if seen.broken:
            raise NumericsError(
                f"{name}: gram holds NaN or inf",
                seen=f"{seen.broken} of {gram.numel()} entries are not finite",
                hint="a token's features overflowed: run calibration in fp32 or bf16, and check the weights below",
            )
        diagonal = seen.matrix.diagonal()
        scale = float(diagonal.abs().max()) if gram.numel() else 0.0
        if seen.asymmetry > _ASYMMETRY * scale:
            raise InputError(f"{name}: gram is not symmetric", hint="gram is E[x xᵀ], shape [in, in]")
        if gram.numel() and float(diagonal.min()) < -1e-10 * scale:
            raise NumericsError(
                f"{name}: gram has a negative diagonal entry, so it is no second moment",
                seen=f"{float(diagonal.min()):.3g} at column {int(diagonal.argmin())}",
            )
        self.matrix = seen.matrix
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
                factor = dataclasses.replace(factor, notes=(note,))
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
    for dtype, limit in ((torch.float32, _SURE), (torch.float64, _SINGULAR)):
        found = ops.cholesky(gram, ridge=ridge, reverse=True, dtype=dtype)
        if found.failed < 0:
            pivots = found.factor.diagonal().double() ** 2
            if not gram.numel() or float(pivots.max()) < limit * float(pivots.min()):  # NaN counts as singular
                return Factorisation(gram, found.factor, ridge, damping, ())
    return None
