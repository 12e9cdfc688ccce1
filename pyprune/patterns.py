# SPDX-License-Identifier: Apache-2.0
"""What a mask may look like: how many weights stay, and where they may lie.

A pattern counts (:meth:`kept`), chooses (:meth:`select`) and checks (:meth:`holds`). ``True`` in a mask
means *kept*; ``sparsity`` is the fraction of zeros. Counts are exact and decided in :func:`kept_count`
alone; ties are broken by position, the earlier weight being kept.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError

Scope = Literal["row", "layer"]


def kept_count(numel: int, sparsity: float) -> int:
    """Round-half-up of ``numel * (1 - sparsity)``.

    The sparsity is read as the decimal a person wrote (0.7 is 7/10, not its binary neighbour), so that
    ``kept_count(10, 0.7) == 3`` whatever the platform.

    Parameters
    ----------
    numel : int
        Number of candidate weights, at least 0.
    sparsity : float
        Fraction of zeros in [0, 1].
    """
    exact = numel * (1 - Fraction(repr(float(sparsity))))
    return math.floor(exact + Fraction(1, 2))


def _check_matrix(rows: int, cols: int, name: str) -> None:
    if rows < 0 or cols < 0:
        raise InputError(f"{name} has a negative shape", seen=f"[{rows}, {cols}]")


def _check_amount(sparsity: float, scope: str) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise InputError("sparsity must be a number", seen=repr(sparsity))
    if not (0.0 <= sparsity <= 1.0):
        raise InputError(
            f"sparsity {sparsity:g} is outside 0 to 1",
            asked=f"sparsity={sparsity:g}",
            hint="give the fraction of zeros, for example 0.5 for 50 %",
        )
    if scope not in ("row", "layer"):
        raise InputError(f"unknown scope {scope!r}", hint='scope="row" (each row alike) or scope="layer"')


def _whole(*numbers: object) -> bool:
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


@runtime_checkable
class Pattern(Protocol):
    """What every pattern answers; see :class:`Unstructured`, :class:`NM` and :class:`Block`."""

    @property
    def sparsity(self) -> float:
        """Fraction of zeros asked for."""

    def check(self, rows: int, cols: int, name: str = "weight") -> None:
        """Raise :class:`InputError` where the pattern cannot hold on ``[rows, cols]``."""

    def kept(self, rows: int, cols: int) -> int:
        """Exact number of kept weights of a ``[rows, cols]`` matrix."""

    def select(self, scores: Tensor) -> Tensor:
        """Keep the largest ``scores`` ``[rows, cols]``; bool mask ``[rows, cols]``.

        A score is a size, at least 0, such as ``|w|``: the root of the energy that is lost with the weight. Where
        weights go together their energies add up.
        """

    def holds(self, mask: Tensor) -> bool:
        """Whether ``mask`` has exactly this pattern."""

    def describe(self) -> str:
        """A few words for a person."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able settings, read back by :func:`pattern_from_dict`."""


@dataclass(frozen=True)
class Unstructured:
    """Any weights may go; the count is exact in each row, or in the whole matrix.

    Parameters
    ----------
    sparsity : float
        Fraction of zeros, 0 <= sparsity <= 1.
    scope : {"row", "layer"}
        ``"row"``: every output row keeps the same number. ``"layer"``: rows compete.
    """

    sparsity: float
    scope: Scope = "row"

    def __post_init__(self) -> None:
        _check_amount(self.sparsity, self.scope)

    def check(self, rows: int, cols: int, name: str = "weight") -> None:
        _check_matrix(rows, cols, name)

    def kept_per_row(self, cols: int) -> int:
        """Kept weights of one row of ``cols`` (row scope)."""
        return kept_count(cols, self.sparsity)

    def kept(self, rows: int, cols: int) -> int:
        if self.scope == "row":
            return rows * kept_count(cols, self.sparsity)
        return kept_count(rows * cols, self.sparsity)

    def select(self, scores: Tensor) -> Tensor:
        rows, cols = scores.shape
        count = self.kept_per_row(cols) if self.scope == "row" else self.kept(rows, cols)
        return ops.select(scores, count, self.scope)

    def holds(self, mask: Tensor) -> bool:
        rows, cols = mask.shape
        if self.scope == "row":
            return bool((mask.sum(dim=1) == kept_count(cols, self.sparsity)).all())
        return int(mask.sum()) == self.kept(rows, cols)

    def describe(self) -> str:
        return f"{100 * self.sparsity:g} % of {'each row' if self.scope == 'row' else 'the layer'}"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "unstructured", **asdict(self)}


