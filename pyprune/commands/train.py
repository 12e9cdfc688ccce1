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
from pyprune.errors import InputError

EXAMPLES = """\
  pyprune prune MODEL --method movement --train train.tsv --teacher TEACHER --sparsity 0.9 --output pruned
      pruned while it is fine-tuned for --epochs, taught by a fine-tuned model; the training rows need labels.
      --resume goes on with the last checkpoint in OUTPUT.training, with the same result to the last bit
  pyprune prune MODEL --method grain --train train.tsv --teacher TEACHER --sparsity 0.9 --output smaller
      nine tenths of neurons and of channels of heads removed meanwhile; the model saved is physically smaller. With
      --embedding-rank 192 its word embeddings are, too
  pyprune prune MODEL --method first-order --contrast --train train.tsv --teacher TEACHER --sparsity 0.9 --output small
      CAP-f: heads and neurons removed level by level, 10 to 90 %, with two epochs for each
  pyprune prune TEACHER --method randomized --train train.tsv --teacher TEACHER --sparsity 0.9 --output pruned
      at 54, 83 and 90 % eight masks are drawn at random, each is trained for an epoch, and the best on held-out rows
      for ten; --resume goes on with what is finished in OUTPUT.training
"""
TRAINED = ("ForSequenceClassification", "ForQuestionAnswering")
SCORED = ("movement", "soft-movement", "smp")
# By the name of the option: what goes into the training's settings, the losses, the schedule.
_SETTINGS = ("epochs", "rate", "accumulate", "precision")
_LOSSES = ("hard", "soft", "hidden", "attention")
_SCHEDULE = ("warm_up", "cool_down")
_UNITS = ("embedding_rank",)
_SCORES = ("start",)
_RANDOM = ("candidates", "short_epochs", "pool")
_LEVELS = ("levels",)


def add(parser: argparse.ArgumentParser) -> None:
    """Enter the options into the parser of ``prune``."""
    group = parser.add_argument_group(f"methods that train ({', '.join(_methods())})")
    group.add_argument(
        "--train", metavar="FILE", help="labelled rows, or questions with answers, to learn (default: those of --task)"
    )
    group.add_argument("--teacher", metavar="DIR", help="a model fine-tuned for the same labels (default: no teacher)")
    group.add_argument(
        "--held-out",
        metavar="FILE|PART",
        help="labelled rows, or a part of those to train on such as 0.1: the best of the last weights on them is kept "
        "(default: the last; randomized masks are chosen by them: 0.1)",
    )
    group.add_argument(
        "--epochs",
        type=common.not_negative,
        metavar="N",
        help="passes over the rows (default 3; of grain 20; of first-order 2 a level; of each level's best mask 10)",
    )
    group.add_argument(
        "--rate",
        type=common.not_negative,
        metavar="R",
        help="highest learning rate (default 3e-5; of randomized 5e-5, of first-order 2e-5)",
    )
    group.add_argument("--accumulate", type=common.positive, metavar="N", help="batches per step (default 1)")
    group.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="of products (default float32)")
    group.add_argument("--freeze-embeddings", action="store_true", help="do not train them")
    group.add_argument(
        "--warm-up", type=common.fraction, metavar="P", help="part of the run before pruning (default 0.1)"
    )
    group.add_argument("--cool-down", type=common.fraction, metavar="P", help="part of the run after it (default 0.3)")
    for name, what in (
        ("hard", "labels (default 0.1; of grain and randomized 0; without a teacher 1)"),
        ("soft", "the teacher's predictions (default 0.9; of grain and randomized 1)"),
        ("hidden", "the teacher's hidden states (default 0; of grain and randomized 1)"),
        ("attention", "the teacher's attentions (default 0; of randomized 1)"),
    ):
        group.add_argument(f"--{name}", type=common.not_negative, metavar="W", help=f"weight of {what}")
    group.add_argument(
        "--embedding-rank",
        type=common.positive,
        metavar="R",
        help=f"{_spoken(_unit_methods())}: before the training word embeddings become a product of two matrices with R "
        "columns and rows, both trained on (published for 768 features: 192; default: they stay one table)",
    )
    group.add_argument(
        "--start-scores",
        dest="start",
        choices=("zero", "size"),
        help=f"{_spoken(SCORED)}: scores begin at 0 (default, as published) or at the sizes of weights, which runs of "
        "less than some thousand steps need",
    )
    group.add_argument("--contrast", action="store_true", help="add CAP's contrastive terms to the method")
    group.add_argument("--checkpoint-every", type=common.positive, metavar="N", help="steps (default: two minutes)")
    group.add_argument(
        "--candidates", type=common.positive, metavar="N", help="randomized: masks tried at each level (default 8)"
    )
    group.add_argument(
        "--levels",
        type=_levels,
        metavar="S,S,...",
        help="randomized and first-order: sparsities on the way, rising (default: those of 0.54,0.83,0.92,0.9375 below "
        "--sparsity; of first-order tenths)",
    )
    group.add_argument(
        "--short-epochs",
        type=common.not_negative,
        metavar="N",
        help="randomized: of each mask that is tried (default 1)",
    )
    group.add_argument(
        "--pool",
        type=common.positive,
        metavar="N",
        help="randomized: masks drawn for each that is tried, the others go by reconstruction error (default 1)",
    )


