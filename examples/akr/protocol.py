# SPDX-License-Identifier: Apache-2.0
"""AKR as in its paper, from fine-tuned checkpoints to a table: average, prune, attack, report.

Every step leaves a folder, and one that is there is not made again: after a break the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer

import pyprune
from akr.paper import Protocol, Rates
from pyprune import attack, demo, methods, tasks
from pyprune.attack.library import check_installed
from pyprune.attack.recipes import RECIPES
from pyprune.cli import main as pyprune_command
from pyprune.errors import InputError, PypruneError
from pyprune.files import write_atomically
from pyprune.progress import for_terminal

QUICK = {"sparsities": [0.5, 0.875], "samples": 64, "rows": 16, "select_rows": 16}


def parser(protocol: Protocol, description: str | None) -> argparse.ArgumentParser:
    """The flags, with what the paper says as their defaults."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    rows = "all" if protocol.rows is None else protocol.rows
    models = found.add_argument_group("models")
    models.add_argument("--models", nargs="+", help=f"fine-tuned checkpoints, averaged if many ({protocol.model})")
    models.add_argument("--select", help="labelled rows to choose checkpoints on, not in --test (default: of --train)")
    models.add_argument("--select-rows", type=int, default=200, help="so many of them (default: %(default)s)")
    data = found.add_argument_group("data: files, folders or names on the hub")
    data.add_argument("--train", help=f"calibration text (default: {protocol.task} from the hub)")
    data.add_argument("--test", help=f"labelled rows to attack (default: {protocol.task} from the hub)")
    data.add_argument("--rows", type=int, default=protocol.rows, help=f"rows attacked (default: {rows})")
    data.add_argument("--max-length", type=int, default=protocol.max_length, help="tokens (default: %(default)s)")
    how = found.add_argument_group("pruning and attack")
    how.add_argument("--methods", nargs="+", default=["akr"], choices=methods.available(), help="default: akr")
    how.add_argument("--sparsities", nargs="+", type=float, default=list(protocol.pruned), help="default: the paper's")
    how.add_argument("--samples", type=int, default=2560, help="calibration texts (default: %(default)s)")
    how.add_argument("--recipe", default="textfooler", choices=tuple(RECIPES), help="default: textfooler")
    how.add_argument("--resources", help="folder with what the recipe needs (docs/attacks.md)")
    how.add_argument("--download", action="store_true", help="fetch what it needs and is not there")
    how.add_argument("--seed", type=int, default=0, help="of every draw (default: 0)")
    found.add_argument("--output", type=Path, default=Path(f"akr-{protocol.task}"), help="default: %(default)s")
    found.add_argument("--quick", action="store_true", help="the model and sentences of the demo, in small")
    found.add_argument("--plan", action="store_true", help="print the steps and the paper's numbers, do nothing")
    return found


def main(protocol: Protocol, description: str | None, arguments: Sequence[str] | None = None) -> int:
    """Run the protocol, or print its plan."""
    found = parser(protocol, description)
    if "--quick" in (sys.argv[1:] if arguments is None else arguments):
        found.set_defaults(
            models=[str(demo.model_folder())], train=str(demo.train_file()), test=str(demo.test_file()), **QUICK
        )
    options = found.parse_args(arguments)
    options.models = options.models or [protocol.model]
    options.train, options.test = options.train or protocol.task, options.test or protocol.task
    if options.plan:
        print(*plan(options), table(protocol, {}, options), sep="\n")
        return 0
    try:
        check_installed()
        keep_settings(options)
        with for_terminal() as progress:
            rates = Run(options, progress).rates()
    except PypruneError as error:
        print(error, file=sys.stderr)
        return 1
    text = table(protocol, rates, options)
    write_atomically(options.output / "table.md", text.encode() + b"\n", "the table")
    print(text)
    return pyprune_command(["report", *map(str, folders(options)), "--output", str(options.output / "report.html")])


def plan(options: argparse.Namespace) -> Iterator[str]:
    """What will be done, a line a step."""
    if len(options.models) > 1:
        yield f"average  {', '.join(options.models)}, chosen by accuracy under attack on {options.select_rows} rows of "
        yield f"         {options.select or options.train}"
    for method, sparsity in cases(options):
        yield f"prune    {method} at {100 * sparsity:g} %, calibrated on {options.samples} texts of {options.train}"
    yield f"attack   {', '.join(folder.name for folder in folders(options))}: {options.recipe} on {options.test}\n"


def cases(options: argparse.Namespace) -> list[tuple[str, float]]:
    """Methods by sparsities."""
    return [(method, sparsity) for method in options.methods for sparsity in options.sparsities]


def folders(options: argparse.Namespace) -> list[Path]:
    """One for each model that is attacked: the fine-tuned one (records only), the average, the pruned ones."""
    starts = ["fine-tuned", "averaged"] if len(options.models) > 1 else ["fine-tuned"]
    pruned = [f"{method}-{100 * sparsity:g}" for method, sparsity in cases(options)]
    return [options.output / name for name in (*starts, *pruned)]


def keep_settings(options: argparse.Namespace) -> None:
    """Note what the folders are made with; others are refused. More methods and sparsities may join."""
    grows = ("output", "methods", "sparsities", "plan", "quick")
    settings = {name: value for name, value in vars(options).items() if name not in grows}
    path = options.output / "settings.json"
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        differ = sorted(name for name in settings if settings[name] != earlier.get(name))
        if differ:
            raise InputError(f"{options.output} was made with other {', '.join(differ)}", hint="another --output")
    options.output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(settings, indent=1).encode() + b"\n", "the settings")


