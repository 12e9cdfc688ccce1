# SPDX-License-Identifier: Apache-2.0
"""Heads and neurons cut without retraining: K-prune, the method of Kwon et al. and magnitude, over FLOPs and seeds.

A case is one pruning: method, part of the FLOPs removed, seed (which draws sentences and labels). It has the accuracy
of what is left on labelled rows, seconds of each stage, and the heads and neurons of each layer. Finished cases are
kept in the file of results as they come; `--go-on` leaves those out and adds the rest. Without flags: the model and
sentences of the demo.

    python benchmarks/bench_structured.py --name sst2 --model MODEL --data train.tsv --evaluate dev.tsv
    python benchmarks/bench_structured.py --name sst2-ablation --model MODEL --data train.tsv --held-out \
        --methods kprune "kprune tune=false" "kprune search=fisher" --removed 0.7
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from common import Report, arguments
from structured_tasks import LONGEST, Answers, Classification, small

from pyprune.demo import model_folder, test_file, train_file
from pyprune.methods.unit_request import UNIT_METHODS, UnitMethod
from pyprune.methods.units import prune_units

METHODS = ("kprune", "kwon", "unit-magnitude")
REMOVED = (0.4, 0.5, 0.6, 0.7, 0.8)
WORDS = {"true": True, "false": False}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark alone."""
    parser.add_argument("--name", default="reviews", help="of the task: part of the name of the results")
    parser.add_argument("--model", default=str(model_folder()), help="a fine-tuned checkpoint")
    parser.add_argument("--data", default=str(train_file()), help="calibration text")
    parser.add_argument("--evaluate", default=str(test_file()), help="labelled rows")
    parser.add_argument("--rows", type=int, help="judge by so many labelled rows (default: all)")
    parser.add_argument("--answers", action="store_true", help="questions in SQuAD's layout, by fine_tune.py's model")
    parser.add_argument("--held-out", action="store_true", help="judge by rows of --data, 1,000 if --rows says nothing")
    parser.add_argument("--samples", type=int, default=2048, help="calibration rows (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), help="runs of every case")
    parser.add_argument("--removed", nargs="+", type=float, default=REMOVED, help="parts of the FLOPs removed")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="methods, with settings: 'kprune tune=false'")


def method_of(text: str) -> UnitMethod:
    """A method and settings of its own: ``kprune tune=false energy_weight=0.01``."""
    name, *settings = text.split()
    values: dict[str, Any] = dict(setting.split("=") for setting in settings)
    for key, value in values.items():
        values[key] = WORDS[value] if value in WORDS else value if value.isalpha() else float(value)
    return UNIT_METHODS[name](**values)


def main() -> None:
    """Prune and judge every case."""
    options = arguments(__doc__ or "", rounds=1, add=add_flags)
    if options.quick:
        options.samples, options.seeds, options.removed, options.rows = 16, (0,), (0.7,), 32
        options.methods = ("unit-magnitude", "kprune search=magnitude")
    report = Report(f"structured-{options.name}", not options.no_write)
    known = report.resume() if options.go_on else []
    kind = Answers if options.answers else Classification
    task = kind(options.model, options.data, options.evaluate, options.rows, options.held_out)
    if not any(case["method"] == "dense" for case in known):
        report.record({"method": "dense"}, **task.judge(task.model))
    cases = [(s, r, m) for s in options.seeds for r in options.removed for m in options.methods]
    for seed, removed, method in cases:
        case = {"method": method, "removed": removed, "seed": seed, "samples": options.samples}
        if any(all(other.get(key) == value for key, value in case.items()) for other in known):
            continue
        begin = time.process_time()
        result = prune_units(
            task.model,
            task.calibration,
            tokenizer=task.tokenizer,
            method=method_of(method),
            target_flops=round(1 - removed, 4),
            samples=options.samples,
            max_length=LONGEST if options.answers else None,
            seed=seed,
        )
        found, units = result.report, result.units
        assert units is not None
        processor = time.process_time() - begin
        report.record(
            case,
            **task.judge(small(result.model, units)),
            tokens=found["data"]["tokens"],
            left=found["left"],
            heads=[len(layer.heads) for layer in units.layers],
            neurons=[len(layer.neurons) for layer in units.layers],
            errors=[layer.get("error") for layer in found["layers"]],
            notes=found["notes"],
            seconds_of=found["seconds"],
            processor_seconds=processor,
            load=round(os.getloadavg()[0], 1),
        )
        report.write()


if __name__ == "__main__":
    main()
