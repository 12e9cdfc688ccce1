# SPDX-License-Identifier: Apache-2.0
"""The arrangement "windows" of a weight, by which a CPU with AVX-512 multiplies few tokens.

``csrc/common/sparse_windows_view.h`` describes it. It is made beside the arrangement "rows" when a weight first meets
few tokens, once for all types of ``x`` that want the same, and is no part of the weight: copies, files and ``nbytes``
are without it. :attr:`Windows.nbytes` says what it takes: with a tenth kept about 4 bytes a kept weight where ``x`` is
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


@dataclass(frozen=True, slots=True)
class Made:
    """Windows of a weight as one type of ``x`` wants them, and the values that they were made of."""

    multiply: Any  # the extension's multiply_windows
    matrix: Any  # its SparseWindows
    type: int  # of x, as the extension counts
    out: int
    columns: int
    rows: torch.Size  # of a bias
    most: int  # elements that x may have
    values: Tensor
    version: int
    address: int

    def is_of(self, values: Tensor) -> bool:
        """Whether these values are still the same."""
        return values is self.values and values._version == self.version and values.data_ptr() == self.address


class Windows:
    """The windows of one weight, while its values stay as they are.

    Values that were changed in place are noticed by torch's count of changes. Tensors made in inference mode have none:
    such weights have no windows (:func:`pyprune.ops.prepare` makes its tensors outside of it). The other parts are
    taken never to change.

    A copy, and what was pickled, starts anew.

    Attributes
    ----------
    made : dict of torch.dtype to Made
        By the type of x; what the values were is to be asked (:meth:`Made.is_of`).
    """

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made: dict[torch.dtype, Made] = {}

    def __reduce__(self) -> tuple[type[Windows], tuple[()]]:
        return Windows, ()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return sum({id(made.matrix): made.matrix.nbytes for made in self.made.values()}.values())

    def prepared(self, weight: SparseWeight, dtype: torch.dtype) -> Made | None:
        """Windows, made now if they are not there or no longer right; None where ``x`` of this type has none.

        Parameters
        ----------
        weight : SparseWeight
            That these are the windows of, in the arrangement "rows".
        dtype : torch.dtype
            Of x.
        """
        values = weight.values
        if values.is_inference():
            return None
        self.made = {kind: made for kind, made in self.made.items() if made.is_of(values)}
        if dtype not in self.made:
            made = self._make(weight, dtype)
            if made is None:
                return None
            self.made[dtype] = made
        return self.made[dtype]

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
        same = [made.matrix for made in self.made.values() if kind(made.type) == wanted]
        matrix = same[0] if same else _arrange(weight, wanted, number)
        return Made(
            extension.multiply_windows,
            matrix,
            ELEMENT_TYPE[dtype],
            *shape,
            torch.Size(shape[:1]),
            FEW * shape[1],
            values,
            values._version,
            values.data_ptr(),
        )


def _arrange(weight: SparseWeight, kind: int, number: int) -> Any:
    sparse_rows.view(weight.parts, weight.shape, weight.geometry)  # whether they belong together
    kept = sparse_rows.places(weight.parts, weight.shape, weight.geometry)
    rows, columns, places = (found.contiguous() for found in kept)
    lists = (rows.data_ptr(), columns.data_ptr(), places.data_ptr(), len(rows))
    return backends.extension().SparseWindows(*weight.shape, kind, *lists, weight.values.data_ptr(), number)
