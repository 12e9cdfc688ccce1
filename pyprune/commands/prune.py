# SPDX-License-Identifier: Apache-2.0
"""``pyprune prune``: a model and text in, a pruned model out."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyprune.commands import common, streaming, train, units
from pyprune.commands.evaluate import evaluation_entry, judge
from pyprune.commands.summary import plan_text, prune_text
from pyprune.commands.unit_summary import unit_plan_text, unit_text
from pyprune.errors import InputError

_EPILOG = f"""\
examples:
  pyprune prune MODEL --data train.tsv --sparsity 0.5 --output pruned
      half of the weights of every row removed by AKR; the text needs no labels
  pyprune prune MODEL --data train.tsv --pattern 2:4 --output pruned --evaluate dev.tsv
      2 of every 4 weights kept; accuracy of the dense and of the pruned model on labelled rows
  pyprune prune MODEL --data train.tsv --pattern block:4x4:0.5 --output pruned
      half of the blocks of 4 outputs by 4 inputs removed; --scope row: of every row of blocks
  pyprune prune MODEL --task sst2 --method sparsegpt --sparsity 0.7 --output pruned
      data from the Hugging Face hub: calibration on its train split, evaluation on its labelled one
  pyprune prune MODEL --data train.tsv --dry-run
      what would be pruned and how much memory that takes, without doing it
  pyprune prune MODEL --data train.tsv --output pruned --resume
      go on after Ctrl-C, a kill or a full disk; the result is the same to the last bit
  pyprune prune MODEL --data train.tsv --sparsity 0.9 --storage sparse --values bfloat16 --output pruned
      a seventh of the bytes, on disk and in memory; `pyprune export pruned --dense DIR` gives plain weights back
  pyprune prune MODEL --data train.tsv --method kprune --target-flops 0.4 --output smaller
      whole heads and neurons removed until at most 40 % of the encoder's FLOPs are LEFT (60 % go); the model saved is
      physically smaller. --target-macs, --target-parameters count otherwise, --method kwon chooses otherwise
  pyprune prune MODEL --task sst2 --method kprune --target-parameters 0.3 --storage dense --output pruned
      the same with zeros in place, which plain transformers loads; `pyprune export pruned --compact DIR` cuts them out
{train.EXAMPLES.rstrip()}
  pyprune prune LLAMA --streaming --data train.txt --sparsity 0.5 --output pruned
      a language model that does not fit into memory, block by block; --spill DIR keeps activations on disk
  pyprune prune config.json --random-weights --dry-run
      the plan for a shape of which there is only a config; with --output its blocks are drawn and pruned

