# SPDX-License-Identifier: Apache-2.0
"""Draws of weights without replacement: pyprune.ops.draw_counts beside repeated torch.multinomial.

Both give counts of how often each weight was among those kept. torch.multinomial is timed on a few draws, as each
takes the same time; it has probabilities made beforehand, ours makes its own. It takes at most 2^24 entries. A third
candidate is the top-k of Gumbel keys, which gives the same draws as ours and has no such limit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Report, arguments, interleaved
from torch import Tensor

from pyprune import ops
from pyprune.bench.timing import Timing

# Shape, sparsity, draws: the fewest and the most of the published schedule for this matrix.
CASES = ((3072, 768, 0.54, 63), (3072, 768, 0.9375, 110), (3072, 768, 0.9375, 663), (768, 768, 0.54, 15))
FEW = 2  # draws of the others that are timed
EXPONENT = 5.0


def main() -> None:
    options = arguments("Draws without replacement", rounds=5)
    report = Report("draw_counts", write_file=not options.no_write)
    done = report.resume() if options.go_on else []
    known = [(case["rows"], case["columns"], case["sparsity"], case["draws"]) for case in done]
    for case in ((48, 32, 0.5, 9),) if options.quick else CASES:
        if case not in known:
            measure(report, *case, options.rounds)
            report.write()


def measure(report: Report, rows: int, columns: int, sparsity: float, draws: int, rounds: int) -> None:
    weight = 0.04 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    keep = round(weight.numel() * (1.0 - sparsity))
    sizes = weight.abs().reshape(-1)
    p, logs = sizes**EXPONENT, EXPONENT * sizes.log()

    def counted(choose: Callable[[], Tensor]) -> Tensor:
        counts = torch.zeros(weight.numel(), dtype=torch.int32)
        for _ in range(FEW):
            counts[choose()] += 1
        return counts

    generator = torch.Generator().manual_seed(1)

    def by_gumbel() -> Tensor:
        noise = torch.empty_like(logs).exponential_(generator=generator).log_()
        return torch.topk(logs - noise, keep, sorted=False).indices

    candidates: dict[str, Callable[[], Tensor]] = {
        "pyprune": lambda: ops.draw_counts(weight, keep, draws, EXPONENT),
        "torch.multinomial": lambda: counted(lambda: torch.multinomial(p, keep, generator=generator)),
        "torch.topk of Gumbel keys": lambda: counted(by_gumbel),
    }
    timings = {
        name: _per_draw(timing, draws if name == "pyprune" else FEW)
        for name, timing in interleaved(candidates, rounds=rounds).items()
    }
    what = {"rows": rows, "columns": columns, "sparsity": sparsity, "draws": draws, "seconds_of": "one draw"}
    report.add(what, timings, ours="pyprune")


def _per_draw(timing: Timing, draws: int) -> Timing:
    each = {key: value / draws for key, value in vars(timing).items() if key != "rounds"}
    return Timing(**each, rounds=timing.rounds)


if __name__ == "__main__":
    main()
