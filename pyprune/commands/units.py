# SPDX-License-Identifier: Apache-2.0
"""``pyprune prune`` of heads and neurons: options, what goes with what, settings."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands import common

# What a target is counted in, and how its option reads. Each is an argument target_<measure> of pyprune.prune.
TARGETS: dict[str, dict[str, Any]] = {
    "flops": {
        "type": common.share,
        "metavar": "PART",
        "help": "part of the FLOPs of the dense encoder's heads and neurons that may be LEFT: 0.4 keeps at most 40 %% "
        "and removes 60 %%. Counted at the mean length of the calibration text",
    },
    "macs": {"type": common.share, "metavar": "PART", "help": "the same part of the multiply-adds"},
    "parameters": {"type": common.share, "metavar": "PART", "help": "the same part of the parameters"},
    "latency": {
        "type": common.speedup,
        "metavar": "TIMES",
        "help": "how many times as fast a call has to be, e.g. 2.0x, by times of this machine: measured before "
        "pruning, or given back with --latency-table",
    },
}
# What only methods take that remove single weights, by the name that argparse gives it.
_WEIGHTS = ("sparsity", "pattern", "scope", "solver", "rectify", "spill", "streaming", "random_weights")


def add(parser: argparse.ArgumentParser) -> None:
    """Enter the options into the parser of ``prune``."""
    from pyprune.methods.unit_request import UNIT_METHODS

    group = parser.add_argument_group(
        "heads and neurons",
        f"--method {', '.join(UNIT_METHODS)} remove whole heads and feed-forward neurons\n"
        "of an encoder: the model saved is smaller, and faster as it is. They take one of these\n"
        "targets in place of --sparsity or --pattern.",
    )
    targets = group.add_mutually_exclusive_group()
    for measure, options in TARGETS.items():
        targets.add_argument(_option(measure), **options)
    group.add_argument(
        "--latency-table",
        metavar="FILE",
        help="times to go by: pyprune.json or the folder of a model pruned to a latency, or a table saved by Python "
        "(default: those of 32 sequences of the mean length, in the form of pyprune.optimize)",
    )
    group.add_argument(
        "--labels",
        choices=("drawn", "data"),
        help="of --method kwon: labels for its gradients, drawn from the model's own predictions (default) or those of "
        "the data, as published",
    )


def check_usage(arguments: argparse.Namespace) -> None:
    """Leave through the parser where options do not go together."""
    from pyprune.methods.unit_request import UNIT_METHODS

    method, names = arguments.method, ", ".join(UNIT_METHODS)
    given = [_option(measure) for measure in TARGETS if _target(arguments, measure) is not None]
    if arguments.latency_table is not None and arguments.target_latency is None:
        arguments.parser.error("--latency-table goes with --target-latency")
    if arguments.labels is not None and method != "kwon":
        arguments.parser.error(f"--labels goes with --method kwon, {method} needs none")
    if not chosen(arguments):
        if given:
            arguments.parser.error(
                f"{given[0]} goes with methods that remove heads and neurons ({names}); {method} removes single "
                "weights and takes --sparsity or --pattern"
            )
        if arguments.storage == "compact":
            arguments.parser.error(f"--storage compact goes with --method {names}: {method} leaves all units in place")
        return
    for name in _WEIGHTS:
        if getattr(arguments, name) is not arguments.parser.get_default(name):
            arguments.parser.error(
                f"--{name.replace('_', '-')} does not go with --method {method}{_instead(arguments)}"
            )
    if arguments.damping is not None and method != "kprune":
        arguments.parser.error(f"--damping does not go with --method {method}, which fits nothing with a ridge")
    if not given:
        options = ", ".join(map(_option, TARGETS))
        arguments.parser.error(
            f"--method {method} needs one of {options}: the part that may be LEFT, "
            "so --target-flops 0.4 keeps at most 40 % and removes 60 %"
        )


def chosen(arguments: argparse.Namespace) -> bool:
    """Whether the method removes heads and neurons."""
    from pyprune.methods.unit_request import UNIT_METHODS

    return arguments.method in UNIT_METHODS


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What :func:`pyprune.prune` is told of them."""
    from pyprune.methods import Kwon

    found = {f"target_{measure}": _target(arguments, measure) for measure in TARGETS}
    labelled = arguments.labels is not None
    return {
        **{name: value for name, value in found.items() if value is not None},
        "method": Kwon(labels=arguments.labels) if labelled else arguments.method,
        "damping": arguments.damping,
        **({} if arguments.latency_table is None else {"latency_table": arguments.latency_table}),
    }


def _option(measure: str) -> str:
    return f"--target-{measure}"


def _target(arguments: argparse.Namespace, measure: str) -> Any:
    return getattr(arguments, f"target_{measure}")


def _instead(arguments: argparse.Namespace) -> str:
    if arguments.sparsity is not None:
        left = f"{1 - arguments.sparsity:.10g}"
        return (
            f": it takes the part that may be LEFT, not the part that is removed, e.g. --target-flops {left}, "
            f"or --target-parameters {left}"
        )
    return ", which removes whole heads and neurons"