@dataclass(frozen=True)
class NM:
    """``keep`` of every ``of`` consecutive weights along the input dimension of a row stay.

    Both numbers are named because the literature disagrees on what N counts.

    Parameters
    ----------
    keep, of : int
        ``0 <= keep <= of``, ``of >= 1``; the input dimension must be a multiple of ``of``.
    """

    keep: int
    of: int

    def __post_init__(self) -> None:
        if not _whole(self.keep, self.of) or not 0 <= self.keep <= self.of:
            raise InputError(
                "N:M needs whole numbers with 0 <= keep <= of",
                seen=f"keep={self.keep!r}, of={self.of!r}",
                hint="NM(keep=2, of=4)",
            )
        if self.of < 1:
            raise InputError("N:M needs groups of at least one weight", seen=f"of={self.of}")

    @property
    def sparsity(self) -> float:
        return 1.0 - self.keep / self.of

    def check(self, rows: int, cols: int, name: str = "weight") -> None:
        _check_matrix(rows, cols, name)
        if cols % self.of:
            raise InputError(
                f"{name}: {self.describe()} does not fit an input dimension of {cols}",
                asked=f"{self.keep} kept of every {self.of} along the input dimension",
                seen=f"weight [{rows}, {cols}], {cols} = {cols // self.of} x {self.of} + {cols % self.of}",
                hint=f"a group size that divides {cols}, or Unstructured({self.sparsity:g})",
            )

    def kept(self, rows: int, cols: int) -> int:
        return rows * (cols // self.of) * self.keep

    def select(self, scores: Tensor) -> Tensor:
        self.check(scores.shape[0], scores.shape[1], "scores")
        return ops.nm(scores, self.keep, self.of)

    def holds(self, mask: Tensor) -> bool:
        rows, cols = mask.shape
        if cols % self.of:
            return False
        groups = mask.reshape(rows, cols // self.of, self.of).sum(dim=2)
        return bool((groups == self.keep).all())

    def describe(self) -> str:
        return f"{self.keep}:{self.of}"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "nm", **asdict(self)}


@dataclass(frozen=True)
class Block:
    """Blocks of ``rows`` consecutive outputs by ``cols`` consecutive inputs stay or go as a whole.

    Parameters
    ----------
    rows, cols : int
        Of a block, at least 1. ``rows`` must divide the outputs of a layer, ``cols`` its inputs.
    sparsity : float
        Fraction of blocks that go, 0 <= sparsity <= 1.
    scope : {"row", "layer"}
        ``"layer"``: all blocks of the matrix compete. ``"row"``: every row of blocks keeps the same number.
    """

    rows: int
    cols: int
    sparsity: float
    scope: Scope = "layer"

    def __post_init__(self) -> None:
        if not _whole(self.rows, self.cols) or self.rows < 1 or self.cols < 1:
            raise InputError(
                "a block needs at least one row and one column",
                seen=f"rows={self.rows!r}, cols={self.cols!r}",
                hint="Block(rows=4, cols=4, sparsity=0.5)",
            )
        _check_amount(self.sparsity, self.scope)

    def check(self, rows: int, cols: int, name: str = "weight") -> None:
        _check_matrix(rows, cols, name)
        for size, own, what in ((rows, self.rows, "output"), (cols, self.cols, "input")):
            if size % own:
                raise InputError(
                    f"{name}: blocks of {self.rows}x{self.cols} do not fit an {what} dimension of {size}",
                    asked=f"blocks of {self.rows} outputs by {self.cols} inputs",
                    seen=f"weight [{rows}, {cols}], {size} = {size // own} x {own} + {size % own}",
                    hint=f"a block size that divides {size}, or Unstructured({self.sparsity:g})",
                )

    def grid(self, rows: int, cols: int) -> tuple[int, int]:
        """Rows and columns of blocks in a ``[rows, cols]`` matrix."""
        return rows // self.rows, cols // self.cols

    def kept_blocks(self, rows: int, cols: int) -> int:
        """Blocks that stay: in each row of blocks, or with scope ``"layer"`` in the matrix."""
        down, across = self.grid(rows, cols)
        return kept_count(across if self.scope == "row" else down * across, self.sparsity)

    def kept(self, rows: int, cols: int) -> int:
        groups = self.grid(rows, cols)[0] if self.scope == "row" else 1
        return groups * self.kept_blocks(rows, cols) * self.rows * self.cols

    def sizes(self, scores: Tensor) -> Tensor:
        """Root of each block's sum of squares ``[rows / self.rows, cols / self.cols]``; float64, whatever the range."""
        if bool((scores < 0).any()):
            raise InputError("the scores of blocks must not be negative", hint="sizes such as |w|, not logarithms")
        down, across = self.grid(*scores.shape)
        blocks = scores.double().reshape(down, self.rows, across, self.cols)
        peak = blocks.amax(dim=(1, 3), keepdim=True)
        share = torch.where(
            blocks == peak, 1.0, blocks / peak
        )  # no square under- or overflows; 0 / 0 and inf / inf are 1
        return peak[:, 0, :, 0] * share.square().sum(dim=(1, 3)).sqrt()

    def expand(self, blocks: Tensor) -> Tensor:
        """Mask ``[rows, cols]`` of the matrix from one of its blocks, ``[rows / self.rows, cols / self.cols]``."""
        return blocks.repeat_interleave(self.rows, dim=0).repeat_interleave(self.cols, dim=1)

    def select(self, scores: Tensor) -> Tensor:
        rows, cols = scores.shape
        self.check(rows, cols, "scores")
        return self.expand(ops.select(self.sizes(scores), self.kept_blocks(rows, cols), self.scope))

    def holds(self, mask: Tensor) -> bool:
        rows, cols = mask.shape
        if rows % self.rows or cols % self.cols:
            return False
        blocks = mask[:: self.rows, :: self.cols]
        counts = blocks.sum(dim=1) if self.scope == "row" else blocks.sum()
        return torch.equal(self.expand(blocks), mask) and bool((counts == self.kept_blocks(rows, cols)).all())

    def describe(self) -> str:
        where = "each row of" if self.scope == "row" else "the"
        return f"{100 * self.sparsity:g} % of {where} {self.rows}x{self.cols} blocks"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "block", **asdict(self)}


