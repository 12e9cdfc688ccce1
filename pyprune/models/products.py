# SPDX-License-Identifier: Apache-2.0
"""Linears of an encoder by the project's own matrix product where that is the faster one; gradients of inputs only.

Passes that measure gates and gather moments change no weight, so that a linear owes its input's gradient and nothing
else. Of a classifier's last block only the first token is read: what only other tokens would be told is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyprune import backends, ops


class _Product(torch.autograd.Function):
    """``x Wᵀ + b``, without gradients of ``W`` and ``b``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, across: Tensor, bias: Tensor | None, write: bool, read: bool
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.read = read
        if not write:
            return product(x, across, bias)
        made = x.new_zeros(*x.shape[:-1], across.shape[1])
        made[:, 0] = product(x[:, 0], across, bias)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        if not ctx.read:
            return product(gradient, weight, None), None, None, None, None, None
        found = gradient.new_zeros(*gradient.shape[:-1], weight.shape[1])
        found[:, 0] = product(gradient[:, 0], weight, None)
        return found, None, None, None, None, None


def product(x: Tensor, across: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b`` by the project's own product, whose every row has the bits that it would have alone.

    Parameters
    ----------
    x : Tensor, shape (..., in)
    across : Tensor, shape (in, out)
        ``Wᵀ``.
    bias : Tensor, shape (out,), optional
    """
    made = ops.matmul(x.reshape(-1, x.shape[-1]), across)
    return (made if bias is None else made.add_(bias)).view(*x.shape[:-1], across.shape[1])


@contextmanager
def fast_products(
    linears: Sequence[nn.Linear], *, write_first: Sequence[nn.Linear] = (), read_first: Sequence[nn.Linear] = ()
) -> Iterator[None]:
    """Within, linears of float32 on the CPU multiply by :func:`pyprune.ops.matmul`, if that is compiled.

    Weights and biases get no gradients there, and must hold still: a transposed copy of every weight is made at the
    start. Sums are in another order than torch's, so that results differ by rounding.

    Parameters
    ----------
    linears : sequence of nn.Linear
    write_first : sequence of nn.Linear
        Those of which only the first token's output is read, which is all they then compute; zero for the rest.
    read_first : sequence of nn.Linear
        Those whose output has a gradient at the first token only.
    """
    changed: list[nn.Module] = []
    try:
        for linear in linears:
            if _faster(linear) and "forward" not in linear.__dict__:
                linear.forward = _forward(  # type: ignore[method-assign]
                    linear, _among(linear, write_first), _among(linear, [*write_first, *read_first])
                )
                changed.append(linear)
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own forward shows through again


def _among(linear: nn.Linear, linears: Sequence[nn.Linear]) -> bool:
    return any(linear is other for other in linears)


def _faster(linear: nn.Linear) -> bool:
    """Whether the compiled product is chosen where the weight is; elsewhere torch's own is at least as fast."""
    weight = linear.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not weight.is_contiguous():
        return False
    return backends.choose("matmul", "cpu").backend == "cpp"


def _forward(linear: nn.Linear, write: bool, read: bool) -> Any:
    weight = linear.weight.detach()
    across, bias = weight.T.contiguous(), None if linear.bias is None else linear.bias.detach()

    def forward(x: Tensor) -> Tensor:
        made: Tensor = _Product.apply(x, weight, across, bias, write, read)  # type: ignore[no-untyped-call]
        return made

    return forward


class _Gate(torch.autograd.Function):
    """``x`` times gates of one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, first: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.first, ctx.dtype = first, gate.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (gradient,) = ctx.saved_tensors, gradients
        rows, read = (gradient[:, 0], x[:, 0]) if ctx.first else (gradient, x)
        wide = torch.promote_types(x.dtype, torch.float32)
        found = (rows.to(wide) * read.to(wide)).reshape(-1, x.shape[-1]).sum(dim=0)
        return gradient, found.to(ctx.dtype), None


def gate(x: Tensor, ones: Tensor, *, first: bool = False) -> Tensor:
    """``x`` as it is, but as if multiplied by gates of one ``ones`` ``[in]``, which get the gradient of that.

    Parameters
    ----------
    x : Tensor, shape (batch, tokens, in)
    ones : Tensor, shape (in,)
        Only asks for a gradient; its values are not read.
    first : bool
        What is made of ``x`` has a gradient at the first token only.
    """
    made: Tensor = _Gate.apply(x, ones, first)  # type: ignore[no-untyped-call]
    return made
