# SPDX-License-Identifier: Apache-2.0
"""``TrueOBS`` with the surface of the published class (OBC, Frantar et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyprune import ops
from pyprune.compat import layers
from pyprune.compat.grid import grid_of, rounding_of
from pyprune.compat.obq import quantise_rows
from pyprune.compat.problem import LOGGER
from pyprune.compat.statistics import InputStatistics
from pyprune.errors import InputError, NumericsError

_SINGULAR = 1e14  # 1-norm condition beyond which a float64 solution has no digit left that counts


@dataclass(frozen=True)
class _Removals:
    """The way from the dense weight down to nothing, from which any sparsity is read.

    ``order`` ``[rows, steps]`` holds units of ``size`` columns as they go, in the column order ``columns``; ``start``
    and ``system`` are in that order.
    """

    start: Tensor
    system: Tensor
    order: Tensor
    size: int
    columns: Tensor


class TrueOBS(InputStatistics):
    """Gather a layer's inputs with :meth:`add_batch`, then prune or quantise it by exact OBS.

    Parameters
    ----------
    layer : nn.Linear, nn.Conv2d or Conv1D of transformers
    rel_damp : float
        Ridge relative to the mean diagonal of ``H``.

    Attributes
    ----------
    H : Tensor, shape (columns, columns)
        Running mean of outer products, times two, per sample; float64.
    Losses : Tensor, shape (rows, steps + 1), float64
        After ``prepare_*``: loss of each step, ``½ w_p² / A_pp``; the first column is 0.
    quantizer : optional
        Set it before :meth:`quantize`; the protocol is that of :class:`pyprune.compat.grid.Quantizer`.

    Examples
    --------
    >>> layer = torch.nn.Linear(8, 4)
    >>> pruner = TrueOBS(layer)
    >>> pruner.add_batch(torch.randn(3, 20, 8), None)
    >>> pruner.prepare_unstr()
    >>> [int((weight == 0).sum()) for weight in pruner.prune_unstr([0.25, 0.5])]
    [8, 16]
    """

    _dtype: ClassVar[torch.dtype] = torch.float64

    def __init__(self, layer: Any, rel_damp: float = 0) -> None:
        super().__init__(layer)
        if not (math.isfinite(rel_damp) and rel_damp >= 0):
            raise InputError("rel_damp must be finite and not negative", seen=str(rel_damp))
        self.rel_damp = rel_damp
        self.Losses: Tensor | None = None
        self._removals: _Removals | None = None

    def add_batch(self, inp: Tensor, out: Tensor | None = None) -> None:
        """Take in the layer's inputs, as a forward hook gets them (``inp[0]``).

        Parameters
        ----------
        inp : Tensor, shape (samples, ..., in) or, of a convolution, (samples, in, height, width)
            Padding cannot be told from tokens here: leave it out before.
        out
            Not used; other code passes it.
        """
        self._add(inp, layers.samples_of(self.layer, inp, rows_are_samples=True))

    def invert(self, H: Tensor) -> Tensor:
        """``H⁻¹`` in float64; where ``H`` is singular, ``(H + I)⁻¹``, and a warning in the log.

        Raises
        ------
        NumericsError
            ``H + I`` is not positive definite either.
        """
        return self._invert(H)[0]

    def _invert(self, H: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse, and the matrix it is the inverse of."""
        name = layers.name_of(self.layer)
        system = H.double()
        identity = torch.eye(len(system), dtype=torch.float64, device=system.device)
        for attempt, matrix in enumerate((system, system + identity)):
            lower, info = torch.linalg.cholesky_ex(matrix)
            inverse = torch.cholesky_inverse(lower)
            condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
            if int(info) == 0 and condition < _SINGULAR:
                if attempt:
                    LOGGER.warning("%s: H is singular, the identity is added; rel_damp would be milder", name)
                return (inverse + inverse.T) / 2, matrix
        raise NumericsError(
            f"{name}: H is not positive definite, nor is H + I",
            seen=f"diagonal from {float(system.diagonal().min()):.3g} to {float(system.diagonal().max()):.3g}",
            hint="rel_damp=0.01, or more calibration samples",
        )

    def prepare(self, columnslast: bool = False) -> tuple[Tensor, ...]:
        """``W``, ``H``, ``H⁻¹`` and zeroed losses ``[rows, columns + 1]``, in float64.

        Inputs that were always zero lose their weights. With ``columnslast`` the columns are in the order that is
        returned as a fifth tensor: a convolution's input channels innermost.
        """
        weight, H, order = self._matrices(columnslast)
        losses = torch.zeros(self.rows, self.columns + 1, dtype=torch.float64, device=weight.device)
        found = (weight, H, self.invert(H), losses)
        return (*found, order) if columnslast else found

    def _matrices(self, columnslast: bool) -> tuple[Tensor, Tensor, Tensor]:
        weight = layers.matrix_of(self.layer).double()
        H = self._hessian().to(weight.device)
        for label, tensor in (("weight", weight), ("H", H)):
            if not bool(torch.isfinite(tensor).all()):
                raise NumericsError(
                    f"{layers.name_of(self.layer)}: {label} holds NaN or inf",
                    hint="check the checkpoint and the precision of the forward pass",
                )
        H.diagonal().add_(self.rel_damp * H.diagonal().mean())
        dead = H.diagonal() == 0
        H.diagonal()[dead] = 1
        weight[:, dead] = 0
        order = layers.columns_last(self.layer) if columnslast else torch.arange(self.columns, device=H.device)
        return weight[:, order].contiguous(), H[order][:, order].contiguous(), order

    def nmprune(self, n: int = 2, m: int = 4, parallel: int = 32) -> None:
        """Remove ``n`` of every ``m`` consecutive weights (a convolution's along its input channels), in place."""
        if not 0 <= n <= m or m < 1:
            raise InputError("N:M pruning removes n of every m weights, 0 <= n <= m", seen=f"n={n}, m={m}")
        weight, H, order = self._matrices(columnslast=True)
        pruned, _, loss = ops.obs(self.invert(H), weight, self.columns // m * n, keep=m - n, of=m)
        restored = torch.empty_like(pruned)
        restored[:, order] = pruned
        layers.write_back(self.layer, restored)
        self._log("n:m", loss)

    def prepare_unstr(self, parallel: int = 32) -> None:
        """Find the order in which each row's weights go, for :meth:`prune_unstr`; zeros go first."""
        weight, H, columns = self._matrices(columnslast=False)
        inverse, system = self._invert(H)
        order = torch.empty(self.rows, self.columns, dtype=torch.int64, device=weight.device)
        loss = torch.zeros(self.rows, self.columns, dtype=torch.float64, device=weight.device)
        supports, member = torch.unique(weight != 0, dim=0, return_inverse=True)
        for index, support in enumerate(supports):
            rows = torch.nonzero(member == index)[:, 0]
            live, zeros = torch.nonzero(support)[:, 0], torch.nonzero(~support)[:, 0]
            restricted = self.invert(system[live][:, live]) if len(zeros) else inverse
            _, removed, cost = ops.obs(restricted, weight[rows][:, live], len(live))
            order[rows] = torch.cat([zeros.expand(len(rows), -1), live[removed]], dim=1)
            loss[rows, len(zeros) :] = cost
        self._remember(loss, _Removals(weight, system, order, 1, columns))

    def prune_unstr(self, sparsities: Sequence[float]) -> list[Tensor]:
        """Weights ``[rows, columns]`` for each sparsity; the layer itself is left as it is.

        The budget goes to the steps of least loss over all rows, and what is kept is the exact least-squares fit.
        """
        return self.prune_blocked(sparsities)

    def prepare_blocked(self, size: int = 4, parallel: int = 32) -> None:
        """Find the order in which each row's blocks of ``size`` weights go, for :meth:`prune_blocked`.

        ``parallel`` is not needed here.
        """
        weight, H, columns = self._matrices(columnslast=True)
        inverse, system = self._invert(H)
        _, order, loss = ops.block_obs(inverse, weight, self.columns // max(size, 1), width=size)
        self._remember(loss, _Removals(weight, system, order, size, columns))

    def prune_blocked(self, sparsities: Sequence[float]) -> list[Tensor]:
        """As :meth:`prune_unstr`, for whatever was prepared last."""
        removals, losses = self._removals, self.Losses
        if removals is None or losses is None:
            raise InputError("nothing has been prepared", hint="prepare_unstr() or prepare_blocked() first")
        ranking = torch.argsort(losses[:, 1:].reshape(-1), stable=True)
        steps = removals.order.shape[1]
        found = []
        for sparsity in sparsities:
            if not 0 <= sparsity <= 1:
                raise InputError(f"sparsity {sparsity:g} is outside 0 to 1")
            count = math.ceil(Fraction(repr(float(sparsity))) * self.rows * steps)
            per_row = torch.bincount(ranking[:count] // max(steps, 1), minlength=self.rows)
            found.append(self._weights_at(removals, per_row))
            taken = torch.arange(steps + 1, device=losses.device) <= per_row[:, None]
            LOGGER.info("%s: %.4f error %.6g", layers.name_of(self.layer), sparsity, float(losses[taken].sum()))
        return found

    def _weights_at(self, removals: _Removals, per_row: Tensor) -> Tensor:
        """The best weights after each row's first ``per_row`` removals, in the layer's column order and dtype."""
        taken = torch.arange(removals.order.shape[1], device=per_row.device) < per_row[:, None]
        gone = torch.zeros_like(taken).scatter_(1, removals.order, taken)
        mask = ~gone.repeat_interleave(removals.size, dim=1)
        fitted = ops.masked_lstsq(removals.system, removals.start @ removals.system, mask)
        # Exactly as it was where nothing but zeros went.
        untouched = (mask | (removals.start == 0)).all(dim=1, keepdim=True)
        weight = torch.empty_like(fitted)
        weight[:, removals.columns] = torch.where(untouched, removals.start, fitted)
        return weight.to(self.layer.weight.dtype)

    def quantize(self, parallel: int = 32) -> None:
        """Put every weight on the grid of ``self.quantizer``, greedily, in place; zeros stay zero."""
        quantizer = getattr(self, "quantizer", None)
        if quantizer is None:
            raise InputError("quantize() needs a quantizer", hint="set the attribute: pruner.quantizer = Quantizer()")
        weight, H, _ = self._matrices(columnslast=False)
        _, system = self._invert(H)
        quantizer.find_params(weight.float(), weight=True)
        quantised, loss = torch.empty_like(weight), torch.empty_like(weight)
        scale, zero = grid_of(quantizer, self.rows)
        for start in range(0, self.rows, max(parallel, 1)):
            part = slice(start, start + max(parallel, 1))
            rounding = rounding_of(scale[part], zero[part], quantizer.maxq)
            quantised[part], loss[part] = quantise_rows(system, weight[part], rounding, scale[part])
        layers.write_back(self.layer, quantised)
        self._log("quantised", loss)

    def _remember(self, loss: Tensor, removals: _Removals) -> None:
        self.Losses = torch.nn.functional.pad(loss / 2, (1, 0))
        self._removals = removals

    def _log(self, what: str, loss: Tensor) -> None:
        LOGGER.info("%s: %s error %.6g", layers.name_of(self.layer), what, float(loss.sum()) / 2)

    def free(self) -> None:
        """Let go of ``H`` and of what was prepared."""
        self.H = None
        self.Losses = None
        self._removals = None
        if self.dev.type == "cuda":
            torch.cuda.empty_cache()
