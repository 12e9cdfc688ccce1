# SPDX-License-Identifier: Apache-2.0
"""Masks drawn at random, with large weights more likely to stay: candidates among which training chooses.

Of "Breaking through deterministic barriers: randomized pruning mask generation and selection" (Li et al., Findings of
EMNLP 2023): p ∝ |w|^q for every weight of a matrix, T draws of all weights that stay, without replacement, and the
weights that are drawn most often stay. T says how random it is: with one draw most, with many the mask is that of the
largest weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError
from pyprune.patterns import kept_count

Kind = Literal["votes", "band", "top", "uniform", "magnitude"]
RATIOS = (5e-5, 1e-4, 8e-5, 3e-4)  # the published cycle over candidates


@dataclass(frozen=True)
class MaskDraw:
    """How the mask of a matrix is drawn.

    Parameters
    ----------
    kind : {"votes", "band", "top", "uniform", "magnitude"}
        ``"votes"``: all weights compete. ``"band"``: only those whose size is within a factor ``band`` of the smallest
        that a mask by size would keep; larger ones stay, smaller ones go. ``"top"``: all but ``open`` of the weights
        that stay are the largest ones, the others compete. ``"uniform"``: any weights, all alike. ``"magnitude"``: the
        largest, nothing is random.
    exponent : float
        q.
    ratio : float
        Draws for every weight that goes (of the matrix as a whole).
    draws : int, optional
        A number of draws, in place of the ratio.
    band : float
    open : int

    Examples
    --------
    >>> MaskDraw(ratio=3e-4).count(numel=768 * 768, keep=271310)
    95
    """

    kind: Kind = "votes"
    exponent: float = 5.0
    ratio: float = RATIOS[0]
    draws: int | None = None
    band: float = 1.5
    open: int = 3000

    def __post_init__(self) -> None:
        if self.kind not in ("votes", "band", "top", "uniform", "magnitude"):
            raise InputError(f"unknown kind of mask {self.kind!r}", hint="votes, band, top, uniform or magnitude")
        if not 0.0 < self.ratio < float("inf") or (self.draws is not None and self.draws < 1):
            raise InputError("a mask needs at least one draw", seen=f"ratio {self.ratio}, draws {self.draws}")
        if not self.band >= 1.0 or self.open < 0:
            raise InputError("a band is a factor of 1 or more, open not negative", seen=f"{self.band}, {self.open}")

    def count(self, numel: int, keep: int) -> int:
        """T, the number of draws."""
        if self.draws is not None:
            return self.draws
        return max(int((numel - keep) * self.ratio), 1)


# The prune types of the released code, by their numbers. Type 1 has a draw for so many weights that stay, not that go;
# type 4 a number of draws for each shape, of which this is the one of attention's matrices in BERT-base.
PUBLISHED_DRAWS = {
    0: MaskDraw("magnitude"),
    2: MaskDraw(),
    3: MaskDraw("uniform"),
    4: MaskDraw(exponent=1.0, draws=27),
    5: MaskDraw("band"),
    6: MaskDraw("top", exponent=30.0),
}


def draw_mask(
    weight: Tensor, sparsity: float, draw: MaskDraw | None = None, *, among: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Draw a mask of a matrix.

    Parameters
    ----------
    weight : Tensor, any shape
        Floating, finite.
    sparsity : float
        Of the mask, 0 to 1; :func:`pyprune.patterns.kept_count` rounds.
    draw : MaskDraw, optional
        Default: type 2 of the released code.
    among : Tensor of bool, the shape of the weight, optional
        Weights that may stay; the others stay pruned.
    seed : int
        0 to 2⁶⁴ − 1.

    Returns
    -------
    Tensor of bool, the shape of the weight
        True = kept, exactly as many as were asked for. Weights with equally many votes stay by size, of equal size the
        earlier ones.

    Raises
    ------
    InputError
        Fewer weights may stay than have to; arguments that do not fit.

    Examples
    --------
    >>> weight = torch.tensor([[4.0, 0.1, -3.0, 0.2]])
    >>> draw_mask(weight, 0.5, MaskDraw(draws=100))
    tensor([[ True, False,  True, False]])
    """
    draw = MaskDraw() if draw is None else draw
    keep = kept_count(weight.numel(), sparsity)
    sizes = weight.detach().abs().float().reshape(-1)
    free = torch.ones_like(sizes, dtype=torch.bool) if among is None else among.reshape(-1)
    if free.shape != sizes.shape or free.dtype != torch.bool:
        raise InputError("among is bool, in the shape of the weight", seen=str(getattr(among, "dtype", among)))
    if keep > int(free.sum()):
        raise InputError("fewer weights may stay than have to", asked=str(keep), seen=str(int(free.sum())))
    by_size = _largest(sizes, free, keep)
    if draw.kind == "magnitude" or keep in (0, int(free.sum())):
        return by_size.reshape(weight.shape)
    sure, open_ = _parts(draw, sizes, free, by_size, keep)
    votes = ops.draw_counts(
        sizes,
        keep - int(sure.sum()),
        1 if draw.kind == "uniform" else draw.count(len(sizes), keep),
        0.0 if draw.kind == "uniform" else draw.exponent,
        among=open_,
        seed=seed,
    )
    # Sizes decide among equal votes: a fraction below 1 added to whole numbers.
    scores = votes.double() + sizes.double() / (1.01 * float(sizes.max()) + 1e-300)
    kept = _largest(scores, open_, keep - int(sure.sum()))
    return (sure | kept).reshape(weight.shape)


