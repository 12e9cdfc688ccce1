# SPDX-License-Identifier: Apache-2.0
"""A device that is not the CPU, without having one: code that mixes its tensors with the host's is caught.

Tensors on it say that they are on "meta" and hold a CPU tensor with their values. Under `EmulatedDevice` everything
computed from them, or made with their device, is on it too. An op of pyprune runs as it would on a GPU without a kernel
of ours: by `torch`, or else by its reference, also under emulation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pyprune import backends


class _Elsewhere(Tensor):
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _Elsewhere:
        tensor: _Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        tensor.inner = inner
        return tensor

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of EmulatedDevice")


class EmulatedDevice(TorchDispatchMode):
    """Context in which tensors from `put` can be computed with."""

    def put(self, tensor: Tensor) -> Tensor:
        """A copy on the device."""
        return _Elsewhere(tensor.clone())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "pyprune":
            op = func._schema.name.partition("::")[2]
            backend = "torch" if "torch" in backends.implementations(op) else "reference"
            with self:
                return backends._TABLE[op][backend](*args)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, _Elsewhere)]
        host = [tensor for tensor in tensors if not isinstance(tensor, _Elsewhere) and tensor.dim() > 0]
        assert not (here and host) or func.name().startswith("aten::copy_"), f"{func} mixes devices"
        wanted = kwargs.get("device")
        on_device = bool(here) if wanted is None else torch.device(wanted).type == "meta"
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(_bare, (args, kwargs))
        result = func(*args, **kwargs)
        if not on_device:
            return result
        known = {id(tensor.inner): tensor for tensor in here}

        def lifted(leaf: Any) -> Any:
            if id(leaf) in known:  # changed in place: it stays itself
                return known[id(leaf)]
            return _Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf

        return tree_map(lifted, result)


def _bare(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, _Elsewhere) else leaf
