# SPDX-License-Identifier: Apache-2.0
"""``pyprune prune --method movement ...``: options and work of methods that prune while the model is fine-tuned."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyprune.commands import common, units
from pyprune.commands.evaluate import evaluation_entry, judge
from pyprune.commands.summary import DENOMINATORS, cost_rows
from pyprune.errors import PypruneError

EXAMPLES = """\
  pyprune prune MODEL --method movement --train train.tsv --teacher TEACHER --sparsity 0.9 --output pruned
      pruned while it is fine-tuned for --epochs, taught by a fine-tuned model; the training rows need labels.
      --resume goes on with the last checkpoint in OUTPUT.training, with the same result to the last bit
  pyprune prune MODEL --method grain --train train.tsv --teacher TEACHER --sparsity 0.9 --output smaller
      nine tenths of neurons and of channels of heads removed meanwhile; the model saved is physically smaller
"""
# By the name of the option: what goes into the training's settings, the losses, the schedule.
_SETTINGS = ("epochs", "rate", "accumulate", "precision")
_LOSSES = ("hard", "soft", "hidden", "attention")
_SCHEDULE = ("warm_up", "cool_down")


def add(parser: argparse.ArgumentParser) -> None:
    """Enter the options into the parser of ``prune``."""
    from pyprune.methods.trained import TRAIN_RECIPES

    group = parser.add_argument_group(f"methods that train ({', '.join(TRAIN_RECIPES)})")
    group.add_argument("--train", metavar="FILE", help="labelled rows to train on (default: those of --task)")
    group.add_argument("--teacher", metavar="DIR", help="a model fine-tuned for the same labels (default: no teacher)")
    group.add_argument(
        "--epochs", type=common.not_negative, metavar="N", help="passes over the rows (default 3; of grain 20)"
    )
    group.add_argument("--rate", type=common.not_negative, metavar="R", help="highest learning rate (default 3e-5)")
    group.add_argument("--accumulate", type=common.positive, metavar="N", help="batches per step (default 1)")
    group.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="of products (default float32)")
    group.add_argument("--freeze-embeddings", action="store_true", help="do not train them")
    group.add_argument(
        "--warm-up", type=common.fraction, metavar="P", help="part of the run before pruning (default 0.1)"
    )
    group.add_argument("--cool-down", type=common.fraction, metavar="P", help="part of the run after it (default 0.3)")
    for name, what in (
        ("hard", "labels (default 0.1; without a teacher 1)"),
        ("soft", "the teacher's predictions (default 0.9)"),
        ("hidden", "the teacher's hidden states (default 0; of grain 1)"),
        ("attention", "the teacher's attentions (default 0)"),
    ):
        group.add_argument(f"--{name}", type=common.not_negative, metavar="W", help=f"weight of {what}")
    group.add_argument("--contrast", action="store_true", help="add CAP's contrastive terms to the method")
    group.add_argument("--checkpoint-every", type=common.positive, metavar="N", help="steps (default: two minutes)")


def chosen(arguments: argparse.Namespace) -> bool:
    """Whether the method is one that trains."""
    from pyprune.methods.trained import TRAIN_RECIPES

    return arguments.method in TRAIN_RECIPES


def check_usage(arguments: argparse.Namespace) -> None:
    """Leave through the parser where options do not go together."""
    if not chosen(arguments):
        given = [
            name
            for name in (
                *_SETTINGS,
                *_LOSSES,
                *_SCHEDULE,
                "train",
                "teacher",
                "freeze_embeddings",
                "contrast",
                "checkpoint_every",
            )
            if getattr(arguments, name) not in (None, False)
        ]
        if given:
            option = given[0].replace("_", "-")
            arguments.parser.error(f"--{option} is for methods that train, such as --method movement")
        return
    if arguments.train is None and arguments.task is None:
        arguments.parser.error(f"--method {arguments.method} needs --train FILE (labelled rows) or --task TASK")
    targets = tuple(f"target_{measure}" for measure in units.TARGETS)
    for name in ("data", "pattern", "scope", "solver", "rectify", "damping", "spill", "labels", *targets):
        if getattr(arguments, name) is not None:
            arguments.parser.error(f"--{name.replace('_', '-')} is not for methods that train")
    if arguments.storage == "compact" and arguments.method != "grain":
        arguments.parser.error(
            f"--storage compact goes with --method grain: {arguments.method} leaves all units in place"
        )
    for name in ("dry_run", "streaming", "random_weights"):
        if getattr(arguments, name):
            arguments.parser.error(f"--{name.replace('_', '-')} is not for methods that train")
    if arguments.resume and arguments.output is None:
        arguments.parser.error("--resume goes with --output: checkpoints are kept beside it")


def run(arguments: argparse.Namespace, check_output: Callable[[Path, str], None]) -> int:
    """Check everything that can be checked early, train, evaluate, save, print."""
    from pyprune import models, tasks
    from pyprune.commands.checkpoints import open_model, open_tokenizer
    from pyprune.methods.trained import train_prune
    from pyprune.progress import for_terminal

    task = tasks.find_task(arguments.task) if arguments.task else None
    columns = {"text": arguments.text, "text_pair": arguments.text_pair, "label": arguments.label, "task": task}
    if arguments.output is not None:
        check_output(arguments.output, arguments.model)
    source = arguments.train if arguments.train is not None else arguments.task
    limit = {"limit": arguments.samples, "seed": arguments.seed}
    rows = tasks.load_texts(source, split=arguments.split, **columns, **limit)
    held_out = None
    if arguments.evaluate is not None:
        held_out = tasks.load_texts(arguments.evaluate, purpose="evaluation", **columns)
    elif arguments.train is None and task is not None and task.labels and not arguments.no_evaluate:
        held_out = tasks.load_texts(source, purpose="evaluation", **columns)
    options: dict[str, Any] = {"head": "ForSequenceClassification", "families": models.families()}
    model, tokenizer = open_model(arguments.model, **options), open_tokenizer(arguments.model)
    teacher = None if arguments.teacher is None else open_model(arguments.teacher, **options)
    folder = None if arguments.output is None else _folder(arguments.output)
    with for_terminal(quiet=arguments.quiet) as progress:
        for note in (*rows.notes, *(held_out.notes if held_out is not None else ())):
            progress.note(note)
        judging = {"tokenizer": tokenizer, "batch_size": 64, "progress": progress}
        dense = None if held_out is None else judge(model if teacher is None else teacher, held_out, **judging)
        result = _resumable(
            folder,
            lambda: train_prune(
                model,
                rows,
                tokenizer=tokenizer,
                teacher=teacher,
                inplace=True,
                checkpoints=folder,
                progress=progress,
                **_settings(arguments),
            ),
        )
        if held_out is not None:
            pruned = judge(result.model, held_out, **judging)
            result.report["evaluation"] = evaluation_entry(held_out, dense, pruned)
    saved = None
    if arguments.output is not None:
        saved = result.save(arguments.output, storage=arguments.storage, values=arguments.values)
        shutil.rmtree(_folder(arguments.output), ignore_errors=True)
    if arguments.json:
        common.print_json({"output": str(saved) if saved else None, **result.report})
    else:
        print(trained_text(result.report, str(saved) if saved else None))
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    def given(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}

    training = given((*_SETTINGS, "batch_size"))
    return {
        "method": arguments.method,
        "sparsity": 0.5 if arguments.sparsity is None else float(arguments.sparsity),
        "training": training | {"seed": arguments.seed, "freeze_embeddings": arguments.freeze_embeddings},
        "options": given(_SCHEDULE),
        "contrast": arguments.contrast,
        "resume": arguments.resume,
        **given((*_LOSSES, "max_length", "checkpoint_every")),
    }


def _folder(output: Path) -> Path:
    path = output.expanduser().absolute()
    return path.with_name(f"{path.name}.training")


def _resumable(folder: Path | None, work: Callable[[], Any]) -> Any:
    """Do the work; where it is stopped, say what of it is kept."""
    try:
        return work()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(folder)) from None
    except (PypruneError, OSError, MemoryError, RuntimeError):
        if folder is not None and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _how_to_go_on(folder: Path | None) -> str:
    if folder is None:
        return "nothing is kept, because there is no --output; with it a run can be resumed"
    found = sorted(folder.glob("step-*.safetensors"))
    if not found:
        shutil.rmtree(folder, ignore_errors=True)
        return "there was no checkpoint yet; start again with the same command"
    steps = int(found[-1].stem.removeprefix("step-"))
    return f"{steps} steps are saved in {folder}; run the same command with --resume to go on from there"


def trained_text(report: dict[str, Any], saved: str | None) -> str:
    """Say what was done, what is left, what it cost."""
    training, seconds = report["training"], report["seconds"]
    rows: list[tuple[str, str]] = [("method", f"{report['method']}, {training['steps']} steps")]
    if training["resumed"]:
        rows.append(("", f"{training['resumed']} of them before it was resumed"))
    for index, (name, value) in enumerate(report["sparsity"].items()):
        rows.append(("zeros" if index == 0 else "", f"{common.percent(value)} {DENOMINATORS.get(name, name)}"))
    first, last = training["losses"][0], training["losses"][-1]
    rows.append(("loss", f"{first:.4g} in the first tenth of the run, {last:.4g} in the last"))
    rows += cost_rows(report, f"{common.duration(seconds['total'])} (training {common.duration(seconds['training'])})")
    rows.append(("saved in", saved or "nowhere (no --output was given)"))
    return common.table(rows)