OUTPUT holds model.safetensors, config and tokenizer, which AutoModel*.from_pretrained loads (pyprune.load where heads
and neurons are cut out, and pyprune.safetensors of --storage sparse), and pyprune.json with settings, versions,
sparsity, error and seconds of every layer. While it runs, finished blocks are kept in OUTPUT.journal, which goes away
at the end.
"""


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    from pyprune import methods, solvers
    from pyprune.result import STORAGES, VALUES
    from pyprune.tasks.registry import TASKS

    parser = commands.add_parser(
        "prune",
        help="prune a model on some text",
        description="Prune a fine-tuned encoder (BERT, RoBERTa, DistilBERT, ...) or a decoder (LLaMA, Mistral, Qwen, "
        "OPT) using some text of its task.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or its name on the Hugging Face hub")
    data = parser.add_argument_group("calibration data (at least one of --data and --task)")
    data.add_argument(
        "--data", metavar="FILE", help=".txt .tsv .csv .jsonl .json .parquet, a folder, or a hub data set"
    )
    data.add_argument("--task", metavar="TASK", choices=tuple(TASKS), help=f"one of {', '.join(TASKS)}")
    common.add_columns(data)
    data.add_argument(
        "--samples", type=common.positive, metavar="N", help="rows for calibration (default 2560; language models: 128)"
    )
    data.add_argument(
        "--max-length", type=common.positive, metavar="N", help="tokens per row (default 128; language models: 2048)"
    )
    data.add_argument(
        "--batch-size",
        type=common.positive,
        metavar="N",
        help="rows per forward pass (default 64; heads and neurons: 32)",
    )
    data.add_argument("--seed", type=common.seed, default=0, metavar="N", help="of the draw (default 0)")
    how = parser.add_argument_group("pruning")
    names = (*methods.available(), *methods.TRAIN_RECIPES, "randomized")
    how.add_argument(
        "--method", choices=names, default="akr", metavar="METHOD", help=f"one of {', '.join(names)} (default akr)"
    )
    amount = how.add_mutually_exclusive_group()
    amount.add_argument(
        "--sparsity", type=common.fraction, metavar="S", help="fraction of weights removed, 0 to below 1 (default 0.5)"
    )
    amount.add_argument(
        "--pattern",
        type=common.pattern,
        metavar="PATTERN",
        help="N:M keeps N of every M weights, e.g. 2:4, 32:64; block:RxC:S removes the fraction S of the blocks of R "
        "outputs by C inputs, e.g. block:4x4:0.5",
    )
    how.add_argument(
        "--scope",
        choices=("row", "layer"),
        help="count per row or per layer (default: the method's own; with blocks: layer)",
    )
    known = ", ".join(solvers.available())
    how.add_argument(
        "--solver", choices=solvers.available(), metavar="SOLVER", help=f"one of {known} (default: the method's own)"
    )
    how.add_argument(
        "--rectify",
        action=argparse.BooleanOptionalAction,
        help="refit to the dense model's outputs (default: the method's own)",
    )
    how.add_argument("--damping", type=common.not_negative, metavar="D", help="ridge as a share of the mean diagonal")
    out = parser.add_argument_group("output")
    out.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the pruned model (replaced if made by pyprune)"
    )
    out.add_argument(
        "--evaluate", metavar="FILE", help="accuracy of both models on labelled data, of language models perplexity"
    )
    out.add_argument("--no-evaluate", action="store_true", help="with --task: leave the evaluation out")
    out.add_argument(
        "--storage",
        choices=STORAGES,
        help="dense: with zeros in place, for plain transformers too; sparse: without single zeros, compact: without "
        "removed heads and neurons, both for pyprune.load (default: compact where these are removed, else dense)",
    )
    out.add_argument(
        "--values",
        choices=tuple(VALUES),
        help="type of what is saved: of the pruned weights in sparse storage, else of all, and then not int8 (default: "
        "float32, also of a checkpoint that is stored in 16 bits)",
    )
    out.add_argument("--resume", action="store_true", help="go on with the finished blocks in OUTPUT.journal")
    out.add_argument("--dry-run", action="store_true", help="print plan and memory, change nothing")
    out.add_argument("--spill", type=Path, metavar="DIR", help="keep activations in files there instead of in memory")
    units.add(parser)
    train.add(parser)
    streaming.add(parser)
    common.add_general(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Check everything that can be checked early, prune, evaluate, save, print."""
    train.check_usage(arguments)
    if train.chosen(arguments):
        return train.run(arguments, _check_output)
    _check_usage(arguments)

    from pyprune import models, tasks
    from pyprune.commands.checkpoints import head_of, open_model, open_tokenizer
    from pyprune.methods import prune
    from pyprune.progress import for_terminal

    settings = _settings(arguments)
    task = tasks.find_task(arguments.task) if arguments.task else None
    columns = {"text": arguments.text, "text_pair": arguments.text_pair, "label": arguments.label}
    source = arguments.data if arguments.data is not None else arguments.task
    if arguments.output is not None:
        _check_output(arguments.output, arguments.model)
    examples = None if source is None else tasks.load_texts(source, split=arguments.split, task=task, **columns)
    if streaming.streamed(arguments):
        return _run_streaming(arguments, examples)
    judged = head_of(arguments.model)
    held_out = _held_out(arguments, task, columns, judged)
    head = judged if held_out is not None else None
    model = open_model(arguments.model, head=head, families=models.families())
    tokenizer = open_tokenizer(arguments.model)

    with for_terminal(quiet=arguments.quiet) as progress:
        _note(progress, examples, held_out)
        common.note_width(arguments, progress)
        if arguments.dry_run:
            return _tell_plan(arguments, prune(model, examples, tokenizer=tokenizer, dry_run=True, **settings).report)
        options = {"tokenizer": tokenizer, "batch_size": 64, "progress": progress}
        dense = judge(model, held_out, **options) if held_out is not None else None
        journal = _journal(arguments.output) if arguments.output is not None else None
        result = _resumable(
            journal,
            lambda: prune(
                model,
                examples,
                tokenizer=tokenizer,
                journal=journal,
                resume=arguments.resume,
                progress=progress,
                **settings,
            ),
        )
        if held_out is not None and dense is not None:
            pruned = judge(result.model, held_out, **options)
            result.report["evaluation"] = evaluation_entry(held_out, dense, pruned)
    saved = None
    if arguments.output is not None:
        saved = result.save(arguments.output, storage=arguments.storage, values=arguments.values)
        shutil.rmtree(_journal(arguments.output), ignore_errors=True)
    _tell(arguments, saved, result.report)
    return 0


def _run_streaming(arguments: argparse.Namespace, examples: Any) -> int:
    from pyprune.progress import for_terminal

    journal = None if arguments.output is None or arguments.dry_run else _journal(arguments.output)
    with for_terminal(quiet=arguments.quiet) as progress:
        _note(progress, examples)
        saved, report = _resumable(
            journal, lambda: streaming.prune(arguments, examples, _settings(arguments), progress)
        )
    if arguments.dry_run:
        return _tell_plan(arguments, report)
    _tell(arguments, saved, report)
    return 0


