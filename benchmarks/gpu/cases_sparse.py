# SPDX-License-Identifier: Apache-2.0
"""Products with compressed matrices (`spmm`) beside `torch.nn.functional.linear` with the zeros, and torch's own 2:4.

Each backend multiplies by the arrangement that it makes: `pyprune.torch` is 2:4 by torch through the op, and puts the
zeros of any other matrix back in every call. What is measured here corrects `pyprune/ops/gpu_plan.py`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator

import torch
from gpu.measure import Case, relative, ways
from torch import Tensor

from pyprune import backends, ops
from pyprune.ops import SparseWeight, semi_structured

SHAPES = ((4096, 4096), (4096, 11008), (768, 3072))
QUICK = ((64, 96),)
TOKENS = (1, 8, 32, 256)
DENSITIES = (0.5, 0.3, 0.1)
SIDES = (32, 32)  # of blocks


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Single weights, 2:4 and blocks, with values of 16 bits and of 8, for few tokens and for more."""
    for rows, columns in QUICK if quick else SHAPES:
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(device) / columns**0.5
        matrices = [
            *((density, _single(weight, density, torch.bfloat16)) for density in DENSITIES),
            (0.5, _single(weight, 0.5, torch.int8)),
            (0.5, ops.compress(weight, ops.nm(weight.abs(), 2, 4), format="nm", geometry=(2, 4), dtype=torch.bfloat16)),
            (0.5, _blocks(weight, 0.5)),
        ]
        for density, matrix in matrices:
            for tokens in (2, 17) if quick else TOKENS:
                yield _product(matrix, density, tokens, device)


def _single(weight: Tensor, density: float, dtype: torch.dtype) -> SparseWeight:
    return ops.compress(weight, ops.select(weight.abs(), round(density * weight.numel()), "layer"), dtype=dtype)


def _blocks(weight: Tensor, density: float) -> SparseWeight:
    height, width = SIDES
    lines, across = weight.shape[0] // height, weight.shape[1] // width
    chosen = torch.rand(lines, across, generator=torch.Generator().manual_seed(1)) < density
    mask = chosen.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return ops.compress(weight, mask, format="block", geometry=SIDES, dtype=torch.bfloat16)


def _product(matrix: SparseWeight, density: float, tokens: int, device: str) -> Case:
    rows, columns = matrix.shape
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(device, torch.bfloat16)
    dense = matrix.to_dense(torch.bfloat16)

    @functools.cache
    def prepared(backend: str) -> SparseWeight:
        return ops.prepare(matrix)

    exact = x.double() @ matrix.to_dense(torch.float64).T
    return Case(
        "spmm",
        {
            "rows": rows,
            "columns": columns,
            "tokens": tokens,
            "density": density,
            "format": matrix.format,
            "values": str(matrix.dtype).removeprefix("torch."),
        },
        {
            **ways("spmm", lambda: ops.spmm(x, prepared(os.environ[backends.FORCE])), device),
            "torch.linear": lambda: torch.nn.functional.linear(x, dense),
            **_by_torch(x, matrix, dense),
        },
        operations=2.0 * tokens * int(matrix.mask().sum()),
        bytes=matrix.nbytes + 2.0 * tokens * (rows + columns),
        peak="bfloat16",
        error=lambda y: relative(y, exact),
    )


def _by_torch(x: Tensor, matrix: SparseWeight, dense: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Torch's semi-structured product, where it has one for this matrix on this card."""
    if matrix.format != "nm" or semi_structured.arrange(dense, matrix.parts["bits"]) is None:
        return {}
    packed = torch.sparse.to_sparse_semi_structured(dense)
    return {"torch.semi_structured": lambda: torch.nn.functional.linear(x, packed)}
