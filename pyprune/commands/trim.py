# SPDX-License-Identifier: Apache-2.0
"""``pyprune trim``: a vocabulary without the tokens that a corpus never uses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyprune.commands import common
from pyprune.errors import InputError

_EPILOG = """\
examples:
  pyprune trim MODEL --data reviews.tsv --output trimmed
      MODEL with the tokens of these texts, and what any other text can be spelled with
  pyprune trim pruned --data train.tsv --data more.jsonl --output small
      several files; pruned weights, heads and neurons stay as they are
  pyprune trim MODEL --data train.tsv --keep '##ing' --keep good --output trimmed

Give it all the text there is, and more than the model was fine-tuned on: tokens that are not in it are gone for good.
The texts themselves are cut up as before, so that the model answers them as before. The folder loads with transformers
alone, unless heads or neurons were cut out too (then with pyprune.load).
"""


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    parser = commands.add_parser(
        "trim",
        help="cut tokens that never occur out of a model and its tokenizer",
        description="Cut the tokens that a corpus never uses out of embeddings and tokenizer.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or its name on the Hugging Face hub")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder to write")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="FILE",
        action="append",
        required=True,
        help="file, folder, or hub data set owner/name[:configuration]; may be given several times",
    )
    data.add_argument(
        "--keep", metavar="TOKEN", action="append", default=[], help="keep this token too; may be given several times"
    )
    common.add_columns(data)
    common.add_general(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, cut, write, say how much went."""
    from pyprune import methods, tasks
    from pyprune.commands.checkpoints import open_model, open_tokenizer
    from pyprune.files import check_target
    from pyprune.progress import for_terminal

    output = arguments.output.expanduser().absolute()
    check_target(output)
    common.writable_parent(output)
    folder = Path(arguments.model).expanduser()
    if folder.resolve() == output.resolve():
        raise InputError("the output is the folder of the model itself", hint="another folder")
    columns = {name: getattr(arguments, name) for name in ("text", "text_pair", "label", "split")}
    examples = [tasks.load_texts(source, **columns) for source in arguments.data]
    with for_terminal(quiet=arguments.quiet) as progress:
        for found in examples:
            for note in found.notes:
                progress.note(note)
        trimmed = methods.trim_vocabulary(
            open_model(arguments.model, stored_type=True),
            open_tokenizer(arguments.model),
            [text for found in examples for text in found.inputs],
            keep=arguments.keep,
            inplace=True,
            progress=progress,
        )
    report = trimmed.report
    report["vocabulary"]["data"]["sources"] = [found.source for found in examples]
    saved = trimmed.save(output, source=folder if folder.is_dir() else None)
    if arguments.json:
        common.print_json({"output": str(saved), **report})
    else:
        print(_text(report["vocabulary"], str(saved)))
    return 0


def _text(found: dict[str, Any], saved: str) -> str:
    tokens, data = found["tokens"], found["data"]
    reasons = ", ".join(f"{tokens[name]:,} {word}" for name, word in _REASONS if tokens[name])
    rows = [
        ("tokens", f"{tokens['before']:,} -> {tokens['after']:,}"),
        ("", f"{reasons} ({found['tokenizer']})"),
        ("parameters", _change(found["parameters"], "{:,}".format)),
        ("model", _change(found["bytes"], common.mebibytes)),
        ("text", f"{data['texts']:,} texts of {data['tokens']:,} tokens, cut up as before"),
        ("time", common.duration(found["seconds"])),
        ("saved in", saved),
    ]
    return common.table(rows)


_REASONS = (
    ("seen", "in the texts"),
    ("special", "special"),
    ("letters", "single characters"),
    ("parts", "that others are made of"),
    ("asked", "asked for"),
)


def _change(sizes: dict[str, int], write: Any) -> str:
    gone = 1 - sizes["after"] / sizes["before"]
    return f"{write(sizes['before'])} -> {write(sizes['after'])} ({common.percent(gone, 1)} less)"
