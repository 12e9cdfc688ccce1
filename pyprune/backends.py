# SPDX-License-Identifier: Apache-2.0
"""The table of backends as data.

Every op registers its implementations here (:func:`implements`). Dispatch, ``pyprune info``, test skips and
error messages all read this one table, so they cannot disagree.

Order of preference: ``cuda`` (compiled), ``triton``, ``cpp`` (compiled), ``torch`` (the vendor's libraries through
torch, in the dtype asked for), ``reference`` (torch, float64); :data:`FIRST` says where another comes first.
``PYPRUNE_BACKEND`` forces one; forcing one that is not available is an error that says why. Ops without a kernel there
go where :data:`WITHOUT_KERNEL` says, because a solver needs them all: no backend has those of the vendor's libraries.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch

from pyprune.errors import BackendError, InputError

ORDER = ("cuda", "triton", "cpp", "torch", "reference")
DEVICES = {
    "cuda": ("cuda",),
    "triton": ("cuda",),
    "cpp": ("cpu",),
    "torch": ("cpu", "cuda"),
    "reference": ("cpu", "cuda"),
}
FORCE = "PYPRUNE_BACKEND"

# Ops whose order differs: the CUDA gram multiplies 16-bit types on float32 lanes, Triton's on tensor cores.
FIRST = {"gram": "triton"}

# What else may serve an op that the forced backend has no kernel for.
WITHOUT_KERNEL = {"cuda": ("triton", "torch"), "triton": ("torch",), "torch": ("reference",)}

Function = TypeVar("Function", bound=Callable[..., Any])
_TABLE: dict[str, dict[str, Callable[..., Any]]] = {}


@dataclass(frozen=True)
class Rejected:
    """A backend that will not be used, and why."""

    backend: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The implementation that serves an op on a device."""

    backend: str
    function: Callable[..., Any]
    rejected: tuple[Rejected, ...]


def implements(op: str, backend: str) -> Callable[[Function], Function]:
    """Enter a function into the table as the implementation of ``op`` by ``backend``."""
    if backend not in ORDER:
        raise ValueError(f"backend must be one of {ORDER}, got {backend!r}")

    def enter(function: Function) -> Function:
        _TABLE.setdefault(op, {})[backend] = function
        return function

    return enter


@functools.cache
def _load_extension() -> tuple[ModuleType | None, str]:
    # torch first: its OpenMP runtime then serves the extension too (one thread pool, not two).
    try:
        return importlib.import_module("pyprune._C"), ""
    except ImportError as error:
        reason = f"the compiled extension pyprune._C could not be imported ({error})"
    warnings.warn(
        f"pyprune: {reason}; every op falls back to torch, which is slow. "
        "Reinstall with a C++17 compiler at hand: pip install --force-reinstall .",
        RuntimeWarning,
        stacklevel=3,
    )
    return None, reason


def extension() -> ModuleType:
    """The compiled module ``pyprune._C``.

    Raises
    ------
    BackendError
        It is not installed or does not load; the message holds the first cause.
    """
    module, reason = _load_extension()
    if module is None:
        raise BackendError("the compiled extension is needed", seen=reason, hint="pip install . with a compiler")
    return module


@functools.cache
def unavailable(backend: str) -> str | None:
    """Why a backend cannot run in this process, or None when it can."""
    if backend in ("torch", "reference"):
        return None
    module, reason = _load_extension()
    if backend == "cpp":
        if module is None:
            return reason
        problem = module.build_info().get("isa_error")
        if problem:  # asked for by name: an error, not a reason to compute slowly
            raise BackendError(problem, hint="unset PYPRUNE_CPU_ISA, or one of those")
        return None
    if backend == "cuda":
        if module is None:
            return reason
        if not module.build_info()["cuda"]:
            return "pyprune was built without CUDA (no nvcc was found, or PYPRUNE_CUDA=OFF)"
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        # An architecture the build did not cover is found here, not in the middle of a run.
        return module.cuda_problem(torch.cuda.current_device()) or None
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if torch.cuda.is_available() else "torch sees no CUDA device for triton"


def choose(op: str, device: str) -> Choice:
    """The implementation of ``op`` for tensors on ``device`` ("cpu" or "cuda").

    Raises
    ------
    BackendError
        ``PYPRUNE_BACKEND`` names an unknown backend, or one that cannot serve this op here.
    """
    return _choose(op, device, forced())


def forced() -> str:
    """The backend that ``PYPRUNE_BACKEND`` names; empty without it."""
    return _setting(FORCE)


def _setting(name: str) -> str:
    # Asked at every call of every op; os.environ takes a microsecond to answer.
    module, _ = _load_extension()
    return os.environ.get(name, "") if module is None else module.environment(name)