def parse_pattern(text: str, *, scope: Scope | None = None) -> Unstructured | NM | Block:
    """Read a pattern as it is typed.

    ``"2:4"`` is ``NM(keep=2, of=4)``, ``"block:4x1:0.5"`` is ``Block(rows=4, cols=1, sparsity=0.5)`` and ``"0.5"`` is
    ``Unstructured(0.5)``. ``scope`` is for the last two; without it they have their own default.

    Raises
    ------
    InputError
        The text is none of these.
    """
    options: dict[str, Any] = {} if scope is None else {"scope": scope}
    groups = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if groups:
        return NM(int(groups[1]), int(groups[2]))
    blocks = re.fullmatch(r"\s*block\s*:\s*(\d+)\s*x\s*(\d+)\s*:(.*)", text)
    try:
        if blocks:
            return Block(int(blocks[1]), int(blocks[2]), float(blocks[3]), **options)
        return Unstructured(float(text), **options)
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"pattern {text!r} is not understood",
            hint='"2:4" (keep 2 of every 4), "block:4x4:0.5" (half of the blocks of 4 outputs by 4 inputs go), '
            'or a sparsity such as "0.5"',
        ) from None


def pattern_from_dict(settings: dict[str, Any]) -> Unstructured | NM | Block:
    """Inverse of ``to_dict``."""
    kind = settings.get("kind")
    if kind == "unstructured":
        return Unstructured(float(settings["sparsity"]), settings["scope"])
    if kind == "nm":
        return NM(int(settings["keep"]), int(settings["of"]))
    if kind == "block":
        rows, cols = int(settings["rows"]), int(settings["cols"])
        return Block(rows, cols, float(settings["sparsity"]), settings["scope"])
    raise InputError("unknown kind of pattern", seen=repr(kind), hint='"unstructured", "nm" or "block"')


def kind_of(pattern: Pattern) -> tuple[tuple[str, Any], ...]:
    """All of a pattern but how much it keeps."""
    return tuple((name, value) for name, value in pattern.to_dict().items() if name not in ("sparsity", "keep"))


def assert_holds(pattern: Pattern, mask: Tensor, name: str) -> None:
    """Internal check: a solver must deliver exactly the pattern asked for."""
    if mask.dtype != torch.bool or not pattern.holds(mask):
        raise AssertionError(f"{name}: the mask does not have the pattern {pattern.describe()}")
