# SPDX-License-Identifier: Apache-2.0
"""How often each weight is among those kept, over many random draws without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError, NumericsError
from pyprune.ops import exponential_race, library, races


def draw_counts(
    weight: Tensor,  # any shape
    keep: int,
    draws: int,
    exponent: float = 5.0,
    *,
    among: Tensor | None = None,  # bool, the shape of the weight
    seed: int = 0,
) -> Tensor:  # int32, the shape of the weight
    """Counts of ``draws`` draws of ``keep`` entries each, without replacement, with p ∝ abs(weight)^exponent.

    One draw takes ``keep`` entries one after the other, each with the probability p of those that are left. It is the
    same to let every entry arrive at a random time E / p, E exponential, and to take the first ``keep``: in logarithms,
    the top ``keep`` of exponent · log(abs(weight)) + G with Gumbel noise G = −log E (Efraimidis and Spirakis 2006; Kool
    et al. 2019). No draw is held: a few bits decide almost all entries, because the time of the last arrival varies
    little, and only the few that arrive about then are compared.

    Random numbers are Philox4x32-10 of seed, entry and draw; what is drawn has the same bits on every backend,
    instruction set and number of threads, and the first draws are the same however many there are. Probabilities are
    exact up to 2⁻⁶⁴, those next to 0 and 1 too.

    Parameters
    ----------
    weight : Tensor, any shape
        Any floating dtype, finite.
    keep : int
        Entries of one draw.
    draws : int
        Less than 2³¹.
    exponent : float
        Not negative. 0 draws all weights that are not zero alike.
    among : Tensor of bool, the shape of the weight, optional
        Entries that may be drawn; all of them by default. Random numbers are those of the place among them.
    seed : int
        0 to 2⁶⁴ − 1.

    Returns
    -------
    Tensor of int32, the shape of the weight
        The sum is ``keep * draws``.

    Notes
    -----
    A zero (or what is below 2⁻¹⁰²², which counts as one) has probability 0: it is drawn only after all others. If fewer
    than ``keep`` are not zero, each draw has all of those and the rest uniformly from the zeros, which is the limit of
    equal weights that go to zero.

    Raises
    ------
    InputError
        ``keep`` is more than there is to draw from; arguments out of their ranges.
    NumericsError
        The weight has NaN or infinity.

    Examples
    --------
    >>> draw_counts(torch.tensor([4.0, -8.0, 0.0, 1.0]), keep=2, draws=1000, exponent=1.0)
    tensor([847, 950,   0, 203], dtype=torch.int32)
    """
    _check(weight, draws, exponent, among, seed)
    flat = weight.detach().reshape(-1)
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.float()
    place = None if among is None else among.reshape(-1)
    if place is not None:
        flat = flat[place]
    if not 0 <= keep <= flat.numel():
        raise InputError("draw_counts: keep is out of range", asked=str(keep), seen=f"{flat.numel()} to draw from")
    if not library.all_finite(flat):
        raise NumericsError("draw_counts: the weight has NaN or infinity", hint="check the weights for NaN or inf")
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed  # torch's schema knows int64 only
    drawn: Tensor = _draw_counts(flat.contiguous(), keep, draws, float(exponent), signed)
    if place is not None:
        drawn = torch.zeros(weight.numel(), dtype=torch.int32, device=weight.device).masked_scatter_(place, drawn)
    return drawn.reshape(weight.shape)


def _check(weight: Tensor, draws: int, exponent: float, among: Tensor | None, seed: int) -> None:
    library.check_float("draw_counts", weight=weight)
    if not 0 <= draws < 1 << 31:
        raise InputError("draw_counts: draws is out of range", asked=str(draws), hint="0 to 2^31 - 1")
    if not 0.0 <= exponent < float("inf"):
        raise InputError("draw_counts: the exponent is out of range", asked=str(exponent), hint="0 or more, finite")
    if not 0 <= seed < 1 << 64:
        raise InputError("draw_counts: the seed is out of range", asked=str(seed), hint="0 to 2^64 - 1")
    if among is not None:
        if not isinstance(among, Tensor) or among.dtype != torch.bool:
            raise InputError("draw_counts: among must be a bool tensor", seen=str(getattr(among, "dtype", type(among))))
        library.check_shape("draw_counts", "among", among, tuple(weight.shape))
        library.check_same_device("draw_counts", weight, among)


@backends.implements("draw_counts", "torch")  # what is drawn is exact in the arithmetic that it states
@backends.implements("draw_counts", "reference")
def draw_counts_reference(weight: Tensor, keep: int, draws: int, exponent: float, seed: int) -> Tensor:
    """Draw by draw: the first ``keep`` in a stable order of log E − exponent · log|w|."""
    counts = torch.zeros(weight.numel(), dtype=torch.int32, device=weight.device)
    rates = exponential_race.log_rates(weight, exponent)
    entries = torch.arange(weight.numel(), device=weight.device)
    for draw in range(draws):
        keys = exponential_race.log_exponential(exponential_race.uniform_bits(entries, draw, seed)) - rates
        counts[torch.argsort(keys, stable=True)[:keep]] += 1
    return counts


@backends.implements("draw_counts", "cpp")
def _draw_counts_cpp(weight: Tensor, keep: int, draws: int, exponent: float, seed: int) -> Tensor:
    counts = torch.empty(weight.numel(), dtype=torch.int32)
    backends.extension().draw_counts(
        counts.data_ptr(),
        weight.data_ptr(),
        library.ELEMENT_TYPE[weight.dtype],
        weight.numel(),
        keep,
        draws,
        exponent,
        seed & (1 << 64) - 1,
        SPREAD,
        backends.threads(),
    )
    return counts


@backends.implements("draw_counts", "triton")
def _draw_counts_triton(weight: Tensor, keep: int, draws: int, exponent: float, seed: int) -> Tensor:
    n = weight.numel()
    if keep in (0, n) or not draws:
        return weight.new_full((n,), draws if keep else 0, dtype=torch.int32)
    return races.draw_by_triton(exponential_race.log_rates(weight, exponent), keep, draws, seed, SPREAD)[0]


# Standard deviations of the number of arrivals that the two times are apart from the expected one between which entries
# are compared. Outside of them a draw is made again from all entries, so that this decides about time alone.
SPREAD = 4.5

_draw_counts = library.register(
    "draw_counts(Tensor weight, int keep, int draws, float exponent, int seed) -> Tensor",
    fake=lambda weight, keep, draws, exponent, seed: weight.new_empty(weight.numel(), dtype=torch.int32),
)
