# SPDX-License-Identifier: Apache-2.0
"""Prune a fine-tuned classifier, save it, load it with transformers alone, and judge both.

Without arguments: the model and the sentences that come with pyprune.

    python examples/prune_model.py
    python examples/prune_model.py --solver obs --output pruned
    python examples/prune_model.py --model MODEL --train train.tsv --test dev.tsv --sparsity 0.7
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer

import pyprune
from pyprune import demo, methods, tasks


def main() -> None:
    """Prune, save, load, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default=str(demo.model_folder()), help="folder of a sequence classifier")
    parser.add_argument("--train", default=str(demo.train_file()), help="calibration text; labels are not used")
    parser.add_argument("--test", default=str(demo.test_file()), help="labelled text")
    parser.add_argument("--method", default="akr", choices=methods.available(), help="default: %(default)s")
    # AKR's own solver, obs, leaves half of the error and takes about ten times as long.
    parser.add_argument("--solver", default="sparsegpt", choices=pyprune.solvers.available(), help="default: sparsegpt")
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction removed (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=256, help="calibration sentences (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=200, help="sentences judged (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="keep the pruned model there")
    options = parser.parse_args()

    # float32 even for a half-precision file: that is what a CPU computes in, and what is saved again.
    model = AutoModelForSequenceClassification.from_pretrained(options.model).float()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    calibration = tasks.load_texts(options.train)
    held_out = tasks.load_texts(options.test, limit=options.limit, purpose="evaluation")

    result = pyprune.prune(
        model,
        calibration.inputs,
        tokenizer=tokenizer,
        method=options.method,
        solver=options.solver,
        sparsity=options.sparsity,
        samples=options.samples,
    )
    report = result.report
    worst = max(report["layers"], key=lambda layer: layer["error"])
    print(f"method   {report['method']}, {report['pattern']}, solver {report['solver']}")
    print(f"removed  {report['sparsity']['linear_weights']:.2%} of {report['counts']['linear_weights']['total']:,}")
    print(f"error    {report['mean_error']:.2%} on average, {worst['error']:.2%} in {worst['name']}")

    with tempfile.TemporaryDirectory() as folder:
        saved = result.save(options.output or Path(folder) / "pruned")
        # No pyprune in this line: what was saved is an ordinary checkpoint.
        again = AutoModelForSequenceClassification.from_pretrained(saved)
    print(f"dense    {tasks.evaluate(model, held_out, tokenizer=tokenizer).describe()}")
    print(f"pruned   {tasks.evaluate(again, held_out, tokenizer=tokenizer).describe()}")


if __name__ == "__main__":
    main()
