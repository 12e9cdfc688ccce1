# SPDX-License-Identifier: Apache-2.0
"""``pyprune bench spmm | model``: measure products with pruned weights, and pruned models, beside others."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pyprune.commands import bench_text, common
from pyprune.errors import InputError, PypruneError

_EPILOG = """\
examples:
  pyprune bench spmm
      products with one pruned weight, beside dense torch and the sparse libraries that are installed
  pyprune bench model MODEL pruned --task sst2
      a pruned model beside the dense one: latency, memory, bytes on disk, accuracy

`pyprune bench spmm --help` and `pyprune bench model --help` show the options.
"""

_SPMM_EPILOG = """\
examples:
  pyprune bench spmm
      four shapes of BERT, 1 to 512 tokens, 50 to 95 % zeros, float32: about three minutes
  pyprune bench spmm --quick
  pyprune bench spmm --shapes 4096x4096 --tokens 1 --sparsity 0.9 --weights streamed --dtype float32,bfloat16
      weights that come from memory, as in a large model, not from the cache
  pyprune bench spmm --pattern 2:4 --with torch.linear --threads 1 --output results
      only one rival; results/spmm.json, a plot and the verdict
  pyprune bench spmm --kernel my_kernel.py
      your own kernel among the candidates: the file calls pyprune.bench.register(name, prepare)

Candidates take turns and a median is reported; each is first held against float64, and one that is wrong is not timed.
--kernel runs the code of that file: name only files you trust.
"""

_MODEL_EPILOG = """\
examples:
  pyprune bench model MODEL pruned
      batches of 1, 8 and 32 sequences of 128 random tokens
  pyprune bench model MODEL pruned --task sst2 --length real,128 --output results
      also real sentences with padding, and the accuracy of every candidate
  pyprune bench model MODEL pruned --data dev.tsv --batch 1 --dtype float32 --json

