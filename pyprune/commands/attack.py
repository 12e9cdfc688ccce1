# SPDX-License-Identifier: Apache-2.0
"""``pyprune attack``: accuracy of a classifier under attack, by TextAttack's recipes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyprune.commands import common

RECIPES = ("textfooler", "textbugger", "pwws", "deepwordbug", "bert-attack", "bae")
_AGAINST = "against.jsonl"

_EPILOG = """\
examples:
  pyprune attack --install-line
      the command that installs TextAttack, so that it works next to transformers 5
  pyprune attack pruned --data dev.tsv --recipe deepwordbug --limit 200
  pyprune attack pruned --task sst2 --recipe textfooler --resources DIR --output robust --workers 2
      records in robust/attack.jsonl as they come, the summary in robust/attack.json
  pyprune attack pruned --task sst2 --recipe textfooler --resources DIR --output robust --workers 2 --resume
      go on after a break
  pyprune attack pruned --data dev.tsv --recipe pwws --against MODEL
      both models on the same rows, and intervals of the differences
  pyprune attack pruned --data dev.tsv --recipe pwws --against dense/attack.jsonl
      the same, with records of an earlier run of the same attack

Acc: share of rows the model gets right. Aua: share it still gets right under attack. Asr = 1 - Aua / Acc.
Nothing is downloaded without --download. docs/attacks.md says what each recipe needs and what may stand in for it.
"""


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    parser = commands.add_parser(
        "attack",
        help="accuracy of a classifier under attack",
        description="Attack a sequence classifier by a recipe of TextAttack, and say how it withstands.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="folder of a classifier, or its name on the hub")
    parser.add_argument(
        "--install-line", action="store_true", help="print the command that installs TextAttack, and exit"
    )
    data = parser.add_argument_group("data (at least one of --data and --task)")
    data.add_argument(
        "--data", metavar="FILE", help="labelled file, folder, or hub data set owner/name[:configuration]"
    )
    data.add_argument("--task", metavar="TASK", help="a task such as sst2 (see pyprune evaluate --help)")
    common.add_columns(data)
    data.add_argument("--limit", type=common.positive, metavar="N", help="attack N rows drawn at random")
    data.add_argument(
        "--seed", type=common.seed, default=0, metavar="N", help="of that draw and the attack (default 0)"
    )
    how = parser.add_argument_group("attack")
    how.add_argument("--recipe", choices=RECIPES, default="textfooler", help="default textfooler")
    how.add_argument(
        "--against", metavar="MODEL", help="attack this model too, or compare with an earlier run's attack.jsonl"
    )
    how.add_argument(
        "--max-length", type=common.positive, metavar="N", help="tokens per row (default: the model's limit)"
    )
    how.add_argument(
        "--together",
        type=common.positive,
        default=32,
        metavar="N",
        help="rows whose queries share batches (default 32)",
    )
    how.add_argument("--workers", type=common.positive, default=1, metavar="N", help="processes (default 1)")
    add_resources(parser.add_argument_group("resources"))
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="DIR", type=Path, help="folder for attack.jsonl and attack.json")
    out.add_argument("--resume", action="store_true", help="go on with the records in that folder")
    common.add_general(parser)
    parser.set_defaults(run=run, parser=parser)


def add_resources(files: Any) -> None:
    """Flags for what a recipe needs, which :func:`resources_of` reads."""
    files.add_argument("--resources", metavar="DIR", help="folder with all of them; those below come first")
    files.add_argument("--nltk-data", metavar="DIR", help="folder with corpora and taggers of NLTK")
    files.add_argument(
        "--synonyms", metavar="FILE", help="counter-fitted vectors, or a .json of neighbours (textfooler, textbugger)"
    )
    files.add_argument("--encoder", metavar="DIR", help="a sentence encoder (all recipes but pwws and deepwordbug)")
    files.add_argument("--masked-lm", metavar="DIR", help="a masked language model (bert-attack, bae)")
    files.add_argument("--cache", metavar="DIR", help="keep sentence encodings there: later runs are faster")
    files.add_argument("--download", action="store_true", help="fetch what is missing; without it nothing is")


def resources_of(arguments: argparse.Namespace) -> Any:
    """What these flags name."""
    from pyprune.attack.resources import Resources

    return Resources.of(
        arguments.resources,
        download=arguments.download,
        cache=arguments.cache,
        nltk_data=arguments.nltk_data,
        synonyms=arguments.synonyms,
        encoder=arguments.encoder,
        masked_lm=arguments.masked_lm,
    )


def run(arguments: argparse.Namespace) -> int:
    """Load, attack, print."""
    from pyprune.attack.library import check_installed, install_line

    if arguments.install_line:
        print(install_line())
        return 0
    _check_usage(arguments)
    check_installed()
    if arguments.output is not None:
        common.writable_parent(arguments.output / "attack.json")

    from pyprune import tasks
    from pyprune.attack.run import write_summary
    from pyprune.progress import for_terminal

    examples = tasks.load_texts(
        arguments.data if arguments.data is not None else arguments.task,
        text=arguments.text,
        text_pair=arguments.text_pair,
        label=arguments.label,
        split=arguments.split,
        limit=arguments.limit,
        seed=arguments.seed,
        task=tasks.find_task(arguments.task) if arguments.task else None,
        purpose="evaluation",
    )
    resources = resources_of(arguments)
    with for_terminal(quiet=arguments.quiet) as progress:
        for note in examples.notes:
            progress.note(note)
        first = _attack(arguments, arguments.model, examples, resources, progress, "attack.jsonl")
        document = first.to_dict()
        if arguments.against is not None:
            document |= _against(arguments, first, examples, resources, progress)
    if arguments.output is not None:
        write_summary(arguments.output, common.jsonable(document))
    if arguments.json:
        common.print_json(document)
    else:
        print(_text(document))
    return 0


def _check_usage(arguments: argparse.Namespace) -> None:
    if arguments.model is None:
        arguments.parser.error("MODEL is needed")
    if arguments.data is None and arguments.task is None:
        arguments.parser.error("pass --data FILE or --task TASK")
    if arguments.resume and arguments.output is None:
        arguments.parser.error("--resume goes with --output")


def _attack(
    arguments: argparse.Namespace, name: str, examples: Any, resources: Any, progress: Any, records: str
) -> Any:
    from pyprune import attack
    from pyprune.commands.checkpoints import open_model, open_tokenizer

    return attack.run(
        open_model(name, head="ForSequenceClassification"),
        examples,
        tokenizer=open_tokenizer(name),
        recipe=arguments.recipe,
        resources=resources,
        records=arguments.output / records if arguments.output is not None else None,
        resume=arguments.resume,
        seed=arguments.seed,
        together=arguments.together,
        workers=arguments.workers,
        max_length=arguments.max_length,
        name=name,
        progress=progress,
    )


def _against(arguments: argparse.Namespace, first: Any, examples: Any, resources: Any, progress: Any) -> dict[str, Any]:
    from pyprune import attack

    earlier = Path(arguments.against).expanduser()
    if earlier.suffix == ".jsonl":
        records = attack.read(earlier)
        summary: dict[str, Any] = {"model": arguments.against, **attack.summarise(records)}
    else:
        second = _attack(arguments, arguments.against, examples, resources, progress, _AGAINST)
        records, summary = list(second.records), second.to_dict()
    return {"against": summary, "comparison": attack.compare(records, first.records)}


def _text(document: dict[str, Any]) -> str:
    columns = [document, *([document["against"]] if "against" in document else [])]
    rows = [
        (title, *(_rate(column, key) for column in columns))
        for title, key in (("Acc", "accuracy"), ("Aua", "aua"), ("Asr", "asr"))
    ]
    rows += [
        ("rows", *(str(column["total"]) for column in columns)),
        ("skipped", *(str(column["skipped"]) for column in columns)),
        ("queries per attack", *(_number(column["queries_mean"], 1) for column in columns)),
        ("words changed", *(_share(column["words_changed"]) for column in columns)),
    ]
    lines = [common.table(rows, (document["recipe"], *(str(column["model"]) for column in columns)))]
    if "comparison" in document:
        lines.append("")
        for title, key in (("Acc", "accuracy"), ("Aua", "aua"), ("Asr", "asr")):
            found = document["comparison"][key]
            if found["difference"] is not None and found["interval"] is not None:
                low, high = (100 * bound for bound in found["interval"])
                lines.append(
                    f"{title} differs by {100 * found['difference']:+.2f} points (95 % {low:+.1f} to {high:+.1f})"
                )
    lines.append("")
    lines += [
        f"{entry['name']}: {entry['kind']}, {entry['what']}"
        for entry in document["resources"]
        if entry["kind"] != "original"
    ]
    lines.append(
        f"{document['source']}, {document['total']} rows, {common.duration(document['seconds'])}, "
        f"{document['queries_per_second']:.0f} queries per second"
    )
    return "\n".join(lines)


def _rate(column: dict[str, Any], key: str) -> str:
    if column[key] is None:
        return "-"
    low, high = (100 * bound for bound in column["intervals"][key])
    return f"{common.percent(column[key])} ({low:.1f} to {high:.1f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else common.percent(value, 1)