class Run:
    """The steps, with the data they share."""

    def __init__(self, options: argparse.Namespace, progress: Any) -> None:
        self.options, self.progress = options, progress
        self.tokenizer = AutoTokenizer.from_pretrained(options.models[0])
        # One object and one cache for all attacks: models then share what is known of sentences, after a break too.
        cache = options.output / "encodings"
        cache.mkdir(exist_ok=True)
        self.resources = attack.Resources.of(options.resources, download=options.download, cache=cache)
        self.test = self.load(options.test, options.rows)

    def load(self, source: str, rows: int | None) -> tasks.Examples:
        """Labelled rows."""
        return tasks.load_texts(source, limit=rows, seed=self.options.seed, purpose="evaluation")

    def rates(self) -> dict[str, dict[str, Any]]:
        """Every step; summaries of the attacks by name of the folder."""
        found = {"fine-tuned": self.attacked("fine-tuned", self.options.models[0])}
        start = self.options.models[0]
        if len(self.options.models) > 1:
            start = self.averaged()
            found["averaged"] = self.attacked("averaged", start)
        for method, sparsity in cases(self.options):
            name = f"{method}-{100 * sparsity:g}"
            found[name] = self.attacked(name, self.pruned(name, start, method, sparsity))
        return found

    def averaged(self) -> str:
        """The greedy average, chosen by accuracy under attack on rows that are not reported."""
        folder = self.options.output / "averaged"
        if not (folder / "soup.json").is_file():
            select = self.load(self.options.select or self.options.train, self.options.select_rows)
            select = tasks.without_rows(select, tasks.shared_rows(select, self.test))
            about = {"source": select.source, "sha256": select.sha256, "rows": len(select), "by": "aua"}

            def aua(model: Any) -> float:
                return float(self.attack(model, select).summary["aua"])

            pyprune.soup(self.options.models, aua, selection=about, progress=self.progress).save(folder)
        return str(folder)

    def pruned(self, name: str, start: str, method: str, sparsity: float) -> str:
        """A pruned model."""
        folder = self.options.output / name
        if not (folder / "pyprune.json").is_file():
            text = tasks.load_texts(self.options.train)
            journal = self.options.output / f"{name}.journal"
            result = pyprune.prune(
                open_model(start),
                text,
                tokenizer=self.tokenizer,
                method=method,
                sparsity=sparsity,
                samples=self.options.samples,
                max_length=self.options.max_length,
                seed=self.options.seed,
                journal=journal,
                resume=True,
                progress=self.progress,
            )
            result.save(folder)
            shutil.rmtree(journal)
        return str(folder)

    def attacked(self, name: str, model: str) -> dict[str, Any]:
        """Its summary, from the folder if it is there."""
        folder = self.options.output / name
        summary = folder / "attack.json"
        if not summary.is_file():
            found = self.attack(
                open_model(model),
                self.test,
                records=folder / "attack.jsonl",
                resume=True,
                name=model,
                progress=self.progress,
            )
            found.save(folder)
        return dict(json.loads(summary.read_text(encoding="utf-8")))

    def attack(self, model: Any, examples: tasks.Examples, **more: Any) -> attack.AttackResult:
        """The same attack on any model."""
        return attack.run(
            model,
            examples,
            tokenizer=self.tokenizer,
            recipe=self.options.recipe,
            resources=self.resources,
            seed=self.options.seed,
            max_length=self.options.max_length,
            **more,
        )


def open_model(name: str) -> Any:
    """In float32, which is what a CPU computes in."""
    return AutoModelForSequenceClassification.from_pretrained(name).float().eval()


def table(protocol: Protocol, rates: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """The paper's numbers beside ours, in Markdown."""
    papers: dict[str, Rates] = {"fine-tuned": protocol.fine_tuned, "averaged": protocol.averaged}
    papers |= {f"akr-{100 * sparsity:g}": found for sparsity, found in protocol.pruned.items()}
    lines = [
        f"{protocol.task}, per cent; the paper's BERT-base beside {', '.join(options.models)}",
        "",
        "| model | paper: Acc | Aua | Asr | ours: Acc | Aua | Asr | queries | rows |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys((*papers, *rates)):
        paper, ours = papers.get(name), rates.get(name)
        cells = [f"{value:g}" for value in (paper.accuracy, paper.aua, paper.asr)] if paper else ["–"] * 3
        lines.append(f"| {' | '.join([name, *cells, *measured(ours)])} |")
    if rates:
        lines += ["", *resources(next(iter(rates.values())))]
    return "\n".join(lines)


def measured(summary: dict[str, Any] | None) -> list[str]:
    """Rates with their intervals, queries, rows."""
    if summary is None:
        return ["–"] * 5
    cells = []
    for key in ("accuracy", "aua", "asr"):
        value, ends = summary[key], summary["intervals"][key]
        cells.append("–" if value is None else f"{100 * value:.1f} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})")
    queries = summary["queries_mean"]
    return [*cells, "–" if queries is None else f"{queries:.0f}", str(summary["total"])]


def resources(summary: dict[str, Any]) -> Iterator[str]:
    """What is not the recipe's own, a line each."""
    for entry in summary["resources"]:
        if entry["kind"] != "original":
            yield f"- {entry['name']}: {entry['kind']}, {entry['what']}"