Candidates take turns in one process; the memory of each is measured in a process of its own. Before it is timed, what
a candidate computes is compared with the same model eager in float32.
"""


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    parser = commands.add_parser(
        "bench",
        help="measure pruned products and pruned models beside dense ones",
        description="Measure pyprune's products beside others, or a pruned model beside the dense one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    _add_spmm(kinds)
    _add_model(kinds)


def _add_spmm(kinds: Any) -> None:
    parser = kinds.add_parser(
        "spmm",
        help="products with one pruned weight",
        description="Time y = x Wᵀ with a pruned W: pyprune's kernel beside dense ones and other sparse libraries.",
        epilog=_SPMM_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    cases = parser.add_argument_group("cases (all combinations; lists with commas)")
    cases.add_argument("--shapes", type=_shapes, metavar="OUTxIN", help="default 384x384,1536x384,768x768,3072x768")
    cases.add_argument("--tokens", type=_numbers, metavar="N", help="rows of the input (default 1,8,32,128,512)")
    cases.add_argument("--sparsity", type=_sparsities, metavar="S", help="default 0.5,0.7,0.9,0.95; 2:4 has its own")
    cases.add_argument(
        "--dtype", type=_names, default=["float32"], metavar="T", help="float32 (default), bfloat16, int8"
    )
    cases.add_argument(
        "--pattern", type=_pattern, default="unstructured", metavar="P", help="unstructured (default), 2:4 or block:4x4"
    )
    cases.add_argument(
        "--weights",
        choices=("cached", "streamed"),
        default="cached",
        help="one weight again and again, or in turn so many copies that they come from memory",
    )
    who = parser.add_argument_group("candidates")
    who.add_argument("--with", dest="rivals", nargs="+", metavar="NAME", help="only these rivals (default: all found)")
    who.add_argument(
        "--kernel", type=Path, action="append", metavar="FILE.py", help="run this file, which registers one"
    )
    _add_measuring(parser, "few small cases, for a first look")
    common.add_general(parser)
    parser.set_defaults(run=run_spmm)


def _add_model(kinds: Any) -> None:
    from pyprune.tasks.registry import TASKS

    parser = kinds.add_parser(
        "model",
        help="a pruned model beside the dense one",
        description="Time a pruned model, as it is and by pyprune's fast ways, beside the dense one.",
        epilog=_MODEL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("dense", metavar="DENSE", help="folder of the dense model, or its name on the hub")
    parser.add_argument("pruned", metavar="PRUNED", help="folder of the pruned model")
    cases = parser.add_argument_group("cases (all combinations; lists with commas)")
    cases.add_argument("--batch", type=_numbers, metavar="N", help="sequences (default 1,8,32)")
    cases.add_argument(
        "--length",
        type=_lengths,
        metavar="L",
        help="tokens of random text (128), or real: that of the data (default where there is data)",
    )
    cases.add_argument(
        "--dtype",
        type=_names,
        default=["float32", "bfloat16"],
        metavar="T",
        help="float32, bfloat16, int8; default the first two",
    )
    cases.add_argument("--compile", action="store_true", help="also the dense model by torch.compile (takes minutes)")
    data = parser.add_argument_group("data")
    data.add_argument("--task", metavar="TASK", choices=tuple(TASKS), help=f"one of {', '.join(TASKS)}")
    data.add_argument("--data", metavar="FILE", help="labelled file, folder, or hub data set")
    common.add_columns(data)
    data.add_argument("--limit", type=common.positive, metavar="N", help="N rows drawn at random")
    _add_measuring(parser, "batch 1 only, a moment of measuring")
    parser.add_argument("--no-memory", action="store_true", help="do not measure resident memory")
    common.add_general(parser)
    parser.set_defaults(run=run_model)


def _add_measuring(parser: argparse.ArgumentParser, quick: str) -> None:
    group = parser.add_argument_group("measuring")
    group.add_argument("--rounds", type=common.positive, metavar="N", help="of each case (default: by time)")
    group.add_argument("--seconds", type=_seconds, metavar="S", help="of each case (at least five rounds are run)")
    group.add_argument("--quick", action="store_true", help=quick)
    group.add_argument("--seed", type=common.seed, default=0, metavar="N", help="of weights and inputs (default 0)")
    group.add_argument(
        "--output", type=Path, metavar="DIR", help="write the record (JSON), a plot and the verdict there"
    )


def run_spmm(arguments: argparse.Namespace) -> int:
    """Measure, print a table and the verdict, write the files."""
    from pyprune import bench
    from pyprune.bench import spmm, verdict
    from pyprune.progress import bars_only

    _check_output(arguments.output)
    for path in arguments.kernel or ():
        _load_kernel(path)
    quick = arguments.quick
    cases = bench.parse_cases(
        arguments.shapes or (((384, 384), (1536, 384)) if quick else spmm.SHAPES),
        arguments.tokens or ((1, 32) if quick else spmm.TOKENS),
        arguments.sparsity or ((0.5, 0.9) if quick else spmm.SPARSITIES),
        arguments.dtype,
        arguments.pattern,
        streamed=arguments.weights == "streamed",
    )
    with bars_only(quiet=arguments.quiet) as progress:
        document = bench.run_spmm(
            cases,
            names=arguments.rivals,
            rounds=arguments.rounds,
            seconds=0.2 if quick and arguments.seconds is None else arguments.seconds,
            seed=arguments.seed,
            progress=progress,
        )
    judged = verdict.subjects(document)
    drawings: dict[str, str | None] = {f"spmm-{name}" if name != "pyprune" else "spmm": name for name in judged}
    return _finish(document, arguments, bench_text.spmm_table(document), drawings)


def run_model(arguments: argparse.Namespace) -> int:
    """Measure, print a table and the verdict, write the files."""
    from pyprune import bench, tasks
    from pyprune.bench import model
    from pyprune.progress import for_terminal

    _check_output(arguments.output)
    source = arguments.data if arguments.data is not None else arguments.task
    lengths = arguments.length or ([128] if source is None else ["real"])
    examples = None
    if source is not None:
        examples = tasks.load_texts(
            source,
            text=arguments.text,
            text_pair=arguments.text_pair,
            label=arguments.label,
            split=arguments.split,
            limit=arguments.limit,
            seed=arguments.seed,
            task=tasks.find_task(arguments.task) if arguments.task else None,
            purpose="evaluation",
        )
    with for_terminal(quiet=arguments.quiet) as progress:
        document = bench.run_model(
            arguments.dense,
            arguments.pruned,
            batches=arguments.batch or ((1,) if arguments.quick else model.BATCHES),
            lengths=lengths,
            dtypes=arguments.dtype,
            examples=examples,
            compiled=arguments.compile,
            memory=not arguments.no_memory,
            rounds=arguments.rounds,
            seconds=2.0 if arguments.quick and arguments.seconds is None else arguments.seconds,
            seed=arguments.seed,
            progress=progress,
        )
    return _finish(document, arguments, bench_text.model_table(document), {"model": None})


def _finish(
    document: dict[str, Any], arguments: argparse.Namespace, table: str, drawings: dict[str, str | None]
) -> int:
    """Print and write; 1 if it was interrupted or pyprune itself was wrong."""
    text = f"{table}\n\n" + "\n".join(document["verdict"])
    if arguments.output is not None:
        _write(document, arguments.output, text, drawings, quiet=arguments.quiet)
    if arguments.json:
        common.print_json(document)
    else:
        print(text)
        if arguments.output is not None:
            print(f"saved in {arguments.output}")
    entries = document["candidates"]
    ours = {name for name, entry in entries.items() if entry.get("kind") == "pyprune" or entry.get("ours")}
    wrong = any(
        case["results"][name]["status"] in ("wrong", "failed")
        for case in document["cases"]
        for name in ours & case["results"].keys()
    )
    return int(document["interrupted"] or wrong)


def _write(document: dict[str, Any], folder: Path, text: str, drawings: dict[str, str | None], *, quiet: bool) -> None:
    from pyprune.bench import plot, report

    report.write(document, folder / f"{document['kind']}.json")
    (folder / f"{document['kind']}.txt").write_text(text + "\n", encoding="utf-8")
    for name, subject in drawings.items():
        path = folder / f"{''.join(letter if letter.isalnum() or letter in '-_.' else '_' for letter in name)}.png"
        try:
            if subject is None:
                plot.draw_model(document, path)
            else:
                plot.draw_spmm(document, subject, path)
        except InputError as error:
            if not quiet:
                hint = f" ({error.hint})" if error.hint else ""
                print(f"no plot: {error.message}{hint}", file=sys.stderr)


def _check_output(folder: Path | None) -> None:
    if folder is not None:
        common.writable_parent(folder / "record")


def _load_kernel(path: Path) -> None:
    """Run a file that a person named, which has to register a kernel."""
    import runpy

    from pyprune.bench import candidates

    if not path.is_file():
        raise InputError(
            f"there is no file {path}", hint="a Python file that calls pyprune.bench.register(name, prepare)"
        )
    before = candidates()
    try:
        runpy.run_path(str(path), run_name="pyprune_bench_kernel")
    except PypruneError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be run", seen=f"{type(error).__name__}: {error}") from error
    if all(before.get(name) is candidate for name, candidate in candidates().items() if candidate.kind == "registered"):
        raise InputError(f"{path} registers no kernel", hint="call pyprune.bench.register(name, prepare) in it")


def _names(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("an empty list")
    return list(dict.fromkeys(found))


def _numbers(text: str) -> list[int]:
    return [common.positive(part) for part in _names(text)]


def _sparsities(text: str) -> list[float]:
    return [common.fraction(part) for part in _names(text)]


def _shapes(text: str) -> list[tuple[int, int]]:
    shapes = []
    for part in _names(text):
        sides = part.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise argparse.ArgumentTypeError(f"{part!r} is not a shape: outputs x inputs, as in 1536x384")
        shapes.append((int(sides[0]), int(sides[1])))
    return shapes


def _pattern(text: str) -> str:
    if text == "unstructured":
        return text
    if text == "block":
        text = "block:4x4"
    common.pattern(f"{text}:0.5" if text.startswith("block:") else text)
    return text


def _lengths(text: str) -> list[Any]:
    return [part if part == "real" else common.positive(part) for part in _names(text)]


def _seconds(text: str) -> float:
    value = common.not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 seconds measure nothing")
    return value
