# SPDX-License-Identifier: Apache-2.0
"""``pyprune prune --streaming``: options and work of a run layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyprune.errors import InputError


def add(parser: argparse.ArgumentParser) -> None:
    """Enter the options into the parser of ``prune``."""
    group = parser.add_argument_group("large models")
    group.add_argument(
        "--streaming",
        action="store_true",
        help="read, prune and write a causal language model block by block; MODEL is a folder with safetensors",
    )
    group.add_argument(
        "--random-weights",
        action="store_true",
        help="with a config alone (MODEL is a folder or a config.json): draw the weights of each block from --seed; "
        "without --data also the tokens. Implies --streaming",
    )


def check_usage(arguments: argparse.Namespace) -> None:
    """Leave through the parser where options do not go together."""
    if not streamed(arguments):
        return
    if arguments.output is None and not arguments.dry_run:
        arguments.parser.error("--streaming goes with --output: finished blocks are written there")
    if arguments.storage not in (None, "dense"):
        arguments.parser.error("--streaming writes dense files; run `pyprune export OUTPUT --sparse DIR` afterwards")
    if arguments.values is not None:
        arguments.parser.error("--streaming keeps the types of the files; --values goes with `pyprune export --sparse`")
    if arguments.evaluate is not None:
        arguments.parser.error("--evaluate needs the whole model in memory; run `pyprune evaluate OUTPUT` afterwards")


def streamed(arguments: argparse.Namespace) -> bool:
    """Whether the model is pruned layer by layer."""
    return bool(arguments.streaming or arguments.random_weights)


def prune(
    arguments: argparse.Namespace, examples: Any, settings: dict[str, Any], progress: Any
) -> tuple[Path | None, dict[str, Any]]:
    """Where the result is, and its report."""
    from pyprune.commands.checkpoints import open_tokenizer
    from pyprune.methods import prune_streaming

    path = Path(arguments.model).expanduser()
    if not path.exists():
        raise InputError(f"there is no folder {path}", hint="--streaming reads local files; download the model first")
    folder = path.parent if path.is_file() else path
    result = prune_streaming(
        path,
        examples,
        output=arguments.output,
        random_weights=arguments.random_weights,
        tokenizer=None if examples is None else open_tokenizer(str(folder)),
        resume=arguments.resume,
        dry_run=arguments.dry_run,
        progress=progress,
        **settings,
    )
    return result.path, result.report
