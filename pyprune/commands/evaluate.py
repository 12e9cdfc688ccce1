# SPDX-License-Identifier: Apache-2.0
"""``pyprune evaluate``: a classifier on labelled data, answers to questions, or a language model on text."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands import common
from pyprune.errors import InputError

_EPILOG = """\
examples:
  pyprune evaluate pruned --data dev.tsv
  pyprune evaluate pruned --data reviews.csv --text body --label stars
  pyprune evaluate pruned --data dev.tsv --against MODEL
      the dense model beside the pruned one, on the same rows
  pyprune evaluate pruned-reader --data dev.json --max-length 384
      F1 and exact matches of answers, in SQuAD's layout; passages are read in windows that overlap
  pyprune evaluate pruned-llama --data wiki.txt --max-length 2048
      perplexity of a causal language model; --stride 512 gives every token at least 1536 before it
  pyprune evaluate textattack/bert-base-uncased-SST-2 --task sst2 --json
      model and data from the Hugging Face hub

The data is .txt .tsv .csv .jsonl .json or .parquet, a folder with such files named by split, or a hub data set.
Labels are class numbers or the class names of the model. For a language model texts are joined, empty lines between
them, and read in windows of --max-length tokens.
"""


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    from pyprune.tasks.registry import METRICS, TASKS

    parser = commands.add_parser(
        "evaluate",
        help="accuracy of a classifier or of answers, or perplexity of a language model",
        description="Evaluate a sequence classifier on labelled data, a model for question answering on questions with "
        "passages and answers, or a causal language model on text.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or its name on the Hugging Face hub")
    data = parser.add_argument_group("data (at least one of --data and --task)")
    data.add_argument(
        "--data", metavar="FILE", help="labelled file, folder, or hub data set owner/name[:configuration]"
    )
    data.add_argument("--task", metavar="TASK", choices=tuple(TASKS), help=f"one of {', '.join(TASKS)}")
    common.add_columns(data)
    data.add_argument("--limit", type=common.positive, metavar="N", help="evaluate N rows drawn at random")
    data.add_argument("--seed", type=common.seed, default=0, metavar="N", help="of that draw (default 0)")
    how = parser.add_argument_group("evaluation")
    how.add_argument("--against", metavar="MODEL", help="evaluate this model too, on the same rows (the dense one)")
    how.add_argument("--metric", choices=METRICS, help="default: the task's own, else accuracy; of answers f1")
    how.add_argument("--batch-size", type=common.positive, default=64, metavar="N", help="default 64")
    how.add_argument(
        "--max-length",
        type=common.positive,
        metavar="N",
        help="tokens per row or window (default: the model's limit, at most 2048 for language models)",
    )
    how.add_argument(
        "--stride", type=common.positive, metavar="N", help="tokens from window to window (default: no overlap)"
    )
    common.add_general(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Load, evaluate, print."""
    if arguments.data is None and arguments.task is None:
        arguments.parser.error("pass --data FILE or --task TASK")

    from pyprune import tasks
    from pyprune.commands.checkpoints import head_of, open_model, open_tokenizer
    from pyprune.progress import for_terminal

    names = [arguments.model] + ([arguments.against] if arguments.against else [])
    head = head_of(names[0])
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
    results = []
    with for_terminal(quiet=arguments.quiet) as progress:
        for note in examples.notes:
            progress.note(note)
        for name in names:
            results.append(
                judge(
                    open_model(name, head=head),
                    examples,
                    tokenizer=open_tokenizer(name),
                    batch_size=arguments.batch_size,
                    max_length=arguments.max_length,
                    metric=arguments.metric,
                    stride=arguments.stride,
                    progress=progress,
                )
            )
    if arguments.json:
        document: dict[str, Any] = {"model": names[0], **results[0].to_dict()}
        if len(results) == 2:
            document["against"] = {"model": names[1], **results[1].to_dict()}
            document["comparison"] = compared(results[1], results[0])
        common.print_json(document)
        return 0
    print(_text(names, results))
    return 0


def judge(model: Any, examples: Any, *, metric: str | None = None, stride: int | None = None, **options: Any) -> Any:
    """A model's :class:`pyprune.tasks.Evaluation` or, of a causal language model, its ``Perplexity``."""
    from pyprune import tasks

    if tasks.is_language_model(model):
        if metric is not None:
            raise InputError(f"a language model is judged by perplexity, not by {metric}", hint="leave --metric out")
        return tasks.perplexity(model, examples, stride=stride, **options)
    if stride is not None:
        raise InputError("--stride is for language models", seen=f"a {type(model).__name__}")
    return tasks.evaluate(model, examples, metric=metric, **options)


def compared(dense: Any, pruned: Any) -> dict[str, Any]:
    """Two outcomes of :func:`judge` on the same examples."""
    from pyprune.tasks.metrics import compare

    if dense.metric == "perplexity":
        return {"ratio": pruned.value / dense.value}
    return compare(dense, pruned)


def evaluation_entry(held_out: Any, dense: Any, pruned: Any) -> dict[str, Any]:
    """What a report says of two outcomes of :func:`judge` on ``held_out``; JSON-able."""
    entry = {
        "source": held_out.source,
        "sha256": held_out.sha256,
        "dense": dense.to_dict(),
        "pruned": pruned.to_dict(),
        "comparison": compared(dense, pruned),
    }
    return dict(common.jsonable(entry))


def _text(names: list[str], results: list[Any]) -> str:
    from pyprune.tasks.metrics import compare

    if results[0].metric == "perplexity":
        lines = [f"{name}: {result.describe()}" for name, result in zip(names, results, strict=True)]
        if len(results) == 2:
            lines.append(f"{compared(results[1], results[0])['ratio']:.4g} times that of {names[1]}")
        seconds = common.duration(sum(entry.seconds for entry in results))
        return "\n".join([*lines, f"{results[0].source}, {results[0].tokens:,} tokens, {seconds}"])
    lines = []
    for name, result in zip(names, results, strict=True):
        lines.append(f"{name}: {result.describe()}")
        rows = [
            (entry["name"], str(entry["total"]), str(entry["correct"]), str(entry["predicted"]))
            for entry in result.classes
        ]
        if rows:
            lines += [common.table(rows, ("class", "rows", "right", "predicted"), right=(1, 2, 3)), ""]
    result = results[0]
    if len(results) == 2:
        difference = compare(results[1], results[0])
        lines.append(
            f"same answer on {common.percent(difference['same_answer'], 1)} of the rows; only {names[0]} right: "
            f"{difference['only_second_right']}, only {names[1]} right: {difference['only_first_right']} "
            f"(sign test p = {difference['sign_test_p']:.2g})"
        )
    if result.cut:
        lines.append(f"{result.cut} of {result.total} rows were longer than {result.max_length} tokens and were cut")
    lines.append(f"{result.source}, {result.total} rows, {common.duration(sum(entry.seconds for entry in results))}")
    return "\n".join(lines)
