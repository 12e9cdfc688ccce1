# SPDX-License-Identifier: Apache-2.0
"""One step of training with a teacher: what pruning meanwhile costs, beside the same step without it.

Every candidate has a model of its own; steps are timed in turns, forward to optimizer. All schedules prune at every
step that is measured, and GRAIN's gates are open: "share" is the part of a run in which that is so by default, and
"overhead" the mean over a run. Where it says "5 % left" the schedule has ended, and the model is cut or has zeros.

With `--whole` runs from the first step to the last, with GRAIN's default schedule, are timed instead, step by step in
turns: how much of the time of a run that prunes nothing each of its tenths takes, and all of it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import Report, arguments, interleaved
from torch import nn

from pyprune.training import PUBLISHED, Cubic, MagnitudePruning, MovementPruning, PruningLoss, Ramp, UnitPruning
from pyprune.training.loop import Training, _Run
from pyprune.training.pruning import State
from pyprune.training.rows import Rows

STEPS = 100_000  # of the schedules; as many as are measured are at their beginning
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
# Part of a run in which statistics are gathered or masks change: the default schedules of train_prune.
SHARES = {
    "imp": 0.6,
    "movement": 1.0,
    "soft-movement": 1.0,
    "grain": 0.4,
    "grain, every 2": 0.4,
    "grain, whole loss": 0.4,
}
# And whether the model is made smaller.
ENDED = {"grain, 5 % left, zeros": False, "grain, 5 % left, cut": True}


class NoPruning:
    """A pruner that does nothing."""

    def settings(self) -> dict[str, Any]:
        return {}

    def begin(self, model: nn.Module, steps: int, state: State | None = None) -> None: ...

    def before_step(self, step: int, optimizer: Any, *, scale: float = 1.0) -> None: ...

    def after_step(self, step: int, optimizer: Any) -> None: ...

    def end(self) -> None: ...

    def sparsity(self) -> float:
        return 0.0

    def linears(self) -> dict[str, Any]:
        return {}

    def check(self) -> None: ...

    def state(self) -> State:
        return State()


def main() -> None:
    options = arguments("A step of training while pruning", rounds=9, add=add_flags)
    if options.whole:
        whole(options)
        return
    report = Report("training", write_file=not options.no_write)
    done = report.resume() if options.go_on else []
    known = [(case["tokens"], case["hidden loss"]) for case in done]
    sizes = TINY if options.quick else MINILM
    for tokens in (8,) if options.quick else options.tokens:
        for hidden in options.hidden:
            if (tokens, bool(hidden)) not in known:
                measure(report, sizes, 4 if options.quick else 32, tokens, hidden, options)
                report.write()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which cases and candidates."""
    parser.add_argument("--tokens", nargs="+", type=int, default=(32, 128), help="of each of 32 rows")
    parser.add_argument("--whole", action="store_true", help="whole runs instead of steps")
    parser.add_argument("--steps", type=int, default=100, help="of a whole run (default: %(default)s)")
    parser.add_argument("--hidden", nargs="+", type=float, default=(0.0, 1.0), help="weights of the hidden loss")
    parser.add_argument("--methods", nargs="+", choices=tuple(SHARES), default=tuple(SHARES))


