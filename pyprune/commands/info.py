# SPDX-License-Identifier: Apache-2.0
"""``pyprune info``: versions, what was built, what each op uses and why not the others."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands import common

_EPILOG = """\
examples:
  pyprune info
  pyprune info --json
  pyprune info --peak
      also measure what the processor can do, for comparison with the kernels' rates
  PYPRUNE_BACKEND=reference pyprune info
      what would run if the reference were forced
"""


def add(commands: Any) -> None:
    """Enter the command into the parser."""
    parser = commands.add_parser(
        "info",
        help="versions, what was built, which kernel each op uses and why",
        description="Show versions, what was built, which kernel each op would use and why not the others.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("--peak", action="store_true", help="measure the peak rate of the processor (takes a moment)")
    common.add_general(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the record of :func:`pyprune.backends.describe`, and what can be pruned how."""
    from pyprune import backends, solvers

    record = backends.describe()
    record["solvers"] = list(solvers.available())
    record.update(_methods())
    if arguments.peak:
        record["peak_gflops"] = _peak()
    if arguments.json:
        common.print_json(record)
        return 0
    print(_text(record))
    return 0


def _peak() -> dict[str, float]:
    import torch

    from pyprune import backends

    types = {"float32": torch.float32, "float64": torch.float64}
    return {name: round(backends.peak(dtype, backends.threads()) * 1e-9, 1) for name, dtype in types.items()}


def _methods() -> dict[str, list[str]]:
    # the solvers alone work without transformers; then there are no whole-model methods to list
    try:
        from pyprune import methods, models
    except ImportError:
        return {"methods": [], "families": []}
    return {"methods": list(methods.available()), "families": list(models.families())}


def _text(record: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    for key, value in record.items():
        if key != "ops":
            rows += _rows(key, value)
    parts = [common.table(rows), ""]
    chosen: list[tuple[str, str, str, str]] = []
    for op, devices in record["ops"].items():
        for device, choice in devices.items():
            chosen.append((op, device, choice["chosen"] or "none", ""))
            reasons = [(entry["backend"], entry["reason"]) for entry in choice.get("rejected", ())]
            if choice.get("error"):
                chosen.append(("", "", "", " ".join(choice["error"].split())))
            chosen += [("", "", "", f"not {backend}: {reason}") for backend, reason in reasons]
    parts.append(common.table(chosen, ("op", "device", "uses", "")))
    return "\n".join(parts)


def _rows(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [(f"{key}.{name}", _show(entry)) for name, entry in value.items()]
    return [(key, _show(value))]


def _show(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items()) or "none"
    if value is None:
        return "not installed"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
