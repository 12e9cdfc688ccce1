# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of a whole K-prune, stage by stage, beside the algorithm of the released code.

Both prune the same classifier (without flags: that of the demo) with sentences of the same file; each in a process of
its own, so that peak memory is its own. Run with few sentences, both are also stated for 100 000 tokens: passes over
text take as many times as long as more tokens are multiplied, padding included, with batches as they then are; sums
over tokens as there are more tokens; searches, solves and cuts as long as measured. Of sentences sorted by length, many
have less padding than few; of sentences as they were drawn, as much.

`--peak` instead measures the memory of ours with 100 000 tokens, where it is largest: while the longest batches, which
come first, go forward and backward through all blocks, and while the first block is fitted.

    python benchmarks/bench_kprune.py --model FOLDER --data train.tsv --sentences 64
    python benchmarks/bench_kprune.py --model FOLDER --data train.tsv --peak --go-on
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import Report, arguments
from published_kprune import PublishedKPrune

from pyprune.demo import model_folder, train_file
from pyprune.methods import KPrune, prune_units
from pyprune.methods.accounting import peak_bytes
from pyprune.methods.driver import Silent

TOKENS = 100_000
BATCH, LENGTH = 32, 64  # published for SST-2
# Stages that take longer with more text: as there are more tokens with padding, and as there are more real ones.
PADDED = {"ours": ("embed", "measure", "advance"), "published": ("pass",)}
REAL = {"ours": ("moments",), "published": ("products",)}
SORTED = {"ours": True, "published": False}  # whether batches hold sentences of like lengths
RUNS = (*PADDED, "peak")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark alone."""
    parser.add_argument("--model", default=str(model_folder()), help="a BERT classifier, as cut_evenly.py writes")
    parser.add_argument("--label", help="the model's name in the results (default: its folder's)")
    parser.add_argument("--data", default=str(train_file()), help="calibration text")
    parser.add_argument("--sentences", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.2, help="of the FLOPs that is left (default: %(default)s)")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the seconds of the processor, with one thread, where it is busy",
    )
    parser.add_argument("--peak", action="store_true", help="only measure the memory that 100 000 tokens take")
    parser.add_argument("--only", choices=RUNS, help="one run, printed as JSON; used by the benchmark itself")


def load(options: argparse.Namespace) -> tuple[Any, Any]:
    """Model and tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(options.model).float().eval()
    return model, AutoTokenizer.from_pretrained(options.model)


def drawn(options: argparse.Namespace, count: int) -> list[str]:
    """Sentences drawn with replacement, as published; fewer are the first of more."""
    from pyprune.tasks import load_texts

    texts = load_texts(options.data).texts
    generator = random.Random(0)
    return [texts[generator.randrange(len(texts))] for _ in range(count)]


def lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of every sentence."""
    return [len(row) for row in tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]]


def padded(found: list[int], in_order: bool) -> int:
    """Tokens of all batches, padding included."""
    rows = sorted(found, reverse=True) if in_order else found
    batches = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
    return sum(max(batch) * len(batch) for batch in batches)


def enough(options: argparse.Namespace) -> list[str]:
    """So many drawn sentences that they have 100 000 tokens."""
    from transformers import AutoTokenizer

    texts = drawn(options, TOKENS // 4)
    total, count = 0, 0
    for length in lengths(AutoTokenizer.from_pretrained(options.model), texts):
        if total >= TOKENS:
            break
        total, count = total + length, count + 1
    return texts[:count]


class Until(Silent):
    """Stops a run when so many of its steps have been done."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, description: str) -> None:
        """Raise with the last of them."""
        self.left -= 1
        if not self.left:
            raise _Done


class _Done(Exception):  # noqa: N818  (nothing went wrong)
    pass


