# SPDX-License-Identifier: Apache-2.0
"""Gram matrix over kept tokens: pyprune.ops.gram beside torch's ways of doing it.

`torch float32` is fastest and least accurate (one float32 sum over all tokens), `torch float64` is what
equal accuracy costs. Both select the kept rows first; pyprune skips the others as it reads. Operations
are counted as tokens * columns * (columns + 1): half of a full product is enough.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Report, activations, arguments, interleaved
from torch import Tensor

from pyprune import ops

SHAPES = ((16384, 384), (16384, 768), (8192, 1536))


def main() -> None:
    options = arguments("Gram matrices", rounds=11)
    report = Report("gram", write_file=not options.no_write)
    for tokens, columns in ((512, 64),) if options.quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for padded in (False, True):
                x = activations(tokens, columns).to(dtype)
                keep = torch.rand(tokens, generator=torch.Generator().manual_seed(1)) < 0.7 if padded else None
                measure(report, x, keep, options.rounds)
    report.write()


def measure(report: Report, x: Tensor, keep: Tensor | None, rounds: int) -> None:
    def rows() -> Tensor:
        return x if keep is None else x[keep]

    def torch_float32() -> Tensor:
        real = rows().float()
        return real.T @ real

    def torch_float64() -> Tensor:
        real = rows().double()
        return real.T @ real

    out = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)

    def ours() -> Tensor:
        return ops.gram(x, keep, out.zero_())

    candidates: dict[str, Callable[[], Tensor]] = {
        "pyprune": ours,
        "torch float32": torch_float32,
        "torch float64": torch_float64,
    }
    exact = torch_float64()
    scale = rows().double().abs().T @ rows().double().abs()
    errors = {name: ((call().double() - exact).abs() / scale).max().item() for name, call in candidates.items()}
    timings = interleaved(candidates, rounds=rounds)
    tokens = len(rows())
    operations = tokens * x.shape[1] * (x.shape[1] + 1)
    report.add(
        {
            "tokens": x.shape[0],
            "kept": tokens,
            "columns": x.shape[1],
            "dtype": str(x.dtype).removeprefix("torch."),
        },
        timings,
        ours="pyprune",
        gflops={name: operations / timing.median * 1e-9 for name, timing in timings.items()},
        max_error=errors,
        bytes=x.numel() * x.element_size() + out.numel() * 16,
    )


if __name__ == "__main__":
    main()