def _methods() -> tuple[str, ...]:
    from pyprune.methods.randomized_entry import RANDOMIZED
    from pyprune.methods.train_recipes import TRAIN_RECIPES

    return (*TRAIN_RECIPES, RANDOMIZED)


def _unit_methods() -> tuple[str, ...]:
    from pyprune.methods.train_recipes import TRAIN_RECIPES

    return tuple(name for name, recipe in TRAIN_RECIPES.items() if recipe.units)


def _spoken(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}"


def _levels(text: str) -> tuple[float, ...]:
    return tuple(common.fraction(part) for part in text.split(","))


def chosen(arguments: argparse.Namespace) -> bool:
    """Whether the method is one that trains."""
    return arguments.method in _methods()


def check_usage(arguments: argparse.Namespace) -> None:
    """Leave through the parser where options do not go together."""
    if not chosen(arguments):
        given = [
            name
            for name in (
                *_SETTINGS,
                *_LOSSES,
                *_SCHEDULE,
                *_RANDOM,
                *_LEVELS,
                *_UNITS,
                *_SCORES,
                "train",
                "teacher",
                "held_out",
                "freeze_embeddings",
                "contrast",
                "checkpoint_every",
            )
            if getattr(arguments, name) not in (None, False)
        ]
        if given:
            option = "start-scores" if given[0] == "start" else given[0].replace("_", "-")
            arguments.parser.error(f"--{option} is for methods that train, such as --method movement")
        return
    if arguments.train is None and arguments.task is None:
        arguments.parser.error(f"--method {arguments.method} needs --train FILE (labelled rows) or --task TASK")
    targets = tuple(f"target_{measure}" for measure in units.TARGETS)
    for name in ("data", "pattern", "scope", "solver", "rectify", "damping", "spill", "labels", *targets):
        if getattr(arguments, name) is not None:
            arguments.parser.error(f"--{name.replace('_', '-')} is not for methods that train")
    if arguments.method not in _unit_methods():
        methods = " or ".join(f"--method {name}" for name in _unit_methods())
        if arguments.storage == "compact":
            arguments.parser.error(
                f"--storage compact goes with {methods}: {arguments.method} leaves all units in place"
            )
        if arguments.embedding_rank is not None:
            arguments.parser.error(f"--embedding-rank goes with {methods}")
    if arguments.start is not None and arguments.method not in SCORED:
        arguments.parser.error(f"--start-scores is for {_spoken(SCORED)}")
    for name in ("dry_run", "streaming", "random_weights"):
        if getattr(arguments, name):
            arguments.parser.error(f"--{name.replace('_', '-')} is not for methods that train")
    for name in (*_SCHEDULE, *_RANDOM, *_LEVELS, "contrast", "checkpoint_every"):
        if getattr(arguments, name) in (None, False):
            continue
        option = f"--{name.replace('_', '-')}"
        if name in (*_RANDOM, *_LEVELS):
            takers = ["randomized"] if name in _RANDOM else ["randomized", "first-order"]
            if arguments.method not in takers:
                arguments.parser.error(f"{option} is for --method {' or '.join(takers)}")
        elif arguments.method == "randomized" or (arguments.method == "first-order" and name in _SCHEDULE):
            arguments.parser.error(f"{option} is not for --method {arguments.method}")
    if arguments.resume and arguments.output is None:
        arguments.parser.error("--resume goes with --output: checkpoints are kept beside it")


