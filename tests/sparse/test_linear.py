# SPDX-License-Identifier: Apache-2.0
"""SparseLinear does what nn.Linear does with the same zeros: values, gradients, types, copies and state dicts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from pyprune.errors import InputError
from pyprune.patterns import NM, Block, Unstructured
from pyprune.sparse import SparseLinear

PATTERNS = {"bitmask": Unstructured(0.7), "nm": NM(2, 4), "block": Block(2, 4, 0.5), "dense": Unstructured(0.0)}


def pair(pattern: str = "bitmask", dtype: torch.dtype | None = None, **options: bool) -> tuple[nn.Linear, SparseLinear]:
    linear = nn.Linear(24, 14)
    mask = PATTERNS[pattern].select(linear.weight.detach().abs())
    linear.weight.data.mul_(mask)
    return linear, SparseLinear.from_linear(linear, mask, dtype=dtype, **options)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.int8])
def test_a_drop_in(pattern: str, dtype: torch.dtype | None) -> None:
    linear, sparse = pair(pattern, dtype)
    assert sparse.sparse.dtype == (dtype or torch.float32)
    linear.weight.data.copy_(sparse.weight.float())
    for shape in ((24,), (1, 24), (5, 24), (2, 3, 24), (0, 24)):
        x, same = (torch.randn(shape).requires_grad_() for _ in range(2))
        same.data.copy_(x.data)
        y, wanted = sparse(x), linear(same)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
        linear.bias.grad = None
        gradient = torch.randn_like(y)
        y.backward(gradient)
        got, linear.bias.grad = linear.bias.grad, None
        wanted.backward(gradient)
        torch.testing.assert_close(x.grad, same.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got, linear.bias.grad, rtol=1e-5, atol=1e-5)


def test_a_region_of_autocast_casts_as_for_a_linear() -> None:
    linear, sparse = pair()
    compiled = torch.compile(sparse, fullgraph=True, backend="eager")
    for x in (torch.randn(3, 24), torch.randn(3, 24, dtype=torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16):
            wanted = linear(x)
            for module in (sparse, compiled):
                assert module(x).dtype == wanted.dtype == torch.bfloat16
                torch.testing.assert_close(module(x), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("trained", [False, True])
def test_compiles_whole(trained: bool) -> None:
    _, sparse = pair(trainable_values=trained)
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 24)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), sparse(x))
    x.requires_grad_()
    compiled(x).sum().backward()
    torch.testing.assert_close(x.grad, sparse.weight.sum(0).expand(3, -1))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_state_dict_there_and_back(pattern: str, dtype: torch.dtype) -> None:
    _, sparse = pair(pattern, dtype)
    state = sparse.state_dict()
    wanted = {"values", "layout", "bias"} | ({"bits"} if pattern != "dense" else set())
    assert set(state) == wanted | ({"scale"} if dtype == torch.int8 else set())
    model = nn.Sequential(pair("bitmask")[1])
    model.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})
    other: SparseLinear = model[0]  # type: ignore[assignment]
    assert torch.equal(other.weight, sparse.weight)
    assert str(other) == str(sparse)
    assert other.sparse.values.data_ptr() != sparse.sparse.values.data_ptr()
    for copied in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(copied(torch.ones(24)), sparse(torch.ones(24)))


def test_state_dicts_that_do_not_fit() -> None:
    _, sparse = pair()
    before, state = sparse.weight, sparse.state_dict()
    bits = state["bits"].clone()
    bits[0, 0] ^= 1
    layout = state["layout"].clone()
    layout[1] = 15
    wrong = [
        (state | {"bits": bits}, "number of weights"),
        (state | {"layout": layout}, "another shape"),
        (state | {"layout": torch.tensor([9, 14, 24, 1, 1])}, "unknown format"),
        (state | {"layout": torch.tensor(3)}, "not five"),
        (state | {"values": torch.full_like(state["values"], float("nan"))}, "NaN"),
        (state | {"values": state["values"].to(torch.int8)}, "scale"),
        ({name: tensor for name, tensor in state.items() if name != "bits"}, "not the tensors"),
        ({name: tensor for name, tensor in state.items() if name != "values"}, 'Missing key.*"values"'),
        (state | {"weight": before}, 'Unexpected key.*"weight"'),
    ]
    for changed, message in wrong[:-1]:
        with pytest.raises(RuntimeError, match=message):
            sparse.load_state_dict(changed)
        assert torch.equal(sparse.weight, before)
    with pytest.raises(RuntimeError, match=wrong[-1][1]):
        sparse.load_state_dict(wrong[-1][0])
    assert sparse.load_state_dict({"bias": state["bias"]}, strict=False).missing_keys == ["values", "layout"]


def test_types_change_as_those_of_a_linear() -> None:
    linear, sparse = pair()
    assert torch.equal(sparse.half().weight, linear.weight.half())
    assert sparse.bias is not None
    assert sparse.bias.dtype == torch.float16
    assert sparse.to(torch.bfloat16).sparse.dtype == torch.bfloat16
    doubled = pair()[1].double()
    assert (doubled.sparse.dtype, doubled.bias.dtype) == (torch.float32, torch.float64)  # type: ignore[union-attr]
    assert doubled(torch.ones(24, dtype=torch.float64)).dtype == torch.float64
    whole = pair(dtype=torch.int8)[1].half()
    assert (whole.sparse.dtype, whole.sparse.scale.dtype) == (torch.int8, torch.float32)  # type: ignore[union-attr]


def test_trained_values_learn_and_the_zeros_stay() -> None:
    linear, sparse = pair(trainable_values=True)
    assert [name for name, _ in sparse.named_parameters()] == ["bias", "values"]
    mask, before = linear.weight != 0, sparse.weight.detach().clone()
    step = torch.optim.SGD(sparse.parameters(), lr=0.1)
    x = torch.randn(8, 24)
    sparse(x).square().sum().backward()
    linear(x).square().sum().backward()
    torch.testing.assert_close(sparse.values.grad, linear.weight.grad[mask])  # type: ignore[union-attr, index]
    step.step()
    assert torch.equal(sparse.weight != 0, mask)
    assert not torch.equal(sparse.weight, before)
    frozen = SparseLinear(pair()[1].sparse, nn.Parameter(torch.zeros(14)))
    frozen.load_state_dict(sparse.state_dict())
    assert torch.equal(frozen.weight, sparse.weight)
    sparse.load_state_dict(pair()[1].state_dict())
    assert copy.deepcopy(sparse).half().values.dtype == torch.float16  # type: ignore[union-attr]
    with pytest.raises(InputError, match="cannot be trained"):
        pair(dtype=torch.int8, trainable_values=True)


def test_wrong_requests() -> None:
    linear, sparse = pair()
    with pytest.raises(InputError, match="no pattern to be stored as nm"):
        SparseLinear.from_linear(linear, format="nm")
    with pytest.raises(InputError, match="the bias does not fit"):
        SparseLinear(sparse.sparse, torch.zeros(3))
    with pytest.raises((AttributeError, KeyError)):
        sparse.weight = nn.Parameter(torch.zeros(14, 24))  # type: ignore[misc]
    assert SparseLinear.from_linear(nn.Linear(4, 3, bias=False)).bias is None
