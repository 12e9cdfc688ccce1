# SPDX-License-Identifier: Apache-2.0
"""Registration of ops under ``torch.ops.pyprune`` and the checks they share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError

_LIBRARY: Any = torch.library.Library("pyprune", "DEF")  # type: ignore[no-untyped-call]  # torch has no types here

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# The numbers of csrc/common/element_type.h.
ELEMENT_TYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def register(schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define ``pyprune::<name>``; the device of the call picks the implementation from the table of backends.

    Returns the callable op. ``schema`` is torch's operator schema, ``fake`` gives output shapes and dtypes to
    ``torch.compile`` without touching data.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key, device in (("CPU", "cpu"), ("CUDA", "cuda")):

        def kernel(*args: Any, _device: str = device) -> Any:
            return backends.choose(name, _device).function(*args)

        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"pyprune::{name}", fake, lib=_LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.pyprune, name).default
    return op


def check_float(op: str, **tensors: Tensor) -> None:
    """Raise :class:`InputError` for anything that is not a floating-point tensor a kernel knows."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{op}: {name} must be a torch tensor", seen=type(tensor).__name__)
        if tensor.dtype not in FLOATS:
            raise InputError(f"{op}: {name} has dtype {tensor.dtype}", hint="float32, float64, bfloat16 or float16")


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised CPU tensor from the memory the kernels keep for use again: no fresh pages, no page faults."""
    size = torch.Size(shape)
    if not size.numel():
        return torch.empty(size, dtype=dtype)
    memory = backends.extension().Memory(size.numel() * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).reshape(size)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Within, torch multiplies float32 in float32, whatever the process allows: TF32 would keep 10 bits.

    The setting is torch's own, so that other threads see it too while it lasts.
    """
    matmul = torch.backends.cuda.matmul
    try:
        before = torch.get_float32_matmul_precision()
        plain = matmul.allow_tf32 == (before != "highest")
    except RuntimeError:  # set by the newer interface, which must not be mixed with this one
        plain = False
    if plain:
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    else:
        precision = matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = precision


@contextlib.contextmanager
def cuda_stream(tensor: Tensor) -> Iterator[int]:
    """Make the tensor's device the current one; the handle of its current stream."""
    with torch.cuda.device(tensor.device):
        yield torch.cuda.current_stream(tensor.device).cuda_stream


def all_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity; ten times faster than ``isfinite(tensor).all()``."""
    if not tensor.numel():
        return True
    smallest, largest = torch.aminmax(tensor)
    return bool(torch.isfinite(smallest) & torch.isfinite(largest))


def check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise :class:`InputError` where a tensor's shape is not the expected one."""
    if tuple(tensor.shape) != expected:
        raise InputError(f"{op}: {name} has the wrong shape", asked=str(list(expected)), seen=str(list(tensor.shape)))


def check_same_device(op: str, *tensors: Tensor | None) -> None:
    """Raise :class:`InputError` where tensors lie on different devices."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise InputError(f"{op}: tensors lie on different devices", seen=", ".join(sorted(map(str, devices))))


def check_inverse(op: str, inverse: Tensor, weight: Tensor) -> None:
    """Raise :class:`InputError` unless these are ``[k, k]`` and ``[rows, k]``, on one device, without a gradient."""
    check_float(op, inverse=inverse, weight=weight)
    if weight.dim() != 2 or tuple(inverse.shape) != (weight.shape[1], weight.shape[1]):
        raise InputError(
            f"{op}: shapes do not fit",
            asked="inverse [k, k] and weight [rows, k]",
            seen=f"inverse {list(inverse.shape)}, weight {list(weight.shape)}",
        )
    check_same_device(op, inverse, weight)
    reject_autograd(op, inverse, weight)


def flatten_tokens(op: str, name: str, tensor: Tensor) -> Tensor:
    """View ``[..., features]`` as ``[tokens, features]`` with contiguous rows."""
    if tensor.dim() < 1:
        raise InputError(f"{op}: {name} needs at least one dimension", seen="a scalar")
    # Not reshape(-1, …): with zero features the number of tokens would be ambiguous.
    flat = tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] <= 1 else flat.contiguous()


def flatten_keep(op: str, keep: Tensor | None, leading: torch.Size) -> Tensor | None:
    """Check the padding mask against the leading shape and flatten it to contiguous bool ``[tokens]``."""
    if keep is None:
        return None
    if tuple(keep.shape) != tuple(leading):
        raise InputError(f"{op}: keep does not match the tokens", asked=str(list(leading)), seen=str(list(keep.shape)))
    if keep.dtype != torch.bool:
        if keep.dtype.is_floating_point or not bool(((keep == 0) | (keep == 1)).all()):
            raise InputError(
                f"{op}: keep must be bool, or whole numbers 0 and 1",
                seen=str(keep.dtype),
                hint="pass the tokenizer's attention_mask, not the extended (additive) one",
            )
        keep = keep.bool()
    return keep.reshape(-1).contiguous()


def reject_autograd(op: str, *tensors: Tensor | None) -> None:
    """Raise where a gradient would be lost in silence."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise InputError(f"{op} has no gradient", hint="call it under torch.no_grad(), or detach its inputs")
