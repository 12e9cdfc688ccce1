# SPDX-License-Identifier: Apache-2.0
"""One weight matrix as a small optimisation problem, and its solution."""

from __future__ import annotations

import functools
from dataclasses import InitVar, dataclass

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError, NumericsError
from pyprune.ops import library
from pyprune.solvers.factorisation import Factorisation, SharedGram

# Used only for the energy of a target that was not given: small enough to leave the fit untouched.
_ENERGY_DAMPING = 1e-8


class LayerProblem:
    """Find a sparse ``Ŵ`` that minimises ``E‖y − Ŵx‖²`` for one linear layer.

    Parameters
    ----------
    weight : Tensor, shape (out, in)
        The dense weight ``W₀``.
    gram : Tensor, shape (in, in)
        ``E[x xᵀ]`` over real tokens, or its centred form when the bias is refitted.
    cross : Tensor, shape (out, in), optional
        ``E[y xᵀ]`` of another target, such as the dense model's output. Without it the target is the layer's own
        dense output, ``cross = weight @ gram``.
    target_energy : float, optional
        ``E‖y‖²``, the denominator of :meth:`error`. Without it: ``⟨weight gram, weight⟩``, or with ``cross`` the
        part of the target's energy that a dense layer can explain.
    name : str
        Used in errors and notes.

    Raises
    ------
    InputError
        Shapes, dtypes or devices do not fit, or ``gram`` is not symmetric.
    NumericsError
        A tensor holds NaN or inf, or the gram is zero or has a negative diagonal; the message names the layer.

    Examples
    --------
    >>> problem = LayerProblem(torch.ones(2, 3), torch.eye(3), name="encoder.layer.0.output.dense")
    >>> problem.error(torch.zeros(2, 3))
    1.0
    """

    def __init__(
        self,
        weight: Tensor,
        gram: Tensor,
        cross: Tensor | None = None,
        *,
        target_energy: float | None = None,
        name: str = "layer",
    ) -> None:
        self._set(weight, SharedGram(gram, name), cross, target_energy, name)

    def _set(
        self, weight: Tensor, gram: SharedGram, cross: Tensor | None, target_energy: float | None, name: str
    ) -> None:
        library.check_float(name, weight=weight)
        if weight.dim() != 2 or weight.shape[1] != gram.matrix.shape[0]:
            raise InputError(
                f"{name}: weight and gram do not fit",
                asked="weight [out, in] and gram [in, in]",
                seen=f"weight {list(weight.shape)}, gram {list(gram.matrix.shape)}",
                hint="weights are [out, in]; a transposed Conv1D weight needs .T",
            )
        if cross is not None:
            library.check_float(name, cross=cross)
            library.check_shape(name, "cross", cross, tuple(weight.shape))
        library.check_same_device(name, weight, gram.matrix, cross)
        for label, tensor in (("weight", weight), ("cross", cross)):
            if tensor is not None and not library.all_finite(tensor):
                bad = int((~torch.isfinite(tensor)).sum())
                raise NumericsError(
                    f"{name}: {label} holds NaN or inf",
                    seen=f"{bad} of {tensor.numel()} entries are not finite",
                    hint="check the checkpoint and the precision of the forward pass (fp16 overflows, bf16 does not)",
                )
        self.name = name
        self.weight = weight.detach()
        self.cross = None if cross is None else cross.detach().double()
        self._gram = gram
        self._target_energy = target_energy
        self._rectified: dict[float, Tensor] = {}

    def sibling(
        self,
        weight: Tensor,
        cross: Tensor | None = None,
        *,
        target_energy: float | None = None,
        name: str = "layer",
    ) -> LayerProblem:
        """Another layer that reads the same input: shares this gram and its factorisations (query, key, value)."""
        other = LayerProblem.__new__(LayerProblem)
        other._set(weight, self._gram, cross, target_energy, name)
        return other

    @property
    def gram(self) -> Tensor:
        """Tensor, shape (in, in), float64: symmetrised, never damped in place."""
        return self._gram.matrix

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.weight.shape[0], self.weight.shape[1]

    def factorise(self, damping: float) -> Factorisation:
        """Damped factorisation of the gram, cached; the damping is raised if it has to be, and says so."""
        return self._gram.factorise(damping, self.name)

    def rhs(self) -> Tensor:
        """Tensor, shape (out, in), float64: ``cross``, or ``weight @ gram`` without one."""
        return ops.matmul(self.weight.double(), self.gram) if self.cross is None else self.cross

    def start(self, damping: float, dtype: torch.dtype = torch.float64) -> Tensor:
        """The dense weight a solver starts from, ``[out, in]``; not to be changed.

        Without ``cross`` the dense weight; with it the rectified one, ``W̄ = (C + λW₀)(G + λI)⁻¹`` (AKR,
        arXiv 2310.13191, eq. 5, with the ridge centred on the dense weight so that it never shrinks to zero).
        """
        if self.cross is None:
            return self.weight.to(dtype)
        weight = self.weight.double()
        factor = self.factorise(damping)
        if factor.damping not in self._rectified:
            rhs = self.cross + factor.ridge * weight
            self._rectified[factor.damping] = factor.solve(rhs)
        return self._rectified[factor.damping].to(dtype)

    def target_energy(self) -> float:
        """``E‖y‖²``, the denominator of :meth:`error`."""
        if self._target_energy is None:
            fitted = self.start(_ENERGY_DAMPING)
            self._target_energy = _inner(self.rhs(), fitted)
        return self._target_energy

    def loss(self, weight: Tensor) -> float:
        """``E‖y − weight·x‖²`` up to what no weight can explain when no ``target_energy`` was given; float64."""
        candidate = weight.detach().double()
        if self.cross is None:
            change = candidate - self.weight.double()
            return _inner(ops.matmul(change, self.gram), change)
        quadratic = _inner(ops.matmul(candidate, self.gram), candidate)
        return self.target_energy() - 2.0 * _inner(self.cross, candidate) + quadratic

    def error(self, weight: Tensor) -> float:
        """Relative error ``E‖y − weight·x‖² / E‖y‖²``, in float64.

        Parameters
        ----------
        weight : Tensor, shape (out, in)
        """
        loss, energy = max(self.loss(weight), 0.0), self.target_energy()
        if energy <= 0.0:
            return 0.0 if loss == 0.0 else float("inf")
        return loss / energy


