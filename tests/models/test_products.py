# SPDX-License-Identifier: Apache-2.0
"""Linears and gates of measuring passes against float64, with and without the first token alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyprune import backends
from pyprune.models.products import fast_products, gate

# batch, tokens, in, out
SHAPES = [(1, 1, 1, 1), (3, 5, 7, 11), (2, 13, 64, 31), (0, 4, 8, 8), (32, 17, 96, 48)]
compiled = pytest.mark.skipif(
    backends.unavailable("cpp") is not None or backends.choose("matmul", "cpu").backend != "cpp",
    reason="the compiled product is not chosen here",
)


def _sample(shape: tuple[int, ...], bias: bool, strided: bool) -> tuple[nn.Linear, Tensor]:
    batch, tokens, inner, outer = shape
    generator = torch.Generator().manual_seed(sum(shape))
    linear = nn.Linear(inner, outer, bias=bias).requires_grad_(False)
    for parameter in linear.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(batch, tokens, (1 + strided) * inner, generator=generator)[..., :: 1 + strided]
    return linear, x


def _wanted(linear: nn.Linear, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    exact = x.double().requires_grad_()
    made = nn.functional.linear(exact, linear.weight.double(), None if linear.bias is None else linear.bias.double())
    return made.detach(), torch.autograd.grad(made, exact, gradient.double())[0]


@compiled
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("first", ["none", "read", "write"])
def test_values_and_gradients(shape: tuple[int, ...], bias: bool, strided: bool, first: str) -> None:
    linear, x = _sample(shape, bias, strided)
    gradient = torch.randn(*shape[:2], shape[3], generator=torch.Generator().manual_seed(1))
    if first != "none":
        gradient[:, 1:] = 0.0
    wanted, wanted_gradient = _wanted(linear, x, gradient)
    if first == "write":
        wanted[:, 1:] = 0.0
    some = [linear]
    with (
        fast_products(some, read_first=some if first == "read" else (), write_first=some if first == "write" else ()),
        torch.enable_grad(),
    ):
        x.requires_grad_()
        made = linear(x)
        assert "_Product" in type(made.grad_fn).__name__
        # Where only the first token's gradient is read, that of others must not be.
        given = gradient.clone()
        if first != "none":
            given[:, 1:] = torch.nan
        (found,) = torch.autograd.grad(made, x, given)
    assert made.dtype == found.dtype == torch.float32
    torch.testing.assert_close(made.detach().double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), wanted_gradient, rtol=1e-5, atol=1e-5)


@compiled
def test_linears_are_as_before_after_an_error() -> None:
    linear, x = _sample((2, 3, 5, 7), True, False)

    def stop() -> None:
        with fast_products([linear, linear]):
            assert "forward" in linear.__dict__
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop()
    assert "forward" not in linear.__dict__
    linear.weight.zero_()
    with fast_products([linear]):  # weights are read anew each time
        assert torch.equal(linear(x), linear.bias.expand(2, 3, 7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_torchs(dtype: torch.dtype) -> None:
    linear = nn.Linear(3, 2).to(dtype)
    with fast_products([linear]):
        assert "forward" not in linear.__dict__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (0, 4, 8), (4, 13, 31)], ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_gates_of_one(dtype: torch.dtype, shape: tuple[int, ...], first: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    gradient = torch.randn(shape, generator=generator).to(dtype)
    if first:
        gradient[:, 1:] = 0.0
    ones = torch.ones(shape[-1], requires_grad=True)
    with torch.enable_grad():
        made = gate(x, ones, first=first)
        to_x, to_gate = torch.autograd.grad(made, [x, ones], gradient)
    assert torch.equal(made, x)
    assert torch.equal(to_x, gradient)
    wanted = (gradient.double() * x.detach().double()).flatten(0, -2).sum(dim=0)
    assert to_gate.dtype == torch.float32
    torch.testing.assert_close(to_gate.double(), wanted, rtol=1e-5, atol=1e-5)