def _note(progress: Any, *loaded: Any) -> None:
    for examples in loaded:
        for note in examples.notes if examples is not None else ():
            progress.note(note)


def _tell(arguments: argparse.Namespace, saved: Path | None, report: dict[str, Any]) -> None:
    if arguments.json:
        common.print_json({"output": str(saved) if saved else None, **report})
    elif units.chosen(arguments):
        print(unit_text(report, str(saved) if saved else None, arguments.storage or "compact"))
    else:
        print(prune_text(report, str(saved) if saved else None))


def _tell_plan(arguments: argparse.Namespace, report: dict[str, Any]) -> int:
    if arguments.json:
        common.print_json(report)
    else:
        print((unit_plan_text if units.chosen(arguments) else plan_text)(report["plan"]))
    return 0


def _check_usage(arguments: argparse.Namespace) -> None:
    from pyprune.patterns import NM

    units.check_usage(arguments)
    streaming.check_usage(arguments)
    if arguments.data is None and arguments.task is None and not arguments.random_weights:
        arguments.parser.error("pass --data FILE or --task TASK: pruning needs some text (no labels)")
    if arguments.values == "int8" and arguments.storage != "sparse":
        arguments.parser.error("--values int8 goes with --storage sparse")
    if arguments.resume and arguments.output is None:
        arguments.parser.error("--resume goes with --output: finished blocks are kept beside it")
    if arguments.scope is not None and isinstance(_pattern(arguments), NM):
        arguments.parser.error("--scope goes with --sparsity and with blocks; N:M has a scope of its own")


def _pattern(arguments: argparse.Namespace) -> Any:
    from pyprune.patterns import Unstructured, parse_pattern

    if arguments.pattern is not None:
        return parse_pattern(arguments.pattern, scope=arguments.scope)
    if arguments.scope is not None:
        return Unstructured(_sparsity(arguments), arguments.scope)
    return None


def _sparsity(arguments: argparse.Namespace) -> float:
    return 0.5 if arguments.sparsity is None else float(arguments.sparsity)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    data = {name: getattr(arguments, name) for name in ("seed", "samples", "max_length", "batch_size")}
    if units.chosen(arguments):
        return data | units.settings(arguments)
    return data | {
        "method": arguments.method,
        "sparsity": None if arguments.pattern is not None else _sparsity(arguments),
        "pattern": _pattern(arguments),
        "solver": arguments.solver,
        "rectify": arguments.rectify,
        "damping": arguments.damping,
        "spill": arguments.spill,
    }


def _journal(output: Path) -> Path:
    path = output.expanduser().absolute()
    return path.with_name(f"{path.name}.journal")


def _blocks(journal: Path) -> int:
    return len(list(journal.glob("block-*.safetensors")))


def _check_output(output: Path, model: str) -> None:
    # hours of work must not end in front of a folder that cannot be written
    from pyprune.files import check_target

    target = output.expanduser().absolute()
    if Path(model).is_dir() and target.resolve() == Path(model).resolve():
        raise InputError("--output is the folder of the model itself", hint="another folder")
    check_target(target)
    common.writable_parent(target)


def _held_out(arguments: argparse.Namespace, task: Any, columns: dict[str, Any], head: str) -> Any:
    """Examples to evaluate on, or None."""
    from pyprune import tasks

    source = arguments.evaluate
    if source is None and task is not None and task.judges(head) and not arguments.no_evaluate:
        # a task has an evaluation split of its own, on the hub or in a folder with files named by split
        if arguments.data is None:
            source = arguments.task
        elif Path(arguments.data).is_dir():
            source = arguments.data
    if source is None:
        return None
    examples = tasks.load_texts(source, task=task, purpose="evaluation", **columns)
    if head == "ForSequenceClassification" and examples.labels is None:
        raise InputError(
            f"{examples.source} has no labels, and evaluation needs them",
            hint="a file with a label column (--label COLUMN if it has another name), or leave --evaluate out",
        )
    return examples


def _resumable(journal: Path | None, work: Callable[[], Any]) -> Any:
    return common.resumable(work, lambda: _how_to_go_on(journal), lambda: _drop_if_empty(journal))


def _how_to_go_on(journal: Path | None) -> str:
    if journal is None:
        return "nothing is kept, because there is no --output; with it a run can be resumed"
    blocks = _blocks(journal)
    if not blocks:
        _drop_if_empty(journal)
        return "no block was finished yet; start again with the same command"
    what = "1 finished block is" if blocks == 1 else f"{blocks} finished blocks are"
    return f"{what} saved in {journal}; run the same command with --resume to go on from there"


def _drop_if_empty(journal: Path | None) -> None:
    if journal is not None and (journal / "journal.json").exists() and not _blocks(journal):
        shutil.rmtree(journal, ignore_errors=True)