def ours(
    options: argparse.Namespace, texts: list[str], method: KPrune | None = None, progress: Silent | None = None
) -> dict[str, Any]:
    """The whole of prune_units."""
    model, tokenizer = load(options)
    report = prune_units(
        model,
        texts,
        tokenizer=tokenizer,
        method=method or KPrune(),
        target_flops=options.share,
        samples=len(texts),
        max_length=LENGTH,
        batch_size=BATCH,
        inplace=True,
        progress=progress,
    ).report
    kept = [layer["kept"] for layer in report["layers"]]
    names = (*PADDED["ours"], *REAL["ours"], "search", "solve", "prepare")
    return {
        "seconds": {name: report["seconds"].get(name, 0.0) for name in names},
        "tokens": report["data"]["tokens"],
        "padded": report["data"]["padded_tokens"],
        "heads": kept[0::2],
        "neurons": kept[1::2],
    }


def peak(options: argparse.Namespace) -> dict[str, Any]:
    """Ours with 100 000 tokens: a few batches of the largest measurement, and the fits of the first block."""
    texts = enough(options)
    for method, steps in ((KPrune(sample_first=True), 4), (KPrune(search="magnitude"), 2)):
        with suppress(_Done):
            ours(options, texts, method, Until(steps))
    return {"sentences": len(texts)}


def published(options: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    """The algorithm of the released code."""
    model, tokenizer = load(options)
    batches = [
        dict(
            tokenizer(
                texts[first : first + BATCH], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
            )
        )
        for first in range(0, len(texts), BATCH)
    ]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    run = PublishedKPrune(copy.deepcopy(model), batches, tokens / len(texts))
    run.run(options.share)
    return {
        "seconds": dict(run.seconds),
        "tokens": tokens,
        "padded": sum(batch["attention_mask"].numel() for batch in batches),
        "heads": run.heads,
        "neurons": run.neurons,
        "failed": run.failed,
    }


def alone(name: str) -> dict[str, Any]:
    """One run in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--only", name, "--no-write"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def stated(name: str, found: dict[str, Any], most: list[int]) -> dict[str, float]:
    """Seconds of every stage for sentences of the lengths ``most``."""
    factors = dict.fromkeys(PADDED[name], padded(most, SORTED[name]) / found["padded"])
    factors |= dict.fromkeys(REAL[name], sum(most) / found["tokens"])
    return {stage: seconds * factors.get(stage, 1.0) for stage, seconds in found["seconds"].items()}


def compare(options: argparse.Namespace, report: Report, model: str) -> None:
    """Run both, and record them and their ratio."""
    most = lengths(load(options)[1], enough(options))
    totals = {}
    for name in PADDED:
        found = alone(name)
        extrapolated = stated(name, found, most)
        totals[name] = sum(extrapolated.values())
        report.record(
            {
                "model": model,
                "algorithm": name,
                "sentences": options.sentences,
                "share": options.share,
                "clock": "processor" if options.processor_time else "wall",
            },
            **found,
            stated_for_tokens=sum(most),
            stated_for_padded=padded(most, SORTED[name]),
            stated_seconds=extrapolated,
            stated_total=totals[name],
        )
    ratio = totals["published"] / totals["ours"]
    report.record({"model": model, "ratio": "published / ours"}, stated=ratio)


def main() -> None:
    """One run, or both and their comparison."""
    options = arguments(__doc__ or "", rounds=1, add=add_flags)
    if options.quick:
        options.sentences = 4
    if options.only:
        if options.processor_time:
            time.perf_counter = time.process_time  # what all stages are timed by

        texts = drawn(options, options.sentences)
        runs = {"ours": lambda: ours(options, texts), "published": lambda: published(options, texts)}
        found = runs.get(options.only, lambda: peak(options))()
        print(json.dumps({**found, "peak_bytes": peak_bytes()}))
        return
    report = Report("kprune", not options.no_write)
    if options.go_on:
        report.resume()
    model = options.label or Path(options.model).name
    if options.peak:
        report.record({"model": model, "memory": f"{TOKENS} tokens"}, **alone("peak"))
    else:
        compare(options, report, model)
    report.write()


if __name__ == "__main__":
    main()
