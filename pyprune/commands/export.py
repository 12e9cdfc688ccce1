# SPDX-License-Identifier: Apache-2.0
"""``pyprune export``: a pruned model with the other storage, matrix by matrix, or as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyprune.commands import common
from pyprune.result import STORAGES, VALUES

_EPILOG = """\
examples:
  pyprune export pruned --sparse small
      without the zeros: for pyprune.load, which keeps the matrices compressed in memory
  pyprune export pruned --sparse small --values bfloat16
      float32, bfloat16, float16, or int8 with a scale for each row; without --values the bits stay
  pyprune export small --dense plain
      with the zeros, those of removed heads and neurons too: for AutoModel*.from_pretrained, the same bits (int8: as
      float32)
  pyprune export pruned --compact smaller
      without the heads and neurons that --storage dense has left as zeros
  pyprune export compact --modelling shared
      a model whose heads and neurons are cut out, with the Python file by which transformers alone loads it:
      AutoModelForSequenceClassification.from_pretrained("shared", trust_remote_code=True)
  pyprune export pruned --onnx pruned.onnx
      for other runtimes, any number and length of sequences; cut heads and neurons are not in it, single zeros are

MODEL is a folder written by pyprune; config, tokenizer and pyprune.json go along. docs/format.md describes the files.
"""


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    parser = commands.add_parser(
        "export",
        help="store a pruned model with or without its zeros, or as ONNX",
        description="Write a pruned model anew: with (--dense) or without (--sparse, --compact) its zeros, or as ONNX.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder written by pyprune")
    out = parser.add_argument_group("output").add_mutually_exclusive_group(required=True)
    out.add_argument("--dense", type=Path, metavar="DIR", help="for plain transformers")
    out.add_argument("--sparse", type=Path, metavar="DIR", help="for pyprune.load")
    out.add_argument("--compact", type=Path, metavar="DIR", help="without removed heads and neurons, for pyprune.load")
    out.add_argument(
        "--modelling", type=Path, metavar="DIR", help="compact, with a Python file for those without pyprune"
    )
    out.add_argument("--onnx", type=Path, metavar="FILE", help="for other runtimes (needs the package onnx)")
    parser.add_argument("--values", choices=tuple(VALUES), help="of the weights, with --sparse (default: as they are)")
    common.add_general(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, say how large it is."""
    if arguments.values is not None and arguments.sparse is None:
        arguments.parser.error("--values goes with --sparse")

    if arguments.onnx is not None:
        return _onnx(arguments)
    if arguments.modelling is not None:
        return _modelling(arguments)
    from pyprune.commands.checkpoints import silent_transformers
    from pyprune.result import export

    silent_transformers()

    outputs = {storage: getattr(arguments, storage) for storage in STORAGES}
    storage, output = next((storage, path) for storage, path in outputs.items() if path is not None)
    common.writable_parent(output)
    folder = export(arguments.model, output, storage=storage, values=arguments.values)
    sizes = {name: _weights(path) for name, path in (("before", arguments.model.expanduser()), ("after", folder))}
    if arguments.json:
        common.print_json({"output": str(folder), "storage": storage, "bytes": sizes})
    else:
        change = f"{common.mebibytes(sizes['before'])} -> {common.mebibytes(sizes['after'])}"
        print(common.table([("weights", change), ("saved in", str(folder))]))
    return 0


def _modelling(arguments: argparse.Namespace) -> int:
    from pyprune.sparse.modelling_file import with_modelling
    from pyprune.structured.modelling import MODULE

    common.writable_parent(arguments.modelling)
    folder = with_modelling(arguments.model, arguments.modelling)
    if arguments.json:
        common.print_json({"output": str(folder), "storage": "compact", "module": f"{MODULE}.py"})
    else:
        rows = [("file", f"{MODULE}.py, for from_pretrained(..., trust_remote_code=True)"), ("saved in", str(folder))]
        print(common.table(rows))
    return 0


def _onnx(arguments: argparse.Namespace) -> int:
    from pyprune.commands.checkpoints import silent_transformers
    from pyprune.result import load
    from pyprune.sparse.onnx_file import write_onnx

    silent_transformers()
    output = arguments.onnx.expanduser()
    common.writable_parent(output)
    found = write_onnx(load(arguments.model, dense=True).float(), output)
    sizes = {"before": _weights(arguments.model.expanduser()), "after": output.stat().st_size}
    if arguments.json:
        common.print_json({"output": str(output), "storage": "onnx", "bytes": sizes, **found})
    else:
        change = f"{common.mebibytes(sizes['before'])} -> {common.mebibytes(sizes['after'])}"
        rows = [("bytes", change), ("inputs", ", ".join(found["inputs"])), ("outputs", ", ".join(found["outputs"]))]
        print(common.table([*rows, ("saved in", str(output))]))
    return 0


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
