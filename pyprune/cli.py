# SPDX-License-Identifier: Apache-2.0
"""``pyprune prune | evaluate | attack | export | trim | soup | bench | report | info | demo``.

Exit status: 0 done, 1 failed (the message says what was asked, what was seen and what to try), 2 bad usage.
With ``--json`` stdout holds exactly one JSON document; everything for a person goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence

import pyprune
from pyprune.commands import attack, bench, common, demo, evaluate, export, info, prune, report, soup, trim
from pyprune.errors import InputError, PypruneError

_EPILOG = """\
examples:
  pyprune demo
      prune a small model that comes with pyprune and see what is left of it (about two minutes)
  pyprune prune MODEL --data train.tsv --sparsity 0.5 --output pruned --evaluate dev.tsv
      prune your own fine-tuned model and compare it with the dense one
  pyprune evaluate pruned --data dev.tsv
  pyprune attack pruned --data dev.tsv --recipe pwws --against MODEL
      how both withstand an attack that swaps words
  pyprune export pruned --sparse small
      the same model without its zeros, on disk and in memory
  pyprune trim pruned --data train.tsv --output trimmed
      without the tokens that never occur
  pyprune bench model MODEL pruned
      how much faster and smaller the pruned model is
  pyprune soup run-1 run-2 --select held-out.tsv --output averaged
      an average of fine-tuned models, to start from
  pyprune report pruned --output report.html
      everything that is known of it, as one page
  pyprune info

`pyprune COMMAND --help` shows the options and examples of a command.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="pyprune",
        description="Prune Transformer language models, fast and accurately.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyprune {pyprune.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (prune, evaluate, attack, export, trim, soup, bench, report, info, demo):
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default ``sys.argv[1:]``.

    Returns
    -------
    int
        Exit status 0 or 1; bad usage leaves through ``SystemExit(2)``, as argparse does.
    """
    arguments = build_parser().parse_args(argv)
    try:
        if not arguments.debug:
            common.tidy_warnings()
        common.apply_threads(arguments.threads)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # the reader of stdout has left (head); keep the interpreter from complaining about it at exit
        _drop_stdout()
        return 1
    except KeyboardInterrupt as interrupt:
        error = PypruneError("interrupted", hint=str(interrupt) or None)
        return _fail(error, arguments)
    except PypruneError as error:
        return _fail(error, arguments)
    except OSError as error:
        return _fail(_disk_error(error), arguments)
    except MemoryError as error:
        return _fail(_memory_error(str(error)), arguments)
    except RuntimeError as error:
        if "memory" not in str(error).lower():
            return _fail(_unexpected(error), arguments)
        return _fail(_memory_error(str(error).splitlines()[0]), arguments)
    except Exception as error:  # the last door: a person gets a sentence, --debug has the traceback
        return _fail(_unexpected(error), arguments)


def _fail(error: PypruneError, arguments: argparse.Namespace) -> int:
    if arguments.debug:
        traceback.print_exc()
    print(f"pyprune {arguments.command}: {error}", file=sys.stderr)
    if arguments.json:
        try:
            common.print_json(common.error_record(error))
            sys.stdout.flush()
        except OSError:
            _drop_stdout()
    return 1


def _drop_stdout() -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _disk_error(error: OSError) -> PypruneError:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError(
            f"the disk is full{where}",
            seen=error.strerror,
            hint="make room and run the same command again with --resume; what was there before is untouched",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"no permission to write or read{where}", seen=error.strerror)
    return InputError(f"a file could not be read or written{where}", seen=error.strerror or str(error))


def _memory_error(text: str) -> PypruneError:
    return PypruneError(
        "not enough memory",
        seen=text[:300] or None,
        hint="--spill DIR keeps activations on disk; fewer --samples, a smaller --batch-size or --max-length "
        "need less; --dry-run states the need beforehand",
    )


def _unexpected(error: Exception) -> PypruneError:
    text = (str(error).strip().splitlines() or [""])[0][:300]
    return PypruneError(
        f"an error that should not happen: {type(error).__name__}: {text}",
        hint="run it again with --debug and report the traceback",
    )