@functools.cache
def _choose(op: str, device: str, forced: str) -> Choice:
    if forced and forced not in ORDER:
        raise BackendError(f"{FORCE}={forced!r} is not a backend", hint=f"one of {', '.join(ORDER)}, or unset it")
    entries = _TABLE[op]
    allowed = {forced} if forced else set(ORDER)
    if forced and forced not in entries:
        allowed.update(WITHOUT_KERNEL.get(forced, ()))
    rejected: list[Rejected] = []
    chosen: str | None = None
    for backend in order_of(op):
        reason = _why_not(entries, backend, device)
        if reason is None and backend not in allowed:
            reason = f"{FORCE}={forced} was asked for"
        if reason is None and chosen is not None:
            reason = f"{chosen} comes first"
        if reason is None:
            chosen = backend
        else:
            rejected.append(Rejected(backend, reason))
    if chosen is None:
        seen = {entry.backend: entry.reason for entry in rejected}
        raise BackendError(
            f"no backend can run {op} on {device}",
            asked=f"{FORCE}={forced}" if forced else f"any of {', '.join(ORDER)}",
            seen=seen.get(forced) or "; ".join(f"{key}: {value}" for key, value in seen.items()),
            hint=f"unset {FORCE}, or see `pyprune info`" if forced else "see `pyprune info`",
        )
    return Choice(chosen, entries[chosen], tuple(rejected))


def _why_not(entries: dict[str, Callable[..., Any]], backend: str, device: str) -> str | None:
    if device not in DEVICES[backend]:
        return f"runs on {'/'.join(DEVICES[backend])} tensors, not on {device}"
    if backend not in entries:
        return "this op has no kernel there yet"
    return unavailable(backend)


def threads() -> int:
    """CPU threads a kernel may use: ``PYPRUNE_NUM_THREADS``, else torch's setting."""
    text = _setting("PYPRUNE_NUM_THREADS")
    if not text:
        return torch.get_num_threads()
    if not text.isdigit() or int(text) < 1:
        raise BackendError(f"PYPRUNE_NUM_THREADS={text!r} is not a positive whole number")
    return int(text)


def instructions() -> str:
    """Instruction set of the compiled CPU kernels in this process; "none" without them."""
    module, _ = _load_extension()
    return "none" if module is None else str(module.build_info()["isa"])


def scratch_bytes() -> int:
    """Most bytes that the compiled kernels keep for use again."""
    module, _ = _load_extension()
    return 0 if module is None else int(module.build_info()["scratch_kept"])


def operations() -> tuple[str, ...]:
    """Names of all registered ops."""
    importlib.import_module("pyprune.ops")
    return tuple(sorted(_TABLE))


def implementations(op: str) -> tuple[str, ...]:
    """Backends that have an implementation of an op, the preferred one first."""
    return tuple(backend for backend in order_of(op) if backend in _TABLE[op])


def order_of(op: str) -> tuple[str, ...]:
    """:data:`ORDER`, with what an op has in :data:`FIRST` before all others."""
    first = FIRST.get(op)
    return ORDER if first is None else (first, *(backend for backend in ORDER if backend != first))


def peak(dtype: torch.dtype, threads: int, *, rounds: int = 20) -> float:
    """What the processor's multiply-add units can do at most, FLOP/s: measured, best of ``rounds`` short rounds.

    Parameters
    ----------
    dtype : torch.dtype
        float32 or float64.
    threads, rounds : int
        A round takes about a millisecond.

    Raises
    ------
    BackendError
        The compiled extension is missing.
    InputError
        Another dtype.
    """
    types = {torch.float32: 0, torch.float64: 3}
    if dtype not in types:
        raise InputError("peak: the dtype must be float32 or float64", seen=str(dtype))
    return float(extension().peak(types[dtype], rounds, threads))


def describe() -> dict[str, Any]:
    """Everything ``pyprune info`` shows: versions, what was built, what each op uses and why not the rest."""
    from pyprune import __version__

    module, reason = _load_extension()
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return {
        "pyprune": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in ("numpy", "transformers", "safetensors", "triton", "datasets")},
        "extension": module.build_info() if module is not None else {"missing": reason},
        "threads": threads(),
        "openmp_runtimes": _openmp_runtimes(),
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "environment": {
            name: os.environ[name]
            for name in (FORCE, "PYPRUNE_CPU_ISA", "PYPRUNE_NUM_THREADS", "TRITON_INTERPRET")
            if name in os.environ
        },
        "ops": {op: {device: _describe_choice(op, device) for device in devices} for op in operations()},
    }


def _describe_choice(op: str, device: str) -> dict[str, Any]:
    try:
        choice = choose(op, device)
    except BackendError as error:
        return {"chosen": None, "error": str(error), "rejected": []}
    return {"chosen": choice.backend, "rejected": [vars(entry) for entry in choice.rejected]}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _openmp_runtimes() -> list[str]:
    # Two OpenMP runtimes in one process oversubscribe the cores; this makes it visible.
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line or "libiomp" in line}
    except OSError:
        return []
    return sorted(paths)
