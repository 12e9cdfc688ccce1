# SPDX-License-Identifier: Apache-2.0
"""Exchanges of a kept for a pruned column in many rows at once; H [k, k] shared, c and mask [rows, k].

With the tableau of a row's support (`tableau.py`; N its columns, n of them, R the other m), exchanging the columns of
slot i of N and slot j of R changes the loss by

    −(α z² + 2 P y z − δ y²) / (αδ + P²)      α = −P_ii, δ = P_jj, P = P_ij, y and z the border at i and j

One exchange of all rows is three launches. `choose_kernel`, a program a row: the best of what all tiles found, if it
gains enough. `turn_kernel`, programs along a row: the two rows x0, x1 of the tableau that cross there, diagonal and
border after the exchange. `pairs_kernel`, a tile of couplings P_NR a program: P −= x0 u0 + x1 u1, u the 2 x 2 pivot's
inverse times x, and the best pair of the tile. Only couplings of pairs that may be exchanged are kept up to date: all,
in place, or those within groups. What else x0 and x1 need is the tableau as it was built, whose lower triangle stays
untouched, less the x u of the exchanges since, at most `DEPTH`; then the tableau is made anew. Programs hand values to
each other from launch to launch only. A row without an exchange left does nothing.

An exchange costs a row 4 n m flops to update, 10 n m to search (within groups of g: n g in place of n m), and 8 t w for
its two rows after t exchanges on w positions. It reads and writes n m couplings, and reads 2 t w + 2 w numbers: memory
binds it. A row takes w² + 2 DEPTH w numbers. No atomics; among equal gains the lower slot of N goes, then of R.

Not measured on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from pyprune.triton_kernels.swap_kernels import choose_kernel, pairs_kernel, turn_kernel
from pyprune.triton_kernels.tableau import Positions, bordered, positions_of, sweep, width_for
from pyprune.triton_kernels.watch import Watch

WORKSPACE = 4 << 30  # bytes of tableaus held at once
DEPTH = 32  # exchanges before a tableau is made anew
LOOK = 256  # tiles whose findings a warp looks through at once
EVERY = 4  # exchanges between two looks at whether any row still goes
_BLOCK = 128  # positions of a program of `turn_kernel`, one a lane; there are always more
RECORDS = 8  # rows of former exchanges that are read at once


@dataclass(frozen=True)
class Tile:
    """Couplings of a program: slots of N by slots of R, both powers of two."""

    height: int
    breadth: int
    warps: int


def tile_for(outside: int, itemsize: int) -> Tile:
    """Choose the tile for rows of couplings ``outside`` wide: 64 bytes of them a lane, 32 where rows are short."""
    breadth = min(128, triton.next_power_of_2(max(outside, 1)))
    elements = 4 * 32 * (64 if breadth > 32 else 32) // itemsize
    return Tile(height=elements // breadth, breadth=breadth, warps=4)


def warps_for(tiles: int) -> int:
    """Warps that look through what so many tiles found."""
    return 4 if tiles > LOOK else 1


def rows_at_once(width: int, itemsize: int) -> int:
    """Rows whose tableaus fit into `WORKSPACE` bytes; at least one."""
    return max(1, WORKSPACE // ((width + 2 * DEPTH) * width * itemsize))


class _Round:
    """Rows whose tableaus have been made, exchanging until they have to be made anew.

    Attributes
    ----------
    diagonal, border : Tensor, shape (rows, width)
        Of the tableau by slot, with ``−P_NN``.
    place : Tensor of int32, shape (rows, width)
        By slot, the position of the column that is there now.
    made : Tensor of int32, shape (rows,)
        Exchanges.
    """

    def __init__(
        self, tableau: Tensor, at: Positions, inside: int, outside: int, of: int, least: Tensor, left: Tensor, sign: int
    ) -> None:
        rows, width = at.index.shape
        self.tableau, self.at, self.of, self.least, self.left, self.sign = tableau, at, of, least, left, sign
        self.border = tableau[:, -1].clone()
        slot = torch.arange(width, dtype=torch.int32, device=tableau.device)
        diagonal = tableau.diagonal(dim1=1, dim2=2)
        self.diagonal = torch.where(slot < at.start[:, None], -diagonal, diagonal)
        self.place = slot.repeat(rows, 1)
        self.moved, self.made = torch.ones_like(at.start), torch.zeros_like(at.start)
        self.past, self.now = tableau.new_empty(rows, 2 * DEPTH, width), tableau.new_empty(rows, 2, width)
        self.numbers = tableau.new_empty(rows, DEPTH, 8)
        self.pairs = torch.empty(rows, DEPTH, 4, dtype=torch.int32, device=tableau.device)
        # What a kernel has no use for stands in for what is not there.
        self.couplings, self.line, self.first, self.count = tableau, width, self.place, self.place
        if of:
            self._group()
            outside = min(of, outside)
        self.tile = tile_for(outside, tableau.element_size())
        self.grid = rows, -(-inside // self.tile.height), -(-outside // self.tile.breadth)
        tiles = self.grid[1] * self.grid[2]
        self.gain = tableau.new_empty(rows, tiles)
        self.key = torch.empty(rows, tiles, dtype=torch.int64, device=tableau.device)

    def _group(self) -> None:
        """Couplings within groups only, and where each slot's group has its slots of R."""
        index, start = self.at.index, self.at.start.long()
        width = index.shape[1]
        slot = torch.arange(width, device=index.device)
        others = (index >= 0) & (slot >= start[:, None])
        last = torch.where(others, index // self.of, -1).cummax(dim=1).values  # rises along R
        own = torch.where((index >= 0) & ~others, index // self.of, width)
        first = torch.searchsorted(last, own)
        end = torch.searchsorted(last, own, right=True)
        # Padding after R repeats its last group.
        end = torch.minimum(end, (start + self.at.outside)[:, None])
        self.first, self.count = first.int(), (end - first).clamp(min=0).int()
        self.line = triton.next_power_of_2(self.of)
        within = first[:, :, None] + torch.arange(self.line, device=index.device)
        self.couplings = self.tableau.gather(2, within.clamp(max=width - 1))

    def run(self) -> Tensor:
        """Exchange; which rows are still worth another round, bool ``[rows]``."""
        watch = Watch(self.tableau.device)
        self._pairs(0, moved=False)
        for step in range(DEPTH):
            self._choose(step)
            if step % EVERY == EVERY - 1 and watch.all_down(self.moved):
                break
            self._turn(step)
            self._pairs(step, moved=True)
        return (self.gain.amax(dim=1) > self.least) & (self.made < self.left)

    def _choose(self, step: int) -> None:
        tiles = self.gain.shape[1]
        choose_kernel[(len(self.gain),)](
            self.numbers, self.pairs, self.moved, self.made, self.gain, self.key, self.couplings, self.diagonal,
            self.border, self.place, self.at.start, self.left, self.least, self.first, tiles, self.place.shape[1],
            self.couplings.stride(0), self.line, step, GROUPED=self.of > 0, DEPTH=DEPTH,
            BLOCK=LOOK * warps_for(tiles), num_warps=warps_for(tiles), num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip

    def _turn(self, step: int) -> None:
        width = self.place.shape[1]
        turn_kernel[(len(self.gain), -(-width // _BLOCK))](
            self.past, self.now, self.diagonal, self.border, self.place, self.tableau, self.numbers, self.pairs,
            self.moved, self.at.start, width, step, DEPTH=DEPTH, RECORDS=RECORDS, BLOCK=_BLOCK, num_warps=4,
            num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip

    def _pairs(self, step: int, *, moved: bool) -> None:
        pairs_kernel[self.grid](
            self.gain, self.key, self.couplings, self.now, self.diagonal, self.border, self.numbers, self.pairs,
            self.moved, self.at.start, self.at.inside, self.at.outside, self.first, self.count, self.place.shape[1],
            self.couplings.stride(0), self.line, step, float(self.sign), MOVED=moved, GROUPED=self.of > 0, DEPTH=DEPTH,
            HEIGHT=self.tile.height, BREADTH=self.tile.breadth, num_warps=self.tile.warps, num_stages=2,
            enable_fp_fusion=True,
        )  # fmt: skip

    def results(self, columns: int) -> tuple[Tensor, Tensor]:
        """Which columns are kept, bool ``[rows, columns]``, and what each is worth, float64; of those in question."""
        column = self.at.index.gather(1, self.place.long())
        slot = torch.arange(column.shape[1], device=column.device)
        kept = (slot < self.at.start[:, None]) == (self.sign > 0)
        worth = self.border.double().square() / self.diagonal.double()
        worth = torch.where(self.diagonal > 0, worth, torch.where(kept, torch.inf, 0.0).double())
        at = torch.where(column < 0, columns, column)
        return (
            torch.zeros(len(column), columns + 1, dtype=torch.bool, device=column.device).scatter_(1, at, kept)[:, :-1],
            worth.new_zeros(len(column), columns + 1).scatter_(1, at, worth)[:, :-1],
        )


def improve(
    mask: Tensor,  # [rows, k] bool
    exchanged: Tensor,  # [rows]
    worth: Tensor,  # [rows, k]
    system: Tensor,  # [k, k]
    border: Tensor,  # [rows, k]
    least: Tensor,  # [rows]
    columns: Tensor | None = None,  # [rows, count]
    *,
    most: int,
    of: int = 0,
    complement: bool = False,
) -> None:
    """Exchange pairs of each row's mask while that gains more than ``least``.

    Parameters
    ----------
    mask : Tensor of bool, shape (rows, k)
        Changed.
    exchanged : Tensor of int64, shape (rows,)
        Written: pairs, or -1 where the row's system is not positive definite.
    worth : Tensor, shape (rows, k), float64
        Written: as of `pyprune.ops.swap`.
    system, border : Tensor, shapes (k, k) and (rows, k), float32 or float64
        H, with a unit diagonal, and c; or (``complement``) H⁻¹ and the dense fit: N are then the columns not kept.
    least : Tensor, shape (rows,), float64
    columns : Tensor of int64, shape (rows, count), optional
        Those in question, ascending.

    Raises
    ------
    ValueError
        If a shape, dtype, layout or device does not fit.

    Notes
    -----
    The products follow torch's setting of TF32: turn it off around this.
    """
    rows, size = mask.shape
    _check(mask, exchanged, worth, system, border, least, columns, of)
    exchanged.zero_()
    worth.copy_(torch.where(mask, torch.inf, 0.0))
    count = size if columns is None else columns.shape[1]
    if rows == 0 or count == 0:
        return
    if columns is None:
        columns = torch.arange(size, device=mask.device).expand(rows, size)
    height = rows_at_once(width_for(count), system.element_size())
    before = torch.full_like(least, torch.inf)
    rest = torch.arange(rows, device=mask.device)
    while len(rest):
        going = []
        for part in rest.split(height):
            own = columns[part]
            at = positions_of(mask[part].gather(1, own) != complement, own)
            tableau = bordered(system, border[part], at)
            inside, outside = int(at.inside.max()), int(at.outside.max())
            energy, good = sweep(tableau, at.inside, inside)
            # So many exchanges and no lower loss: gains drown in rounding.
            lower = good & ((energy if complement else -energy) < before[part])
            before[part] = energy if complement else -energy
            limit = torch.where(lower, least[part], torch.inf)
            left = (most - exchanged[part]).clamp(max=DEPTH + 1).int()
            exchanges = _Round(
                tableau,
                at,
                max(inside, 1),
                max(outside, 1),
                0 if of == size else of,
                limit,
                left,
                -1 if complement else 1,
            )
            with torch.cuda.device_of(mask):  # Triton launches on the current device; no effect on CPU tensors
                more = exchanges.run()
            kept, value = exchanges.results(size)
            asked = torch.zeros_like(kept).scatter_(1, own, True) & good[:, None]
            mask[part] = torch.where(asked, kept, mask[part])
            worth[part] = torch.where(asked, value, worth[part])
            exchanged[part] = torch.where(good, exchanged[part] + exchanges.made, -1)
            going.append(part[more])
        rest = torch.cat(going)


def _check(
    mask: Tensor,
    exchanged: Tensor,
    worth: Tensor,
    system: Tensor,
    border: Tensor,
    least: Tensor,
    columns: Tensor | None,
    of: int,
) -> None:
    rows, size = mask.shape
    if border.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"border must be float32 or float64, got {border.dtype}")
    if of < 0 or (of and size % of):
        raise ValueError(f"groups of {of} do not fit {size} columns")
    wanted = [
        ("mask", mask, (rows, size), torch.bool),
        ("exchanged", exchanged, (rows,), torch.int64),
        ("worth", worth, (rows, size), torch.float64),
        ("system", system, (size, size), border.dtype),
        ("border", border, (rows, size), border.dtype),
        ("least", least, (rows,), torch.float64),
    ]
    if columns is not None:
        wanted.append(("columns", columns, (rows, columns.shape[-1]), torch.int64))
    for name, tensor, shape, dtype in wanted:
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != mask.device:
            raise ValueError(
                f"{name} must be {dtype} {shape} on {mask.device}, got {tuple(tensor.shape)} {tensor.dtype}"
            )