def _parts(draw: MaskDraw, sizes: Tensor, free: Tensor, by_size: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """What stays in any case, and what may stay."""
    if draw.kind == "band":
        border = sizes[by_size].min()
        sure = by_size & (sizes > border * draw.band)
        return sure, free & ~sure & (sizes >= border / draw.band)
    if draw.kind == "top":
        sure = _largest(sizes, free, max(keep - draw.open, 0))
        return sure, free & ~sure
    return torch.zeros_like(free), free


def _largest(scores: Tensor, free: Tensor, count: int) -> Tensor:
    """The ``count`` largest of those that may stay; of equal ones the earlier."""
    return ops.select(scores.masked_fill(~free, -torch.inf)[None], count)[0]


def draw_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    draw: MaskDraw | None = None,
    *,
    among: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    candidate: int = 0,
) -> dict[str, Tensor]:
    """Draw masks of all matrices of a model, each to the same sparsity, by random numbers of its own.

    Parameters
    ----------
    weights : mapping of str to Tensor
        By parameter name.
    sparsity, draw
        See :func:`draw_mask`.
    among : mapping of str to Tensor of bool, optional
        Masks to stay within; those of all weights.
    seed, candidate : int
        Not negative. With a matrix's name they are its seed.

    Raises
    ------
    InputError
        As :func:`draw_mask`, or ``among`` lacks a weight.
    """
    if among is not None and (missing := [name for name in weights if name not in among]):
        raise InputError(f"there is no mask of {missing[0]!r} to stay within")
    return {
        name: draw_mask(
            weight,
            sparsity,
            draw,
            among=None if among is None else among[name].to(weight.device),
            seed=_seed(seed, candidate, name),
        )
        for name, weight in weights.items()
    }


def candidate_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    count: int,
    draw: MaskDraw | None = None,
    *,
    ratios: tuple[float, ...] = RATIOS,
    among: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """So many candidates one after the other, the ratio of draws taken in turns from ``ratios``.

    Parameters
    ----------
    count : int
    ratios : tuple of float
        The published cycle by default.
    weights, sparsity, draw, among, seed
        See :func:`draw_masks`.
    """
    if count < 1 or not ratios:
        raise InputError("there is no candidate without a count and a ratio", seen=f"{count}, {ratios}")
    for candidate in range(count):
        one = replace(draw or MaskDraw(), ratio=ratios[candidate % len(ratios)])
        yield draw_masks(weights, sparsity, one, among=among, seed=seed, candidate=candidate)


def unlike(masks: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Part of the entries in which two sets of masks differ: how random one is, if the other is that of sizes."""
    differ = sum(int((mask != others[name]).sum()) for name, mask in masks.items())
    return differ / max(sum(mask.numel() for mask in masks.values()), 1)


def _seed(seed: int, candidate: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {candidate} {name}".encode()).digest()[:8], "little")