def _inner(a: Tensor, b: Tensor) -> float:
    return float(torch.vdot(a.reshape(-1), b.reshape(-1)))


@dataclass(frozen=True)
class LayerSolution:
    """What a solver found for a :class:`LayerProblem`.

    Attributes
    ----------
    weight : Tensor, shape (out, in)
        In the dtype of the problem's weight; exactly zero where the mask is False.
    mask : Tensor of bool, shape (out, in)
        True = kept; the count is exactly what the pattern asks for.
    error : float
        ``E‖y − Ŵx‖² / E‖y‖²`` in float64, of the weight as stored. Computed when it is first read (it costs as much as
        a fast solver); until then the solution keeps the problem alive.
    damping : float
        Ridge that was used, relative to the gram's mean diagonal; 0 where no system was solved.
    condition : float or None
        1-norm condition number of the damped gram, or an estimate of it; None where no system was solved.
    seconds : float
        Wall time of the solve.
    solver : str
    notes : tuple of str
        Anything a person should know, such as a damping that had to be raised.
    """

    weight: Tensor
    mask: Tensor
    damping: float
    seconds: float
    solver: str
    notes: tuple[str, ...] = ()
    problem: InitVar[LayerProblem | None] = None
    factor: InitVar[Factorisation | None] = None

    def __post_init__(self, problem: LayerProblem | None, factor: Factorisation | None) -> None:
        # Not fields: they go as soon as what they are for has been computed.
        self.__dict__["_problem"] = problem
        self.__dict__["_factor"] = factor

    @functools.cached_property
    def error(self) -> float:
        """``E‖y − Ŵx‖² / E‖y‖²`` in float64, of the weight as stored."""
        problem: LayerProblem = self.__dict__.pop("_problem")
        return problem.error(self.weight)

    @functools.cached_property
    def condition(self) -> float | None:
        """1-norm condition number of the damped gram; None where no system was solved."""
        factor: Factorisation | None = self.__dict__.pop("_factor")
        return None if factor is None else factor.condition

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, counted from the mask."""
        return 1.0 - float(self.mask.double().mean()) if self.mask.numel() else 0.0
