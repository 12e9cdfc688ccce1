# SPDX-License-Identifier: Apache-2.0
"""A few conjugate gradient steps on H_SS x_S = c_S for every row: H [k, k]; c, x, mask [rows, k].

A step is one product of all directions with H, by torch, and one kernel, a program for each row: step
length, x, residual, what the step was worth, and the next direction. H should have a unit diagonal, which
then is the preconditioner. With another one, M or a low rank one, its product comes between the kernel's
two halves.

Low rank: H ≈ BᵀB + D is inverted on a row's support without a product with H (Woodbury),
(D + BᵀB)⁻¹ r = e∘(r − Bᵀ C⁻¹ B (e∘r)), e = mask / D, C = I + B diag(e) Bᵀ, with C⁻¹ of each row made once.

A row that has gained enough is frozen by its flag: later steps leave it as it is. Whether any row still
goes is looked at every few steps, without stopping the device; that moves no bit of the result.

rows k² multiply-adds a step, twice that with M. The kernel reads p, d, x, r, the mask and c, some of
them twice out of the cache, and writes d, x, r. float32, dot products in float64; a row's bits depend on
its neighbours only as far as torch's product does. No atomics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from pyprune.triton_kernels.masked_cg_kernels import advance_kernel, start_kernel, turn_kernel
from pyprune.triton_kernels.watch import Watch

EVERY = 4  # steps between two looks
CORES = 1 << 24  # numbers in the small matrices of a low rank preconditioner that are held at once
PLAIN, INVERSE, RANKED = 0, 1, 2  # what the preconditioner is


@dataclass(frozen=True)
class Line:
    """How a program walks along its row."""

    block: int  # columns at a time, a power of two
    warps: int


def line_for(columns: int) -> Line:
    """Choose the walk: 4 columns a lane, on up to 8 warps."""
    block = min(1024, max(128, triton.next_power_of_2(columns)))
    return Line(block=block, warps=block // 128)


def iterate(
    x: Tensor,  # [rows, k]
    worth: Tensor,  # [rows]
    system: Tensor,  # [k, k]
    target: Tensor,  # [rows, k]
    mask: Tensor,  # [rows, k] bool
    *,
    steps: int,
    tolerance: float,
    precondition: Tensor | None = None,  # [k, k]
    basis: Tensor | None = None,  # [rank, k]
    rest: Tensor | None = None,  # [k]
    dense: Tensor | None = None,  # [rows, k]
) -> None:
    """Improve `x` in place by at most `steps` steps.

    Parameters
    ----------
    x : Tensor, shape (rows, k), float32
        Zero outside the mask.
    worth : Tensor, shape (rows,), float64
        Written: what each row's last step gained, as a part of its error, or of its energy without `dense`.
    system, target, mask, precondition, basis, dense
        As of `pyprune.ops.masked_cg`; contiguous, float32, the mask bool.
    rest : Tensor, shape (k,), float32
        D of a low rank preconditioner, with `basis`.
    tolerance : float
        A row stops when a step was worth no more.

    Raises
    ------
    ValueError
        If a shape, dtype, layout or device does not fit.

    Notes
    -----
    The products follow torch's setting of TF32: turn it off around this.
    """
    rows, columns = x.shape
    _check(x, worth, system, target, mask, precondition, basis, rest, dense)
    worth.zero_()
    if rows == 0 or columns == 0:
        return
    if basis is not None and rows * len(basis) ** 2 > CORES:  # rows do not meet
        height = max(1, CORES // len(basis) ** 2)
        for first in range(0, rows, height):
            part = slice(first, first + height)
            iterate(
                x[part], worth[part], system, target[part], mask[part], steps=steps, tolerance=tolerance, basis=basis,
                rest=rest, dense=None if dense is None else dense[part],
            )  # fmt: skip
        return
    _Iteration(x, worth, system, target, mask, tolerance, precondition, basis, rest, dense).run(steps)


class _Iteration:
    """All rows at once."""

    def __init__(
        self,
        x: Tensor,
        worth: Tensor,
        system: Tensor,
        target: Tensor,
        mask: Tensor,
        tolerance: float,
        precondition: Tensor | None,
        basis: Tensor | None,
        rest: Tensor | None,
        dense: Tensor | None,
    ) -> None:
        self.x, self.worth, self.system, self.target, self.tolerance = x, worth, system, target, tolerance
        self.mask, self.precondition, self.basis, self.dense = mask.view(torch.uint8), precondition, basis, dense
        self.residual, self.direction, self.product = (torch.empty_like(x) for _ in range(3))
        self.angle, self.loss = torch.empty_like(worth), torch.empty_like(worth)
        self.going = torch.ones_like(worth, dtype=torch.uint8)
        # What a kernel has no use for stands in for what is not there.
        self.scaled, self.inverse_rest = self.residual, x
        self.kind = PLAIN if precondition is None else INVERSE
        if basis is not None and rest is not None:
            self.kind = RANKED
            self.scaled, self.inverse_rest = torch.empty_like(x), 1.0 / rest
            self.cores = _cores(basis, self.inverse_rest, mask)
        line = line_for(x.shape[1])
        self.launch = {
            "KIND": self.kind, "BLOCK": line.block, "num_warps": line.warps, "num_stages": 2, "enable_fp_fusion": True,
        }  # fmt: skip

    def run(self, steps: int) -> None:
        watch = Watch(self.x.device)
        with torch.cuda.device_of(self.x):  # Triton launches on the current device; no effect on CPU tensors
            self._start()
            for step in range(steps):
                if step % EVERY == 0 and watch.all_down(self.going):
                    break
                self._advance()
                if self.kind != PLAIN and step + 1 < steps:
                    self._turn(first=False)

    def _start(self) -> None:
        torch.mm(self.x, self.system, out=self.product)
        start_kernel[(len(self.x),)](
            self.residual,
            self.direction,
            self.scaled,
            self.angle,
            self.loss,
            self.going,
            self.product,
            self.target,
            self.x,
            self.x if self.dense is None else self.dense,
            self.mask,
            self.inverse_rest,
            self.x.shape[1],
            HAS_DENSE=self.dense is not None,
            **self.launch,
        )
        if self.kind != PLAIN:
            self._turn(first=True)

    def _advance(self) -> None:
        torch.mm(self.direction, self.system, out=self.product)
        advance_kernel[(len(self.x),)](
            self.x,
            self.residual,
            self.direction,
            self.scaled,
            self.worth,
            self.angle,
            self.loss,
            self.going,
            self.product,
            self.target,
            self.mask,
            self.inverse_rest,
            self.x.shape[1],
            self.tolerance,
            HAS_DENSE=self.dense is not None,
            **self.launch,
        )

    def _turn(self, *, first: bool) -> None:
        if self.basis is not None:
            small = torch.mm(self.scaled, self.basis.T)
            small = torch.bmm(self.cores, small[:, :, None])[:, :, 0]
            torch.mm(small, self.basis, out=self.product)
        elif self.precondition is not None:
            torch.mm(self.residual, self.precondition, out=self.product)
        turn_kernel[(len(self.x),)](
            self.direction,
            self.angle,
            self.going,
            self.residual,
            self.product,
            self.mask,
            self.inverse_rest,
            self.x.shape[1],
            FIRST=first,
            **self.launch,
        )


def _cores(basis: Tensor, inverse_rest: Tensor, mask: Tensor) -> Tensor:
    """Inverses of ``I + B diag(mask / D) Bᵀ``, ``[rows, rank, rank]``."""
    rank = len(basis)
    cores = basis.new_empty(len(mask), rank, rank)
    for index in range(rank):
        cores[:, index] = torch.where(mask, basis[index] * inverse_rest, 0.0) @ basis.T
    wide = cores.double()
    wide.diagonal(dim1=1, dim2=2).add_(1.0)
    factor, _ = torch.linalg.cholesky_ex(wide)  # at least the identity: it cannot fail
    return torch.cholesky_inverse(factor).to(basis.dtype)


def _check(
    x: Tensor,
    worth: Tensor,
    system: Tensor,
    target: Tensor,
    mask: Tensor,
    precondition: Tensor | None,
    basis: Tensor | None,
    rest: Tensor | None,
    dense: Tensor | None,
) -> None:
    rows, columns = x.shape
    if (basis is None) != (rest is None) or (basis is not None and precondition is not None):
        raise ValueError("give basis and rest together, or precondition, or neither")
    rank = 0 if basis is None else basis.shape[0]
    wanted = [
        ("x", x, (rows, columns), torch.float32),
        ("worth", worth, (rows,), torch.float64),
        ("system", system, (columns, columns), torch.float32),
        ("target", target, (rows, columns), torch.float32),
        ("mask", mask, (rows, columns), torch.bool),
        ("precondition", precondition, (columns, columns), torch.float32),
        ("basis", basis, (rank, columns), torch.float32),
        ("rest", rest, (columns,), torch.float32),
        ("dense", dense, (rows, columns), torch.float32),
    ]
    for name, tensor, shape, dtype in wanted:
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device != x.device:
            raise ValueError(
                f"{name} must be contiguous {dtype} {shape} on {x.device}, got {tuple(tensor.shape)} {tensor.dtype}"
            )
