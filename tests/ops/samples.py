# SPDX-License-Identifier: Apache-2.0
"""Arguments of every op, as the op under ``torch.ops.pyprune`` takes them."""

from __future__ import annotations

from typing import Any

import torch

from pyprune.ops import compress


def samples(generator: torch.Generator, columns: int = 8, rows: int = 3) -> dict[str, tuple[Any, ...]]:
    """One call of each op. ``columns`` must be a multiple of 4, ``rows`` of 3 and at most ``columns``."""
    tokens = 2 * columns + 4
    x = torch.randn(tokens, columns, generator=generator)
    y = torch.randn(tokens, rows, generator=generator)
    keep = torch.rand(tokens, generator=generator) > 0.3
    gram = (x.T @ x).double() + torch.eye(columns, dtype=torch.float64)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, columns, generator=generator) > 0.5
    inverse = torch.linalg.inv(gram)
    factor = torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1).contiguous()
    single, half = weight.float(), columns // 2
    state, previous = torch.randn(2, rows, columns, generator=generator)
    basis = torch.randn(2, columns, generator=generator)
    ends = [*range(128, columns, 128), columns]
    prune = torch.tensor([0] + [rows * end // 2 for end in ends]).diff()
    sparse = compress(single, mask, dtype=torch.int8)
    keys, entries = torch.arange(2 * rows).reshape(2, rows) % 3, torch.arange(1, tokens, 2)
    return {
        "gram": (torch.zeros(columns, columns, dtype=torch.float64), x, keep),
        "cross_gram": (torch.zeros(rows, columns), y, x, None),
        "matmul": (torch.zeros(rows, columns, dtype=torch.float64), weight, gram, True, 0.5),
        "cholesky": (gram, 0.1, True, False, False),
        "symmetrise": (x[:columns],),
        "rescale": (gram, weight[0].clone(), 0.1, 0.2, True),
        "admm_step": (state, previous, mask, single, gram.float() / (12.5 * columns), 1.5, 0.1),
        "masked_cg": (gram.float(), single, mask, single, 3, 0.0, None, basis, single),
        "encoder": (
            x.reshape(2, -1, columns),
            keep.reshape(2, -1),
            [
                torch.randn(-(-out // 6), inputs, 6, generator=generator)
                for out, inputs in ((3 * columns, columns), (columns, columns), (9, columns), (columns, 9))
            ],
            ["dense_tiles"] * 4,
            [3 * columns, columns, 1, 1, columns, columns, 1, 1, 9, columns, 1, 1, columns, 9, 1, 1],
            [4, *[columns // 4] * 8],
            [torch.randn(9 * columns + 9, generator=generator)],
            columns // 4,
            "gelu",
            1e-5,
        ),
        "draw_counts": (weight.flatten(), half - 1, 3, 5.0, 7),
        "bank_scores": (x[:rows], keys, x, torch.stack([entries % 3, entries % 2]), entries, 4.0 * columns, True),
        "select": (weight, half - 1, True),
        "nm": (weight, 2, 4),
        "masked_lstsq": (gram, weight, mask, 1e-14),
        "obs": (inverse, weight, torch.full((rows,), half), half, 0, 0, True),
        "sparsegpt": (weight, factor, None, prune, False, 0, 0, 128),
        "swap": (gram, weight, mask, torch.zeros(rows, dtype=torch.float64), 9, 0, None, inverse, True),
        "spmm": (x, [sparse.parts["bits"], sparse.values], sparse.scale, y[0], "bitmask", rows, [1, 1], "gelu"),
        "block_obs": (inverse, weight, torch.full((rows // 3,), half // 2), half // 2, 3, 2),
    }


def copied(arguments: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """Copies on a device of the tensors among them, also of those in lists."""

    def one(argument: Any) -> Any:
        if isinstance(argument, list):
            return [one(item) for item in argument]
        return argument.to(device, copy=True) if isinstance(argument, torch.Tensor) else argument

    return tuple(one(argument) for argument in arguments)


OPS = tuple(samples(torch.Generator()))
