# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of a whole K-prune, stage by stage, beside the algorithm of the released code.

Both prune the same classifier (without flags: that of the demo) with sentences of the same file; each in a process of
its own, so that peak memory is its own. Run with few sentences, both are also stated for 100 000 tokens: passes over
text and sums over tokens take as many times as long (batches are as large), searches, solves and cuts as long as
measured.

    python benchmarks/bench_kprune.py --model FOLDER --data train.tsv --sentences 64
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from typing import Any

import torch
from common import Report, arguments
from published_kprune import PublishedKPrune

from pyprune.demo import model_folder, train_file

TOKENS = 100_000
BATCH, LENGTH = 32, 64  # published for SST-2
# Stages that go over text, and so take longer with more of it.
GROWING = {"ours": ("embed", "measure", "moments", "advance"), "published": ("pass", "products")}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark alone."""
    parser.add_argument("--model", default=str(model_folder()), help="a BERT classifier, as cut_evenly.py writes")
    parser.add_argument("--data", default=str(train_file()), help="calibration text")
    parser.add_argument("--sentences", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.2, help="of the FLOPs that is left (default: %(default)s)")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the seconds of the processor, with one thread, where it is busy",
    )
    parser.add_argument(
        "--only", choices=tuple(GROWING), help="one of both, printed as JSON; used by the benchmark itself"
    )


def load(options: argparse.Namespace) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer and sentences drawn with replacement, as published."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from pyprune.tasks import load_texts

    model = AutoModelForSequenceClassification.from_pretrained(options.model).float().eval()
    texts = load_texts(options.data).texts
    chosen = torch.randint(len(texts), (options.sentences,), generator=torch.Generator().manual_seed(0))
    return model, AutoTokenizer.from_pretrained(options.model), [texts[index] for index in chosen.tolist()]


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """The whole of prune_units."""
    from pyprune.methods import prune_units

    model, tokenizer, texts = load(options)
    report = prune_units(
        model, texts, tokenizer=tokenizer, target_flops=options.share, max_length=LENGTH, batch_size=BATCH, inplace=True
    ).report
    kept = [layer["kept"] for layer in report["layers"]]
    stages = {name: report["seconds"].get(name, 0.0) for name in (*GROWING["ours"], "search", "solve", "prepare")}
    return {"seconds": stages, "tokens": report["data"]["tokens"], "heads": kept[0::2], "neurons": kept[1::2]}


def published(options: argparse.Namespace) -> dict[str, Any]:
    """The algorithm of the released code."""
    model, tokenizer, texts = load(options)
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
    padded = sum(batch["attention_mask"].numel() for batch in batches)
    return {
        "seconds": dict(run.seconds),
        "tokens": tokens,
        "padded": padded,
        "heads": run.heads,
        "neurons": run.neurons,
        "failed": run.failed,
    }


def alone(name: str) -> dict[str, Any]:
    """Run one of both in a process of its own."""
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


def stated(name: str, found: dict[str, Any]) -> dict[str, float]:
    """Seconds of every stage for 100 000 tokens."""
    factor = TOKENS / found["tokens"]
    return {
        stage: seconds * factor if stage in GROWING[name] else seconds for stage, seconds in found["seconds"].items()
    }


def main() -> None:
    """Run both, and compare."""
    options = arguments(__doc__ or "", rounds=1, add=add_flags)
    if options.quick:
        options.sentences = 4
    if options.only:
        from pyprune.methods.accounting import peak_bytes

        if options.processor_time:
            time.perf_counter = time.process_time  # what all stages are timed by

        found = (ours if options.only == "ours" else published)(options)
        print(json.dumps({**found, "peak_bytes": peak_bytes()}))
        return
    report = Report("kprune", not options.no_write)
    totals = {}
    for name in GROWING:
        found = alone(name)
        extrapolated = stated(name, found)
        totals[name] = sum(extrapolated.values())
        report.record(
            {
                "algorithm": name,
                "sentences": options.sentences,
                "share": options.share,
                "clock": "processor" if options.processor_time else "wall",
            },
            **found,
            stated_for_tokens=TOKENS,
            stated_seconds=extrapolated,
            stated_total=totals[name],
        )
    report.record({"ratio": "published / ours"}, stated=totals["published"] / totals["ours"])
    report.write()


if __name__ == "__main__":
    main()
