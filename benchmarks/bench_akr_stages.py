# SPDX-License-Identifier: Apache-2.0
"""AKR from end to end: seconds of each stage, and what torch's exact OBS would take in its solver's place.

Whole models are pruned through the command line, as in `bench_whole_model.py`, with each of the solvers: a checkpoint,
and with `--bert-base` a model of BERT-base's shape with random weights (12 layers, hidden size 768). Exact OBS in torch
(`solver/rivals.py`, rank-1 updates, every row an inverse of its own) is timed on some rows of a layer of each width and
extrapolated by rows, which do not meet: `measured` says how many were run, `extrapolated` what follows.

    python benchmarks/bench_akr_stages.py --name sst2 --model MODEL --data train.tsv
    python benchmarks/bench_akr_stages.py --name bert-base --bert-base --data train.tsv --go-on
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from bench_whole_model import prune
from common import Report, activations, arguments
from solver.rivals import rank1_obs

from pyprune import Unstructured
from pyprune.demo import model_folder, train_file

SOLVERS = ("obs", "best", "fast")
HALF = Unstructured(0.5, scope="row")
ROWS = {3072: 2, 1536: 8, 768: 32, 384: 384}  # of torch's OBS, by inputs: what takes no minute
BATCH = 32


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark alone."""
    parser.add_argument("--name", default="reviews", help="of the model: part of the lines of results")
    parser.add_argument("--model", default=str(model_folder()), help="a fine-tuned checkpoint")
    parser.add_argument("--bert-base", action="store_true", help="random weights in the shape of BERT-base instead")
    parser.add_argument("--data", default=str(train_file()), help="calibration text")
    parser.add_argument("--samples", type=int, default=2560, help="calibration rows (default: %(default)s)")
    parser.add_argument("--solvers", nargs="*", default=SOLVERS, help="solvers of AKR (default: %(default)s)")
    parser.add_argument("--no-torch", action="store_true", help="leave torch's OBS out")


def random_bert(folder: Path, layers: int, hidden: int, feed_forward: int) -> Path:
    """Write a BERT classifier with random weights, two labels and the tokenizer of the demo."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=feed_forward,
        num_labels=2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def shapes(model: str) -> Counter[tuple[int, int]]:
    """How many linears of each shape `[out, in]` are pruned."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    hidden, wide = config.hidden_size, config.intermediate_size
    return Counter(
        {
            shape: count * config.num_hidden_layers
            for shape, count in (((hidden, hidden), 4), ((wide, hidden), 1), ((hidden, wide), 1))
        }
    )


def torch_obs(columns: int, quick: bool) -> dict[str, Any]:
    """Seconds of exact OBS in torch on some rows of a layer."""
    rows = 2 if quick else ROWS.get(columns, BATCH)
    x = activations(4 * columns, columns).double()
    gram = x.T @ x / len(x)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) / columns**0.5
    begin = time.perf_counter()
    rank1_obs(weight, gram, HALF, batch=BATCH)
    return {"rows": rows, "seconds": time.perf_counter() - begin}


def main() -> None:
    """Prune with every solver, then time torch's."""
    options = arguments(__doc__ or "", rounds=1, add=add_flags)
    report = Report("akr-stages", write_file=not options.no_write)
    if options.go_on:
        report.resume()
    with tempfile.TemporaryDirectory() as scratch:
        if options.bert_base:
            options.model = str(random_bert(Path(scratch) / "model", 12, 768, 3072))
        if options.quick:
            options.solvers, options.samples = options.solvers[-1:], 32
            options.model = str(random_bert(Path(scratch) / "model", 2, 32, 64))
        layers = shapes(options.model)
        for solver in options.solvers:
            measured = prune(f"akr:{solver}", "0.5", options, Path(scratch) / "pruned")
            report.record({"model": options.name, "solver": solver, "samples": options.samples}, **measured)
            report.write()
        if not options.no_torch:
            rival(report, options.name, layers, options.quick)
    report.write()


def rival(report: Report, name: str, layers: Counter[tuple[int, int]], quick: bool) -> None:
    """Extrapolate torch's OBS to the whole model, and compare with the runs that the report has of it."""
    ours = {case["solver"]: case["seconds"] for case in report.cases if case["model"] == name and "seconds" in case}
    measured = {columns: torch_obs(columns, quick) for columns in sorted({shape[1] for shape in layers})}
    seconds = sum(
        count * rows * measured[columns]["seconds"] / measured[columns]["rows"]
        for (rows, columns), count in layers.items()
    )
    report.record(
        {"model": name, "solver": "torch rank-1 OBS"},
        measured={str(columns): value for columns, value in measured.items()},
        layers=[{"shape": shape, "count": count} for shape, count in layers.items()],
        extrapolated_solve_seconds=seconds,
        times_our_solve={solver: seconds / stages["solve"] for solver, stages in ours.items()},
        times_our_run={solver: 1 + (seconds - stages["solve"]) / stages["total"] for solver, stages in ours.items()},
    )


if __name__ == "__main__":
    main()
