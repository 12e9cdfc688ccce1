# SPDX-License-Identifier: Apache-2.0
"""The elementwise halves of one ADMM iteration; the product between them is the vendor library's.

    input  = (kept ? z : -z) - s
    z, z_  = relax (s + input M) + (kept ? (1 - relax) z : z) + momentum (z - z_),  z

as in csrc/cpu/admm_step.cpp. One pass each over flat memory: 13 bytes an element for the first, 25 for the second,
beside 2 k float32 operations an element in between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements of a program: a float4 and two more for each of 128 threads
WARPS = 4


@triton.jit
def input_kernel(out_ptr, state_ptr, mask_ptr, start_ptr, elements, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    z = tl.load(state_ptr + at, mask=inside)
    kept = tl.load(mask_ptr + at, mask=inside) != 0
    tl.store(out_ptr + at, tl.where(kept, z, -z) - tl.load(start_ptr + at, mask=inside), mask=inside)


@triton.jit
def fold_kernel(  # type: ignore[no-untyped-def]
    state_ptr,
    previous_ptr,
    mask_ptr,
    start_ptr,
    product_ptr,
    relax,
    momentum,
    elements,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    z = tl.load(state_ptr + at, mask=inside)
    kept = tl.load(mask_ptr + at, mask=inside) != 0
    dense = tl.load(start_ptr + at, mask=inside) + tl.load(product_ptr + at, mask=inside)
    stayed = tl.where(kept, (1.0 - relax) * z, z)
    moved = z - tl.load(previous_ptr + at, mask=inside)
    tl.store(state_ptr + at, relax * dense + stayed + momentum * moved, mask=inside)
    tl.store(previous_ptr + at, z, mask=inside)


def admm_input(out: Tensor, state: Tensor, mask: Tensor, start: Tensor) -> Tensor:
    """Fill `out` with what is multiplied, and return it. All of one shape, contiguous, float32; the mask bool."""
    _check(mask, out, state, start)
    with torch.cuda.device_of(state):
        input_kernel[(triton.cdiv(state.numel(), BLOCK),)](
            out,
            state,
            mask.view(torch.uint8),
            start,
            state.numel(),
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return out


def admm_fold(
    state: Tensor,
    previous: Tensor,
    mask: Tensor,
    start: Tensor,
    product: Tensor,
    relax: float,
    momentum: float,
) -> None:
    """Move `state` and `previous`, in place, by the product. All of one shape, contiguous, float32; the mask bool."""
    _check(mask, state, previous, start, product)
    with torch.cuda.device_of(state):
        fold_kernel[(triton.cdiv(state.numel(), BLOCK),)](
            state,
            previous,
            mask.view(torch.uint8),
            start,
            product,
            relax,
            momentum,
            state.numel(),
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=True,  # the default differs between Triton versions
        )


def _check(mask: Tensor, *tensors: Tensor) -> None:
    shapes = {tuple(tensor.shape) for tensor in (mask, *tensors)}
    if len(shapes) > 1 or len({tensor.device for tensor in (mask, *tensors)}) > 1:
        raise ValueError(f"tensors must have one shape and lie on one device, got {sorted(shapes)}")
    if mask.dtype != torch.bool or {tensor.dtype for tensor in tensors} != {torch.float32}:
        raise ValueError("tensors must be float32, the mask bool")
    if not all(tensor.is_contiguous() for tensor in (mask, *tensors)):
        raise ValueError("tensors must be contiguous")
