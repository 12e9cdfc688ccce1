# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pyprune import backends, ops
from pyprune.errors import InputError, NumericsError
from pyprune.ops import exponential_race, races
from pyprune.ops.draw_counts import draw_counts_reference

BOUND = 4.5  # standard deviations; seeds are fixed, so that a test passes always or never


def inclusion(p: list[float], keep: int) -> np.ndarray:
    """Probabilities that each entry is among the first `keep`, over all orders."""
    found = np.zeros(len(p))
    for order in itertools.permutations(range(len(p)), keep):
        left, probability = sum(p), 1.0
        for entry in order:
            probability *= p[entry] / left
            left -= p[entry]
        found[list(order)] += probability
    return found


def deviations(counts: torch.Tensor, probability: np.ndarray, draws: int) -> np.ndarray:
    """Of counts from their means, in standard deviations."""
    mean = draws * probability
    return (counts.numpy() - mean) / np.sqrt(mean * (1.0 - probability))


def by_kernel(weight: torch.Tensor, keep: int, draws: int, spread: float, threads: int = 2, seed: int = 3):
    counts = torch.empty(weight.numel(), dtype=torch.int32)
    kind = 3 if weight.dtype == torch.float64 else 0
    addresses = counts.data_ptr(), weight.data_ptr()
    again = backends.extension().draw_counts(*addresses, kind, len(weight), keep, draws, 5.0, seed, spread, threads)
    return counts, again


@pytest.mark.parametrize("keep", [1, 3, 5])
@pytest.mark.parametrize("exponent", [1.0, 5.0])
def test_probabilities_of_a_few_entries(keep, exponent):
    weight = torch.tensor([0.7, -1.0, 1.3, 0.9, 1.1, -0.8])
    draws = 40_000
    counts = ops.draw_counts(weight, keep, draws, exponent, seed=1)
    wanted = inclusion((weight.double().abs() ** exponent).tolist(), keep)
    assert int(counts.sum()) == keep * draws
    assert np.abs(deviations(counts, wanted, draws)).max() < BOUND
    # The same test tells an exponent that is a fifth off.
    other = inclusion((weight.double().abs() ** (1.2 * exponent)).tolist(), keep)
    assert np.abs(deviations(counts, other, draws)).max() > BOUND


def test_probabilities_next_to_0_and_1():
    """An entry of 1e-4, which 16 bits cannot tell from others, and one that is kept but for 1e-4 of the draws."""
    weight, draws = torch.tensor([1e-4, 1.0, 1.0, 1e4], dtype=torch.float64), 200_000
    first = ops.draw_counts(weight[:3], 1, draws, 1.0, seed=5)
    wanted = inclusion(weight[:3].tolist(), 1)
    assert np.abs(deviations(first, wanted, draws)).max() < BOUND
    last = ops.draw_counts(weight[1:], 1, draws, 1.0, seed=5)
    assert np.abs(deviations(last, inclusion(weight[1:].tolist(), 1), draws)).max() < BOUND
    assert 0 < int(first[0]) < 40
    assert 0 < draws - int(last[2]) < 80


def test_pairs_are_drawn_as_often_as_they_should_be():
    """Counts of single draws: which two of four are together."""
    p, draws = [1.0, 2.0, 3.0, 4.0], 1000
    weight = torch.tensor(p)
    pairs: dict[tuple[int, ...], int] = {}
    for seed in range(draws):
        drawn = tuple(ops.draw_counts(weight, 2, 1, 1.0, seed=seed).nonzero()[:, 0].tolist())
        pairs[drawn] = pairs.get(drawn, 0) + 1
    square = 0.0
    for a, b in itertools.combinations(range(4), 2):
        mean = draws * p[a] * p[b] / 10 * (1 / (10 - p[a]) + 1 / (10 - p[b]))
        square += (pairs.get((a, b), 0) - mean) ** 2 / mean
    assert square < 20.5  # chi-square of 5 degrees of freedom: once in a thousand


def test_as_often_as_multinomial():
    draws, keep = 400, 120
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0))
    counts = ops.draw_counts(weight, keep, draws, 2.0, seed=2).double()
    generator, other = torch.Generator().manual_seed(1), torch.zeros(500, dtype=torch.float64)
    for _ in range(draws):
        other[torch.multinomial(weight.double().abs() ** 2, keep, generator=generator)] += 1

    def distance(one: torch.Tensor) -> float:
        pooled = (one + other) / (2 * draws)
        spread = (2 * draws * pooled * (1 - pooled)).clamp(min=1.0)
        return float(((one - other) ** 2 / spread).sum())

    # About chi-square of at most 500 degrees of freedom; fixed sums only make it smaller.
    assert distance(counts) < 500 + BOUND * math.sqrt(1000)
    assert distance(ops.draw_counts(weight, keep, draws, 2.5, seed=2).double()) > 500 + 2 * BOUND * math.sqrt(1000)


