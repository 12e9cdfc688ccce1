# SPDX-License-Identifier: Apache-2.0
"""The arrangement "windows" of a weight, by which a CPU with AVX-512 multiplies few tokens.

``csrc/common/sparse_windows_view.h`` describes it. It is made beside the arrangement "rows" when a weight first meets few
tokens, once for all types of ``x`` that want the same, and is no part of the weight: copies, files and ``nbytes`` are
without it. :attr:`Windows.nbytes` says what it takes: with a tenth kept about 4 bytes a kept weight where ``x`` is
bfloat16 and values are bfloat16 or int8, else the bytes of a value and one more, by 0.64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyprune import backends
from pyprune.ops import sparse_rows
from pyprune.ops.library import ELEMENT_TYPE

if TYPE_CHECKING:
    from pyprune.ops.sparse_weight import SparseWeight

# Most tokens that are multiplied this way.
FEW = 8


@dataclass(frozen=True)
class Made:
    """Windows of a weight as one type of ``x`` wants them."""

    multiply: Any  # of the extension's SparseWindows
    matrix: Any  # the SparseWindows themselves
    type: int  # of x, as the extension counts
    out: int
    columns: int
    rows: torch.Size  # of a bias
    most: int  # elements that x may have


class Windows:
    """The windows of one weight, while its values stay as they are.

    Values that were changed in place are noticed by torch's count of changes. Tensors made in inference mode have none:
    such weights have no windows (:func:`pyprune.ops.prepare` makes its tensors outside of it). The other parts are
    taken never to change.

    A copy, and what was pickled, starts anew.
    """

    __slots__ = ("_address", "_made", "_values", "_version")

    def __init__(self) -> None:
        self._made: dict[torch.dtype, Made | None] = {}
        self._values: Tensor | None = None
        self._version = self._address = 0

    def __reduce__(self) -> tuple[type[Windows], tuple[()]]:
        return Windows, ()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return sum({id(made.matrix): made.matrix.nbytes for made in self._made.values() if made is not None}.values())

    def ready(self, weight: SparseWeight, dtype: torch.dtype) -> Made | None:
        """What was made for ``x`` of this type, if it is still what the values say."""
        made = self._made.get(dtype)
        if made is None:
            return None
        values = weight.parts["values"]
        same = values is self._values and values._version == self._version and values.data_ptr() == self._address
        return made if same else None

    def prepared(self, weight: SparseWeight, dtype: torch.dtype) -> Made | None:
        """The same, made now if it is not there; None where ``x`` of this type has no windows.

        Parameters
        ----------
        weight : SparseWeight
            That these are the windows of, in the arrangement "rows".
        dtype : torch.dtype
            Of x.
        """
        values = weight.parts["values"]
        if values.is_inference():
            return None
        if values is not self._values or values._version != self._version or values.data_ptr() != self._address:
            self._made = {}
            self._values, self._version, self._address = values, values._version, values.data_ptr()
        if dtype not in self._made:
            self._made[dtype] = self._make(weight, dtype)
        return self._made[dtype]

    def _make(self, weight: SparseWeight, dtype: torch.dtype) -> Made | None:
        extension = backends.extension()
        values, shape = weight.values, weight.shape
        number = sparse_rows.VALUE_TYPE[values.dtype]

        def kind(type: int) -> int:
            found: int = extension.window_kind(type, number, shape[1])
            return found

        wanted = kind(ELEMENT_TYPE[dtype])
        if wanted == 0 or min(shape) == 0:
            return None
        for other in self._made.values():
            if other is not None and kind(other.type) == wanted:
                return _made(other.matrix, dtype, shape)
        kept = sparse_rows.places(weight.parts, shape, weight.geometry)
        rows, columns, places = (found.contiguous() for found in kept)
        matrix = extension.SparseWindows(
            *shape, wanted, rows.data_ptr(), columns.data_ptr(), places.data_ptr(), len(rows), values.data_ptr(), number
        )
        return _made(matrix, dtype, shape)


def _made(matrix: Any, dtype: torch.dtype, shape: tuple[int, int]) -> Made:
    return Made(matrix.multiply, matrix, ELEMENT_TYPE[dtype], *shape, torch.Size(shape[:1]), FEW * shape[1])
