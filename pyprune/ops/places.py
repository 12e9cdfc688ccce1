# SPDX-License-Identifier: Apache-2.0
"""What compiled kernels make of the addresses of lasting tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


class Places:
    """Something made of where tensors lie, made again only when one has moved.

    A copy, and what was pickled, starts anew.
    """

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self._made: Any = None

    def __reduce__(self) -> tuple[type[Places], tuple[()]]:
        return Places, ()

    def made(self, tensors: Iterable[Tensor], make: Callable[[], Any]) -> Any:
        """``make()``, of now or of an earlier call with these tensors; they must outlive its use."""
        addresses = [tensor.data_ptr() for tensor in tensors]
        if self._made is None or addresses != self._addresses:
            self._made, self._addresses = make(), addresses
        return self._made