@pytest.mark.parametrize(
    ("n", "keep", "draws", "zeros"), [(2, 1, 3, 0), (37, 9, 17, 0), (9001, 4000, 9, 10), (60, 55, 9, 20)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_as_draws_one_by_one(n, keep, draws, zeros, dtype, generator):
    weight = torch.randn(n, generator=generator, dtype=dtype)
    weight[:zeros] = 0.0
    wanted = draw_counts_reference(weight, keep, draws, 5.0, 3)
    for threads in (1, 2):
        for spread in (4.5, 0.02, 0.0):
            counts, again = by_kernel(weight, keep, draws, spread, threads)
            assert torch.equal(counts, wanted)
            assert again == (draws if spread == 0.0 else 0) or spread == 0.02


def test_most_entries_are_judged_by_16_bits():
    """Not one of these draws has to be made again, and few entries are compared."""
    weight = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert by_kernel(weight, 30_000, 64, 4.5)[1] == 0
    times = races.race_times(exponential_race.log_rates(weight, 5.0), 30_000, 4.5)
    assert times.room < 3_000


def test_the_first_draws_are_the_same_however_many(backend):
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0))
    drawn = [ops.draw_counts(weight, 20, draws, seed=9) for draws in range(12)]
    steps = [after - before for before, after in itertools.pairwise(drawn)]
    assert all(int(step.sum()) == 20 and set(step.tolist()) == {0, 1} for step in steps)
    assert len({tuple(step.tolist()) for step in steps}) > 1
    assert not torch.equal(drawn[-1], ops.draw_counts(weight, 20, 11, seed=10))


def test_zeros_come_last_and_alike(backend):
    weight = torch.tensor([0.0, 2.0, -0.0, 1e-20, 0.0, 3.0])
    counts = ops.draw_counts(weight, 3, 20)
    assert counts.tolist() == [0, 20, 0, 20, 0, 20]
    counts = ops.draw_counts(weight, 4, 60)
    assert counts[[1, 3, 5]].tolist() == [60] * 3
    assert all(8 < count < 32 for count in counts[[0, 2, 4]].tolist())
    assert ops.draw_counts(torch.zeros(2, 2), 1, 40).min() > 3


def test_exponent_0_draws_all_alike(backend):
    counts = ops.draw_counts(torch.tensor([1e-30, 5.0, 1e30, 0.0]), 1, 60, 0.0)
    assert counts[3] == 0
    assert counts[:3].min() > 8


def test_among(generator):
    weight = torch.randn(6, 8, generator=generator)
    among = torch.rand(6, 8, generator=generator) < 0.5
    counts = ops.draw_counts(weight, 10, 50, among=among)
    assert counts.shape == weight.shape
    assert counts.dtype == torch.int32
    assert int(counts[~among].sum()) == 0
    assert torch.equal(counts[among], ops.draw_counts(weight[among], 10, 50))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_types_are_taken_as_they_are(dtype, generator):
    weight = torch.randn(30, generator=generator).to(dtype)
    assert torch.equal(ops.draw_counts(weight, 9, 5), ops.draw_counts(weight.double(), 9, 5))


def test_all_none_and_nothing(backend):
    weight = torch.ones(5)
    assert ops.draw_counts(weight, 5, 3).tolist() == [3] * 5
    assert ops.draw_counts(weight, 0, 3).tolist() == [0] * 5
    assert ops.draw_counts(weight, 2, 0).tolist() == [0] * 5
    assert ops.draw_counts(torch.zeros(0, 4), 0, 3).shape == (0, 4)


def test_errors_say_what_was_seen():
    weight = torch.ones(2, 3)
    with pytest.raises(InputError, match="6 to draw from"):
        ops.draw_counts(weight, 7, 1)
    with pytest.raises(InputError, match="draws"):
        ops.draw_counts(weight, 1, -1)
    with pytest.raises(InputError, match="exponent"):
        ops.draw_counts(weight, 1, 1, math.nan)
    with pytest.raises(InputError, match="seed"):
        ops.draw_counts(weight, 1, 1, seed=-1)
    with pytest.raises(InputError, match="bool"):
        ops.draw_counts(weight, 1, 1, among=weight)
    with pytest.raises(InputError, match="shape"):
        ops.draw_counts(weight, 1, 1, among=weight[0] > 0)
    with pytest.raises(NumericsError, match="NaN"):
        ops.draw_counts(torch.tensor([1.0, math.inf]), 1, 1)


def test_philox_is_that_of_its_paper():
    """The known answers that its authors publish."""
    known = {
        ((0, 0, 0, 0), 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ((0xFFFFFFFF,) * 4, 2**64 - 1): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822): (
            0xD16CFE09,
            0x94FDCCEB,
            0x5001E420,
            0x24126EA1,
        ),
    }
    for (counter, seed), words in known.items():
        a, b, c, d = (torch.tensor(word) for word in counter)
        assert tuple(int(word) for word in exponential_race.philox((a, b, c, d), seed)) == words


def test_logarithms_within_2_units_in_the_last_place():
    random = np.random.default_rng(0)
    near_one = 1.0 + random.uniform(-1e-3, 1e-3, 20_000)
    x = np.concatenate([np.exp(random.uniform(-700, 700, 50_000)), near_one, random.uniform(0.5, 2.0, 50_000)])
    wanted = np.log(x.astype(np.longdouble))
    error = np.abs(exponential_race.log(torch.from_numpy(x)).numpy() - wanted)
    assert float((error / np.spacing(np.abs(wanted.astype(np.float64)) + 5e-324)).max()) <= 2.0


def test_exponential_variables_are_exact_at_both_ends():
    """log(−log(1 − v)) of the smallest, middle and largest v, against 40 digits and more."""
    bits = torch.tensor([0, 1, 2**62, 2**62 - 1, 2**63 - 1, -(2**63), -2, -1])
    wanted = [
        -45.054566736396443,
        -43.955954447728334,
        -1.2458993237072383,
        -1.2458993237072383,
        -0.36651292058166433,
        -0.36651292058166433,
        3.7831880972689245,
        3.8078743493139728,
    ]
    got = exponential_race.log_exponential(bits)
    assert torch.allclose(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-15, atol=0.0)