def run(arguments: argparse.Namespace, check_output: Callable[[Path, str], None]) -> int:
    """Check everything that can be checked early, train, evaluate, save, print."""
    from pyprune import models, tasks
    from pyprune.commands.checkpoints import head_of, open_model, open_tokenizer
    from pyprune.methods.trained import train_prune
    from pyprune.progress import for_terminal

    task = tasks.find_task(arguments.task) if arguments.task else None
    columns = {"text": arguments.text, "text_pair": arguments.text_pair, "label": arguments.label, "task": task}
    if arguments.output is not None:
        check_output(arguments.output, arguments.model)
    source = arguments.train if arguments.train is not None else arguments.task
    head = head_of(arguments.model)
    if head not in TRAINED:
        raise InputError(f"{arguments.model}: methods that train prune classifiers and models that find answers")
    limit = {"limit": arguments.samples, "seed": arguments.seed}
    rows = tasks.load_texts(source, split=arguments.split, **columns, **limit)
    judged = None
    if arguments.evaluate is not None:
        judged = tasks.load_texts(arguments.evaluate, purpose="evaluation", **columns)
    elif arguments.train is None and task is not None and task.judges(head) and not arguments.no_evaluate:
        judged = tasks.load_texts(source, purpose="evaluation", **columns)
    held_out = _held_out(arguments.held_out, columns)
    options: dict[str, Any] = {"head": head, "families": models.families()}
    model, tokenizer = open_model(arguments.model, **options), open_tokenizer(arguments.model)
    teacher = None if arguments.teacher is None else open_model(arguments.teacher, **options)
    folder = None if arguments.output is None else _folder(arguments.output)
    with for_terminal(quiet=arguments.quiet) as progress:
        for note in (*rows.notes, *(judged.notes if judged is not None else ())):
            progress.note(note)
        common.note_width(arguments, progress)
        judging = {"tokenizer": tokenizer, "batch_size": 64, "progress": progress}
        dense = None if judged is None else judge(model if teacher is None else teacher, judged, **judging)
        result = common.resumable(
            lambda: train_prune(
                model,
                rows,
                tokenizer=tokenizer,
                teacher=teacher,
                held_out=held_out,
                inplace=True,
                checkpoints=folder,
                progress=progress,
                **_settings(arguments),
            ),
            lambda: _how_to_go_on(folder),
            lambda: _drop_if_empty(folder),
        )
        if judged is not None:
            pruned = judge(result.model, judged, **judging)
            result.report["evaluation"] = evaluation_entry(judged, dense, pruned)
    saved = None
    if arguments.output is not None:
        saved = result.save(arguments.output, storage=arguments.storage, values=arguments.values)
        shutil.rmtree(_folder(arguments.output), ignore_errors=True)
    if arguments.json:
        common.print_json({"output": str(saved) if saved else None, **result.report})
    else:
        print(trained_text(result.report, str(saved) if saved else None))
    return 0


