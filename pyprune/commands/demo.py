# SPDX-License-Identifier: Apache-2.0
"""``pyprune demo``: prune the model that comes with pyprune and see what is left of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pyprune.commands import common

_EPILOG = """\
examples:
  pyprune demo
      prune a sentiment classifier by AKR and by SparseGPT, at 50 % and at 70 %, and judge all five models
  pyprune demo --quick
      the same with fewer calibration sentences
  pyprune demo --output demo-models
      keep the pruned models; then: pyprune evaluate demo-models/akr-70 --data YOUR_REVIEWS.tsv
  pyprune demo --json

The model (Apache-2.0) and the sentences (Kotzias et al., KDD 2015, CC BY 4.0) are part of the installation; nothing
is downloaded.
"""


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    parser = commands.add_parser(
        "demo",
        help="prune a real model that comes with pyprune, and compare",
        description="Prune a real fine-tuned model on real sentences, and compare with the dense one on 600 others.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    demo = parser.add_argument_group("demo")
    demo.add_argument("--quick", action="store_true", help="fewer calibration sentences, for a first look")
    demo.add_argument("--output", type=Path, metavar="DIR", help="keep the pruned models there")
    demo.add_argument("--seed", type=common.seed, default=0, metavar="N", help="of the calibration draw (default 0)")
    common.add_general(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prune, judge, print a table and a sentence."""
    from pyprune.commands.checkpoints import open_model, open_tokenizer
    from pyprune.demo import METHODS, SPARSITIES, model_folder, run_demo, story
    from pyprune.files import check_target
    from pyprune.progress import bars_only

    if arguments.output is not None:
        common.writable_parent(arguments.output / "model")
        for sparsity in SPARSITIES:
            for method in METHODS:
                check_target(arguments.output / f"{method}-{100 * sparsity:g}")
    folder = str(model_folder())
    model = open_model(folder)
    samples = story.QUICK_SAMPLES if arguments.quick else story.SAMPLES
    with bars_only(quiet=arguments.quiet) as progress:
        record = run_demo(
            model,
            open_tokenizer(folder),
            samples=samples,
            seed=arguments.seed,
            output=arguments.output,
            progress=progress,
        )
    if arguments.json:
        common.print_json(record)
        return 0
    _show(record)
    return 0


def _rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    from pyprune.demo.story import NAMES

    dense = record["dense"]
    rows: list[tuple[str, ...]] = [
        ("dense", "0 %", common.percent(dense["accuracy"]), f"{dense['correct']} of {dense['total']}", "", "", "")
    ]
    for run in record["runs"]:
        judged = run["evaluation"]
        rows.append(
            (
                NAMES[run["method"]],
                f"{100 * run['sparsity']:g} %",
                common.percent(judged["accuracy"]),
                f"{judged['correct']} of {judged['total']}",
                common.percent(run["against_dense"]["same_answer"], 1),
                common.percent(run["mean_error"], 1),
                f"{run['seconds']:.0f} s",
            )
        )
    return rows


_HEADER = ("model", "weights removed", "accuracy", "right", "same answer as dense", "mean layer error", "time")


def _show(record: dict[str, Any]) -> None:
    dense = record["dense"]
    title = (
        f"A sentiment classifier ({record['model']['parameters'] / 1e6:.1f} M parameters), pruned on "
        f"{record['calibration']['sentences']:,} review sentences without labels, judged on {dense['total']} others"
    )
    low, high = (100 * bound for bound in dense["interval"])
    lines = [
        f"The dense model's accuracy on sentences of this kind lies between {low:.1f} and {high:.1f} % (95 %).",
        record["conclusion"],
        f"All of it took {common.duration(record['seconds'])}.",
    ]
    saved = [run["saved"] for run in record["runs"] if run["saved"]]
    if saved:
        lines.append(f"The models are in {Path(saved[0]).parent}; AutoModelForSequenceClassification loads them.")
    _print_table(title, _rows(record))
    print()
    print("\n".join(lines))


def _print_table(title: str, rows: list[tuple[str, ...]]) -> None:
    if not sys.stdout.isatty():
        print(f"{title}\n\n{common.table(rows, _HEADER, right=range(1, 7))}")
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"{title}\n\n{common.table(rows, _HEADER, right=range(1, 7))}")
        return
    table = Table(title=title, title_justify="left", title_style="")
    for index, name in enumerate(_HEADER):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index < 4)
    for index, row in enumerate(rows):
        # a line under the dense model and under each sparsity
        table.add_row(*row, end_section=index % 2 == 0)
    Console().print(table)
