# SPDX-License-Identifier: Apache-2.0
"""Gate statistics against sums written out, and batches that are not finite."""

from __future__ import annotations

import pytest
import torch

from pyprune.errors import InputError, NumericsError
from pyprune.stats import GateGradients, Moments, energies, grouped


def test_sums_are_those_of_all_batches() -> None:
    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    gates = GateGradients({"a": 6, "b": 1}, decay=0.9, store=True)
    for row in rows:
        assert gates.add({"a": row, "b": row[:1]})
    exact = rows.double()
    assert gates.batches == 5
    assert torch.allclose(gates.absolute("a"), exact.abs().sum(0), rtol=1e-15)
    assert torch.allclose(gates.square("a"), exact.square().sum(0), rtol=1e-15)
    assert torch.equal(gates.vectors("a"), rows)
    assert torch.equal(gates.vectors("b"), rows[:, :1])
    weights = 0.1 * 0.9 ** torch.arange(4, -1, -1, dtype=torch.float64)
    assert torch.allclose(gates.average("a"), (weights[:, None] * exact.abs()).sum(0), rtol=1e-13)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_batch_that_is_not_finite_leaves_no_trace(bad: float) -> None:
    gates = GateGradients({"a": 2, "b": 1}, decay=0.5, store=True)
    good = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    assert gates.add(good)
    # It is bad in one site only, and has to stay out of the other too.
    assert not gates.add({"a": torch.tensor([5.0, 5.0]), "b": torch.tensor([bad])})
    assert (gates.batches, gates.excluded) == (1, 1)
    assert gates.absolute("a").tolist() == [1.0, 2.0]
    assert gates.average("a").tolist() == [0.5, 1.0]
    assert gates.vectors("a").tolist() == [[1.0, 2.0]]


def test_nothing_finite_is_an_error() -> None:
    gates = GateGradients({"a": 1}, store=True)
    gates.add({"a": torch.tensor([torch.nan])})
    assert gates.vectors("a").shape == (0, 1)
    with pytest.raises(NumericsError, match="no batch has finite"):
        gates.check()


def test_what_was_not_kept_is_said() -> None:
    gates = GateGradients({"a": 2})
    with pytest.raises(InputError, match="moving average"):
        gates.average("a")
    with pytest.raises(InputError, match="single batches"):
        gates.vectors("a")
    with pytest.raises(InputError, match="do not fit"):
        gates.add({"a": torch.ones(3)})
    with pytest.raises(InputError, match="do not fit"):
        gates.add({"b": torch.ones(2)})
    with pytest.raises(InputError, match="decay"):
        GateGradients({"a": 1}, decay=1.0)


def test_grouping() -> None:
    values = torch.arange(12.0).reshape(2, 6)
    assert grouped(values, 3).tolist() == [[3.0, 12.0], [21.0, 30.0]]
    assert grouped(values, 3, "mean").tolist() == [[1.0, 4.0], [7.0, 10.0]]
    for width, how in ((4, "sum"), (0, "sum"), (2, "product")):
        with pytest.raises(InputError, match="groups"):
            grouped(values, width, how)


def test_energy_is_the_loss_from_deleting_an_input_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=generator)
    weight = torch.randn(3, 5, generator=generator)
    moments = Moments(5, {})
    moments.add(x, {})
    found = energies(moments.finish().gram.diagonal(), weight)
    for unit in range(5):
        without = weight.clone()
        without[:, unit] = 0.0
        lost = (x.double() @ (weight - without).double().T).square().mean()
        assert float(found[unit]) == pytest.approx(float(lost), rel=1e-6)
