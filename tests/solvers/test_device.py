# SPDX-License-Identifier: Apache-2.0
"""Every solver leaves its tensors on their device: seen on an emulated one, because GPUs are rare."""

from __future__ import annotations

import pytest
import torch
from emulated_device import EmulatedDevice
from problems import features, gram_of
from torch import Tensor

from pyprune import NM, Block, LayerProblem, Unstructured, solve
from pyprune.errors import InputError
from pyprune.solvers import available
from pyprune.stats import Moments

PATTERNS = [
    Unstructured(0.5, "row"),
    Unstructured(0.6, "layer"),
    NM(2, 4),
    Block(2, 4, 0.5),
]


@pytest.fixture
def device():
    with EmulatedDevice() as mode:
        yield mode


def made(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 16, generator=generator), gram_of(features(80, 16, generator, "correlated"))


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.describe())
@pytest.mark.parametrize("solver", available())
def test_same_as_on_the_host(device, solver, pattern, generator):
    weight, gram = made(generator)
    cross = weight.double() @ gram + 0.1 * torch.randn(6, 16, generator=generator, dtype=torch.float64)
    wanted = solve(LayerProblem(weight, gram, cross), pattern, solver, refit=True)
    problem = LayerProblem(device.put(weight), device.put(gram), device.put(cross))
    found = solve(problem, pattern, solver, refit=True)
    assert found.weight.device == found.mask.device == problem.weight.device != weight.device
    assert found.error == pytest.approx(wanted.error, rel=1e-3)
    if found.condition is not None:
        assert found.condition == pytest.approx(wanted.condition, rel=1e-3)


def test_moments(device, generator):
    x, y = torch.randn(40, 5, generator=generator), torch.randn(40, 3, generator=generator)
    moments = Moments(5, {"query": 3}, device="meta", chunk=16)
    moments.add(device.put(x), {"query": device.put(y)}, device.put(torch.arange(40) % 3 > 0))
    assert float(moments.finish().gram.trace()) == pytest.approx(float(x[torch.arange(40) % 3 > 0].square().sum()) / 26)


def test_the_emulation_sees_a_mix(device, generator):
    weight, gram = made(generator)
    with pytest.raises(InputError, match="different devices"):
        LayerProblem(device.put(weight), gram)
    with pytest.raises(AssertionError, match="mixes devices"):
        device.put(weight) + weight
