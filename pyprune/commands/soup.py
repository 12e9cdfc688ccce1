# SPDX-License-Identifier: Apache-2.0
"""``pyprune soup``: an average of fine-tuned checkpoints, chosen on held-out data."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyprune.commands import attack, common
from pyprune.errors import InputError
from pyprune.tasks.registry import METRICS

_EPILOG = """\
examples:
  pyprune soup run-1 run-2 run-3 --select held-out.tsv --output averaged
      the checkpoints whose average is best on rows that none was trained on
  pyprune soup run-1 run-2 run-3 --select held-out.tsv --evaluate dev.tsv --output averaged
      and the accuracy of the average on the rows that you report; no row may be in both files
  pyprune soup run-1 run-2 run-3 --uniform --output averaged
      the average of all of them
  pyprune soup run-1 run-2 run-3 --select held-out.tsv --limit 200 --select-by aua --resources DIR --output averaged
      chosen by accuracy under TextFooler, as in AKR's paper; docs/attacks.md says what DIR holds
  pyprune prune averaged --data train.tsv --sparsity 0.875 --output pruned
      AKR with the average as its dense start

Checkpoints are tried in the order of their own scores, best first. One joins if the average of those chosen so far does
not become worse with it; all weigh the same. They have to be fine-tuned from one start, with the same labels and
tokenizer. OUTPUT holds a model that transformers loads, and soup.json with every score.
"""


_AUA = "aua"


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    from pyprune.tasks.registry import TASKS

    parser = commands.add_parser(
        "soup",
        help="average fine-tuned checkpoints, chosen on held-out data",
        description="Average fine-tuned checkpoints of one architecture, chosen greedily on held-out data.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="folders of the checkpoints, two or more")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write the average to")
    choice = parser.add_argument_group("choice (--select or --uniform)")
    choice.add_argument("--select", metavar="FILE", help="labelled rows to choose on: not those that are reported")
    choice.add_argument(
        "--select-by",
        choices=(*METRICS, _AUA),
        metavar="SCORE",
        help=f"one of {', '.join(METRICS)}; {_AUA}: accuracy under attack (default: as --metric)",
    )
    choice.add_argument("--uniform", action="store_true", help="average all; with --select their scores are noted")
    choice.add_argument("--limit", type=common.positive, metavar="N", help="choose on N rows drawn at random")
    choice.add_argument("--seed", type=common.seed, default=0, metavar="N", help="of that draw (default 0)")
    reported = parser.add_argument_group("evaluation")
    reported.add_argument("--evaluate", metavar="FILE", help="labelled rows to judge the average on")
    reported.add_argument(
        "--drop-shared", action="store_true", help="do not choose on rows that --evaluate has too (default: refuse)"
    )
    reported.add_argument("--metric", choices=METRICS, help="default: the task's own, else accuracy")
    reported.add_argument("--batch-size", type=common.positive, default=64, metavar="N", help="default 64")
    reported.add_argument(
        "--max-length", type=common.positive, metavar="N", help="tokens per row (default: the model's limit)"
    )
    under = parser.add_argument_group(f"attack (--select-by {_AUA})")
    under.add_argument("--recipe", choices=attack.RECIPES, default="textfooler", help="default textfooler")
    attack.add_resources(under)
    data = parser.add_argument_group("data")
    data.add_argument("--task", metavar="TASK", choices=tuple(TASKS), help=f"one of {', '.join(TASKS)}")
    common.add_columns(data)
    common.add_general(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Choose, average, evaluate, write."""
    if arguments.select is None and not arguments.uniform:
        arguments.parser.error("pass --select FILE (held-out rows to choose on) or --uniform")
    if len(arguments.models) < 2:
        arguments.parser.error("an average needs at least two checkpoints")

    from pyprune import methods, tasks
    from pyprune.attack.library import check_installed
    from pyprune.commands.checkpoints import open_tokenizer, silent_transformers
    from pyprune.files import check_target
    from pyprune.progress import for_terminal

    silent_transformers()
    if arguments.select_by == _AUA:
        check_installed()
    check_target(arguments.output.expanduser().absolute())
    common.writable_parent(arguments.output)
    selection, reported = _data(arguments)
    with for_terminal(quiet=arguments.quiet) as progress:
        for examples in (selection, reported):
            for note in examples.notes if examples is not None else ():
                progress.note(note)
        score, about = None, None
        if selection is not None:
            score = _score(arguments, selection, open_tokenizer(arguments.models[0]))
            about = {
                "source": selection.source,
                "sha256": selection.sha256,
                "rows": len(selection),
                **_by(arguments, selection),
            }
        found = methods.soup(arguments.models, score, uniform=arguments.uniform, selection=about, progress=progress)
        for note in found.report["notes"]:
            progress.note(note)
        evaluation = None
        if reported is not None:
            tokenizer = open_tokenizer(arguments.models[0])
            evaluation = tasks.evaluate(
                found.model,
                reported,
                tokenizer=tokenizer,
                metric=arguments.metric,
                progress=progress,
                **_how(arguments),
            )
            found.report["evaluation"] = common.jsonable(evaluation.to_dict())
        saved = found.save(arguments.output)
    if arguments.json:
        common.print_json({"output": str(saved), **found.report})
    else:
        print(_text(found.report, evaluation, str(saved)))
    return 0


