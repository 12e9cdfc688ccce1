# SPDX-License-Identifier: Apache-2.0
"""Moments against direct sums in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyprune.errors import InputError, NumericsError
from pyprune.stats import Moments


def _sample(tokens: int = 301, inputs: int = 7, outputs: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(tokens, inputs, generator=generator) @ mix + 3.0
    y = x @ torch.randn(inputs, outputs, generator=generator) + torch.randn(tokens, outputs, generator=generator)
    return x, y


@pytest.fixture
def filled() -> tuple[Tensor, Tensor, Moments]:
    x, y = _sample()
    moments = Moments(7, {"a": 2, "b": 3}, chunk=64)
    for part in range(0, 301, 100):
        rows = slice(part, part + 100)
        moments.add(x[rows], {"a": y[rows, :2], "b": y[rows, 2:]})
    return x.double(), y.double(), moments.finish()


def test_sums_equal_direct_ones(filled: tuple[Tensor, Tensor, Moments]) -> None:
    x, y, moments = filled
    assert moments.tokens == 301
    torch.testing.assert_close(moments.gram, x.T @ x / 301, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.cross("b"), y[:, 2:].T @ x / 301, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(moments.target_mean("a"), y[:, :2].mean(0), rtol=1e-6, atol=1e-6)
    assert moments.target_energy("b") == pytest.approx(float(y[:, 2:].square().sum()) / 301, rel=1e-6)


def test_objective_identity(filled: tuple[Tensor, Tensor, Moments]) -> None:
    # E|y - Wx|^2 = E|y|^2 - 2<C, W> + <W G, W>, without a second pass over the data.
    x, y, moments = filled
    w = torch.randn(3, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    direct = float((y[:, 2:] - x @ w.T).square().sum()) / 301
    identity = moments.target_energy("b") - 2 * float((moments.cross("b") * w).sum())
    identity += float(((w @ moments.gram) * w).sum())
    assert identity == pytest.approx(direct, rel=1e-6)
    assert moments.loss("b", w, None) == pytest.approx(direct, rel=1e-6)
    bias = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    direct = float((y[:, 2:] - x @ w.T - bias).square().sum()) / 301
    assert moments.loss("b", w, bias) == pytest.approx(direct, rel=1e-6)
    energy = float(y[:, 2:].square().sum()) / 301
    assert moments.error("b", w, bias) == pytest.approx(direct / energy, rel=1e-6)


def test_centring_equals_a_protected_column_of_ones() -> None:
    x, y = (part.double() for part in _sample())
    moments = Moments(7, {"a": 2})
    moments.add(x, {"a": y[:, :2]})
    centred = moments.finish().centred()
    weight = torch.linalg.solve(centred.gram, centred.cross("a").T).T
    bias = centred.bias("a", weight)
    augmented = torch.cat([x, torch.ones(301, 1, dtype=torch.float64)], dim=1)
    both = torch.linalg.lstsq(augmented, y[:, :2]).solution.T
    torch.testing.assert_close(weight, both[:, :7], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(bias, both[:, 7], rtol=1e-8, atol=1e-9)
    # Removing one weight by OBS on the centred gram is removing it from the augmented problem, the ones kept.
    keep = [0, 1, 3, 4, 5, 6]
    small = torch.linalg.solve(centred.gram[keep][:, keep], centred.cross("a")[:, keep].T).T
    reference = torch.linalg.lstsq(augmented[:, [*keep, 7]], y[:, :2]).solution.T
    torch.testing.assert_close(small, reference[:, :6], rtol=1e-8, atol=1e-9)
    assert centred.target_energy("a") == pytest.approx(
        float((y[:, :2] - y[:, :2].mean(0)).square().sum()) / 301, rel=1e-6
    )


def test_padding_never_enters() -> None:
    x, y = _sample(60)
    keep = torch.arange(60) % 3 != 1
    clean, dirty = Moments(7, {"a": 5}), Moments(7, {"a": 5}, chunk=16)
    clean.add(x[keep], {"a": y[keep]})
    x, y = x.clone(), y.clone()
    x[~keep], y[~keep] = float("nan"), float("inf")
    dirty.add(x.reshape(6, 10, 7), {"a": y.reshape(6, 10, 5)}, keep.reshape(6, 10))
    assert dirty.finish().tokens == clean.finish().tokens == int(keep.sum())
    torch.testing.assert_close(dirty.gram, clean.gram, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dirty.cross("a"), clean.cross("a"), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 301, 5000])
def test_chunk_size_does_not_matter(chunk: int) -> None:
    x, y = _sample()
    moments = Moments(7, {"a": 5}, chunk=chunk)
    moments.add(x, {"a": y})
    torch.testing.assert_close(moments.finish().gram, x.double().T @ x.double() / 301, rtol=1e-6, atol=1e-6)


def test_many_tokens_lose_no_digits() -> None:
    # Float32 sums of this many equal squares would be off in the third digit.
    moments = Moments(2, {"a": 1})
    for _ in range(50):
        moments.add(torch.full((20_000, 2), 0.1), {"a": torch.full((20_000, 1), 0.1)})
    one = float(torch.tensor(0.1)) ** 2
    assert float(moments.finish().gram[0, 1]) == pytest.approx(one, rel=1e-6)
    assert moments.target_energy("a") == pytest.approx(one, rel=1e-9)


def test_wrong_use_is_named() -> None:
    moments = Moments(3, {"a": 2}, name="block.0")
    good = torch.zeros(4, 3)
    with pytest.raises(InputError, match=r"block\.0.*inputs must be"):
        moments.add(torch.zeros(4, 2), {"a": torch.zeros(4, 2)})
    with pytest.raises(InputError, match="do not match"):
        moments.add(good, {"b": torch.zeros(4, 2)})
    with pytest.raises(InputError, match="outputs of 'a'"):
        moments.add(good, {"a": torch.zeros(3, 2)})
    with pytest.raises(InputError, match="keep must be bool"):
        moments.add(good, {"a": torch.zeros(4, 2)}, torch.ones(4, dtype=torch.long))
    with pytest.raises(InputError, match="no real token"):
        moments.finish()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(bad: float) -> None:
    moments = Moments(3, {"a": 2}, name="encoder.layer.4")
    x = torch.ones(4, 3)
    x[1, 2] = bad
    moments.add(x, {"a": torch.ones(4, 2)})
    with pytest.raises(NumericsError, match=r"encoder\.layer\.4.*inputs are not finite"):
        moments.finish()
