# SPDX-License-Identifier: Apache-2.0
"""What the cases of all kernels share: buffers whose surroundings tell of a stray access, and refused calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

_GUARD = 512  # elements before and after every buffer


class Guarded:
    """A matrix in the middle of a larger buffer that is filled with NaN (integers: with 77).

    A kernel that reads around the matrix computes with NaN; one that writes there is seen by `intact`.

    Attributes
    ----------
    view : Tensor, shape (rows, columns)
        Filled like its surroundings; rows lie `pitch` apart.
    """

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, device: str, *, pitch: int | None = None) -> None:
        pitch = columns if pitch is None else pitch
        fill = torch.nan if dtype.is_floating_point else 77
        size = 2 * _GUARD + rows * pitch
        self._whole = torch.full((size,), fill, dtype=torch.uint8 if dtype == torch.bool else dtype, device=device)
        whole = self._whole.view(dtype)
        self.view = torch.as_strided(whole, (rows, columns), (pitch, 1), _GUARD)
        self._outside = torch.ones(size, dtype=torch.bool, device=device)
        torch.as_strided(self._outside, (rows, columns), (pitch, 1), _GUARD).fill_(False)

    def intact(self) -> bool:
        """Whether nothing around the matrix was written."""
        around = self._whole[self._outside]
        return bool((around.isnan() if around.dtype.is_floating_point else around == 77).all())


def refused(calls: Mapping[str, Callable[[], object]]) -> dict[str, bool]:
    """Try calls that must raise ValueError; whether each did, by name."""
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = False
        except ValueError:
            found[name] = True
    return found