def measure(
    report: Report, sizes: dict[str, int], rows: int, tokens: int, hidden: float, options: argparse.Namespace
) -> None:
    """Steps of one shape, with predictions alone or hidden states too."""
    data = made_up(rows, tokens)
    teacher = build(sizes, seed=1)
    schedule = Cubic(0.9, 0, STEPS)
    runs = {}
    for name in ("plain", *options.methods, *ENDED):
        loss = PruningLoss(teacher, hard=0.0, soft=1.0, hidden=hidden, logits=PUBLISHED["grain"])
        ended = UnitPruning(Cubic(0.95, 0, 1), loss=loss, shrink=ENDED.get(name, False))
        pruner: Any = {
            "plain": NoPruning,
            **dict.fromkeys(ENDED, lambda ended=ended: ended),
            "imp": lambda: MagnitudePruning(schedule),
            "movement": lambda: MovementPruning(schedule),
            "soft-movement": lambda: MovementPruning(Cubic(0.1, 0, STEPS), soft=100.0),
            "grain": lambda loss=loss: UnitPruning(schedule, loss=loss),
            "grain, every 2": lambda loss=loss: UnitPruning(schedule, loss=loss, every=2),
            "grain, whole loss": lambda: UnitPruning(schedule),
        }[name]()  # type: ignore[no-untyped-call, operator]
        runs[name] = Stepper(build(sizes, seed=0), data, loss, pruner, rows)
    timings = interleaved(runs, rounds=options.rounds)
    plain = timings["plain"].median
    shares = {name: SHARES[name] for name in options.methods}
    overhead = {name: share * (timings[name].median / plain - 1) for name, share in shares.items()}
    case = {**sizes, "rows": rows, "tokens": tokens, "hidden loss": bool(hidden)}
    report.add(case, timings, ours="plain", share=shares, overhead=overhead)
    for run in runs.values():
        run.run.stop()


def whole(options: argparse.Namespace) -> None:
    """Runs of GRAIN to 5 % beside one that prunes nothing."""
    report = Report("training-whole", write_file=not options.no_write)
    sizes, rows = (TINY, 4) if options.quick else (MINILM, 32)
    tokens, steps = (8, 10) if options.quick else (options.tokens[0], options.steps)
    for hidden in options.hidden:
        taken: dict[str, list[float]] = {}
        runs = {}
        for name, shrink in (("plain", None), ("grain", True), ("grain, zeros in place", False)):
            loss = PruningLoss(build(sizes, seed=1), hard=0.0, soft=1.0, hidden=hidden, logits=PUBLISHED["grain"])
            ramp = Ramp(0.95, warm_up=0.2, cool_down=0.6)
            pruner: Any = NoPruning() if shrink is None else UnitPruning(ramp, loss=loss, shrink=shrink)  # type: ignore[no-untyped-call]
            runs[name] = Stepper(build(sizes, seed=0), made_up(rows, tokens), loss, pruner, rows, steps)
            taken[name] = []
        for _ in range(steps):
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                taken[name].append(time.perf_counter() - begin)
        for run in runs.values():
            run.run.stop()
        tenths = {
            name: [sum(part) / sum(base) for part, base in zip(parts(seconds), parts(taken["plain"]), strict=True)]
            for name, seconds in taken.items()
            if name != "plain"
        }
        report.record(
            {**sizes, "rows": rows, "tokens": tokens, "hidden loss": bool(hidden), "steps": steps},
            seconds={name: sum(seconds) for name, seconds in taken.items()},
            share={name: sum(seconds) / sum(taken["plain"]) for name, seconds in taken.items()},
            tenths=tenths,
        )
        report.write()


def parts(values: list[float], count: int = 10) -> list[list[float]]:
    """As many consecutive parts, alike but for one."""
    return [values[len(values) * part // count : len(values) * (part + 1) // count] for part in range(count)]


def made_up(rows: int, tokens: int) -> Rows:
    """One batch of random words."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (rows, tokens), generator=generator).tolist()
    return Rows([{"input_ids": row, "attention_mask": [1] * tokens} for row in ids], [0, 1] * (rows // 2))


class Stepper:
    """Calls take one step after another."""

    def __init__(
        self, model: nn.Module, data: Rows, loss: PruningLoss, pruner: Any, rows: int, steps: int = STEPS
    ) -> None:
        self.run = _Run(model, data, loss, pruner, Training(batch_size=rows), steps)
        self.run.start(None)
        self.number = 0

    def __call__(self) -> None:
        self.run.step(self.number)
        self.number += 1


def build(sizes: dict[str, int], seed: int) -> Any:
    """A random BERT classifier."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(vocab_size=1000, num_labels=2, **sizes))


if __name__ == "__main__":
    main()
