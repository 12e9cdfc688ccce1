# SPDX-License-Identifier: Apache-2.0
"""Facts of the machine without which a number means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import pyprune
from pyprune import backends

_SOURCES = Path(pyprune.__file__).resolve().parents[1]
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 * 2**20  # where the system does not tell


def machine() -> dict[str, Any]:
    """Processor, threads, load, versions, and the backend that each op uses."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": backends.threads(),
        "torch_threads": torch.get_num_threads(),
        "last_level_cache": last_level_cache(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyprune": pyprune.__version__,
        "commit": _commit(),
        "backends": {op: {"cpu": backends.choose(op, "cpu").backend} for op in backends.operations()},
    }
    if backends.unavailable("cpp") is None:
        facts["build"] = dict(backends.extension().build_info())
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; a common size where the system does not tell."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [0]
    for path in _CACHES.glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
            sizes.append(int(text[:-1]) * units[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes) or _USUAL_CACHE


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Of the sources this package runs from; an installed one may lie inside another project's repository."""
    if Path(_git("rev-parse", "--show-toplevel") or "/").resolve() != _SOURCES:
        return "unknown"
    return _git("describe", "--always", "--dirty", "--abbrev=12") or "unknown"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=_SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