def _data(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Rows to choose on and rows to report, none in both."""
    from pyprune import tasks

    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("text", "text_pair", "label", "split")}
    options |= {"task": tasks.find_task(arguments.task) if arguments.task else None, "purpose": "evaluation"}
    selection = reported = None
    if arguments.select is not None:
        selection = tasks.load_texts(arguments.select, limit=arguments.limit, seed=arguments.seed, **options)
    if arguments.evaluate is not None:
        reported = tasks.load_texts(arguments.evaluate, **options)
    if selection is None or reported is None:
        return selection, reported
    shared = tasks.shared_rows(selection, reported)
    if not shared:
        return selection, reported
    if not arguments.drop_shared:
        raise InputError(
            f"{len(shared)} of {len(selection)} rows to choose on are also in the rows that are reported",
            seen=f"{selection.source}, {selection.unit} {selection.lines[shared[0]]}: "
            f"{selection.texts[shared[0]][:60]!r} is in {reported.source}",
            hint="another file for --select; or --drop-shared, which leaves these rows out of the choice",
        )
    return tasks.without_rows(selection, shared), reported


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"batch_size": arguments.batch_size, "max_length": arguments.max_length}


def _by(arguments: argparse.Namespace, examples: Any) -> dict[str, str]:
    by = arguments.select_by or arguments.metric or (examples.task.metric if examples.task is not None else "accuracy")
    return {"by": by, "recipe": arguments.recipe} if by == _AUA else {"by": by}


def _score(arguments: argparse.Namespace, examples: Any, tokenizer: Any) -> Callable[[Any], float]:
    """What ``--select-by`` stands for: a number for a model, larger is better. All kinds of scores are made here."""
    by = arguments.select_by or arguments.metric
    if by == _AUA:
        from pyprune.attack import run as attack_with

        how = {"recipe": arguments.recipe, "seed": arguments.seed, "max_length": arguments.max_length}
        # One object for all attacks: models then share what is known of sentences.
        resources = attack.resources_of(arguments)
        return lambda model: float(
            attack_with(model, examples, tokenizer=tokenizer, resources=resources, **how).summary[_AUA]
        )

    from pyprune import tasks

    return lambda model: tasks.evaluate(model, examples, metric=by, tokenizer=tokenizer, **_how(arguments)).value


def _text(report: dict[str, Any], evaluation: Any, saved: str) -> str:
    own = {member["path"]: member["score"] for member in report["members"]}
    parts: list[str] = []
    if report["mode"] == "greedy":
        rows = [
            (step["model"], common.percent(own[step["model"]]), common.percent(step["score"]), _word(step["kept"]))
            for step in report["steps"]
        ]
        parts.append(common.table(rows, ("checkpoint", "alone", "average with it", ""), right=(1, 2)))
    elif report["selection"] is not None:
        scores = [(path, common.percent(score)) for path, score in own.items()]
        scores.append(("average of all", common.percent(report["score"])))
        parts.append(common.table(scores, ("checkpoint", "score"), right=(1,)))
    used = sum(member["used"] for member in report["members"])
    lines = [("average", f"{used} of {len(own)} checkpoints, each with the same weight")]
    if report["selection"] is not None:
        about = report["selection"]
        lines.append(
            (
                "chosen on" if report["mode"] == "greedy" else "scored on",
                f"{about['source']}, {about['rows']} rows, {about['by']}"
                + (f" ({about['recipe']})" if "recipe" in about else ""),
            )
        )
    if evaluation is not None:
        lines += [("reported", evaluation.describe()), ("", evaluation.source)]
    lines += [("time", common.duration(report["seconds"])), ("saved in", saved)]
    return "\n\n".join([*parts, common.table(lines)])


def _word(kept: bool) -> str:
    return "joins" if kept else "left out"