def _held_out(given: str | None, columns: dict[str, Any]) -> Any:
    """A part of the rows, or labelled rows of a file."""
    from pyprune import tasks

    if given is None:
        return None
    try:
        return float(given)
    except ValueError:
        return tasks.load_texts(given, purpose="evaluation", **columns)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    def given(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}

    training = given((*_SETTINGS, "batch_size"))
    return {
        "method": arguments.method,
        "sparsity": 0.5 if arguments.sparsity is None else float(arguments.sparsity),
        "training": training | {"seed": arguments.seed, "freeze_embeddings": arguments.freeze_embeddings},
        "options": given((*_SCHEDULE, *_RANDOM, *_LEVELS, *_UNITS, *_SCORES)),
        "contrast": arguments.contrast,
        "resume": arguments.resume,
        **given((*_LOSSES, "max_length", "checkpoint_every")),
    }


def _folder(output: Path) -> Path:
    path = output.expanduser().absolute()
    return path.with_name(f"{path.name}.training")


def _drop_if_empty(folder: Path | None) -> None:
    if folder is not None and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _how_to_go_on(folder: Path | None) -> str:
    if folder is None:
        return "nothing is kept, because there is no --output; with it a run can be resumed"
    if (folder / "run.json").exists():
        return f"masks and levels that are finished are in {folder}; run the same command with --resume to go on"
    found = sorted(folder.glob("step-*.safetensors"))
    if not found:
        shutil.rmtree(folder, ignore_errors=True)
        return "there was no checkpoint yet; start again with the same command"
    steps = int(found[-1].stem.removeprefix("step-"))
    return f"{steps} steps are saved in {folder}; run the same command with --resume to go on from there"


def trained_text(report: dict[str, Any], saved: str | None) -> str:
    """Say what was done, what is left, what it cost."""
    training, seconds = report["training"], report["seconds"]
    levels = training.get("levels")
    what = f"{len(levels)} levels" if levels else f"{training['steps']} steps"
    rows: list[tuple[str, str]] = [("method", f"{report['method']}, {what}")]
    if report["data"].get("left_out"):
        given, left_out = report["data"]["rows"], report["data"]["left_out"]
        rows.append(("rows", f"{given:,}; {left_out:,} left out, as nobody says where in the passage their answer is"))
    if training.get("resumed"):
        rows.append(("", f"{training['resumed']} of them before it was resumed"))
    for index, (name, value) in enumerate(report["sparsity"].items()):
        rows.append(("zeros" if index == 0 else "", f"{common.percent(value)} {DENOMINATORS.get(name, name)}"))
    if report.get("embeddings"):
        rows.append(("embeddings", _embeddings_text(report["embeddings"])))
    if levels:
        rows += _level_rows(levels)
    else:
        first, last = training["losses"][0], training["losses"][-1]
        rows.append(("loss", f"{first:.4g} in the first tenth of the run, {last:.4g} in the last"))
    if training.get("scores"):
        best = max(score for _, score in training["scores"])
        rows.append(("kept", f"the weights after step {training['kept']}, {best:.4g} on the rows held out"))
    rows += cost_rows(report, f"{common.duration(seconds['total'])} (training {common.duration(seconds['training'])})")
    rows.append(("saved in", saved or "nowhere (no --output was given)"))
    return common.table(rows)


def _embeddings_text(told: dict[str, Any]) -> str:
    sizes = told["parameters"]
    lost = f"{common.percent(told['error'])} of their energy lost at the start"
    return f"rank {told['rank']}: {sizes['before']:,} -> {sizes['after']:,} parameters of words, {lost}"


def _level_rows(levels: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Each level: what the masks that were tried scored, and what the best became."""
    found = []
    for index, level in enumerate(levels):
        tried = level["scores"]
        of = f"mask {level['best'] + 1} of {len(tried)} ({min(tried):.4g} to {max(tried):.4g}), " if tried else ""
        text = f"{common.percent(level['sparsity'])}: {of}then {level['score']:.4g} on the rows held out"
        found.append(("levels" if index == 0 else "", text))
    return found
