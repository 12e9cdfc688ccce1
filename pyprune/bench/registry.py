# SPDX-License-Identifier: Apache-2.0
"""Who takes part in ``bench spmm``: pyprune, what is found installed, and kernels of other people's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.ops.sparse_weight import compress
from pyprune.ops.spmm import prepare as arrange
from pyprune.ops.spmm import spmm
from pyprune.ops.spmm_plan import faster
from pyprune.patterns import NM, Block, Pattern

OURS = "pyprune"


@dataclass(frozen=True)
class Problem:
    """One weight to multiply by.

    Attributes
    ----------
    weight : Tensor, shape (out, in)
        Dense, with zeros; float32, or bfloat16 if that is `dtype`. With int8 every row is a multiple of one step and
        its largest weight 127 of them, so that rounding to int8 by rows loses nothing.
    mask : Tensor of bool, shape (out, in)
        True = kept.
    tokens : int
        Rows of the inputs that will come.
    dtype : torch.dtype
        Of the values: float32, bfloat16 or int8. Inputs are float32 for int8, else of this dtype.
    pattern : Pattern
        Of the mask.
    """

    weight: Tensor
    mask: Tensor
    tokens: int
    dtype: torch.dtype
    pattern: Pattern


@dataclass(frozen=True)
class Prepared:
    """A kernel with its weight.

    Attributes
    ----------
    call : callable
        ``x [tokens, in] -> y [tokens, out]``.
    nbytes : int, optional
        Of the weight as it is kept; by default the least it can be, packed values and a bitmask.
    takes : torch.dtype, optional
        Dtype of the inputs, if it is not that of the problem.
    details : mapping
        What to note beside the result.
    """

    call: Callable[[Tensor], Tensor]
    nbytes: int | None = None
    takes: torch.dtype | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


# What preparing may give back; None or text means that this case is not served, and why.
Answer = Prepared | Callable[[Tensor], Tensor] | tuple[None, str] | None


@dataclass(frozen=True)
class Candidate:
    """One way to multiply.

    Attributes
    ----------
    name : str
    kind : {"pyprune", "registered", "dense", "sparse"}
        The first two are judged against the others.
    prepare : callable
        ``Problem -> Answer``.
    needs : tuple of str
        Modules that have to be importable.
    """

    name: str
    kind: str
    prepare: Callable[[Problem], Answer]
    needs: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot take part here, if it cannot."""
        absent = [module for module in self.needs if importlib.util.find_spec(module) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def version(self) -> str:
        """Of the package behind it."""
        package = {"dense": "torch", "sparse": "torch"}.get(self.kind, "pyprune") if not self.needs else self.needs[0]
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "unknown"


def register(name: str, prepare: Callable[[Tensor, Tensor, int, torch.dtype], Answer]) -> None:
    """Enter a kernel of your own into ``bench spmm``; a name that was registered before is replaced.

    Parameters
    ----------
    name : str
        How it is called in tables and plots.
    prepare : callable
        ``prepare(weight, mask, tokens, dtype)`` arranges a weight, as often as it is asked, and returns a callable
        ``x -> y``, or a :class:`Prepared`, or ``(None, reason)`` where it does not serve the case. What the arguments
        are is said at :class:`Problem`. Only the calls are timed. A kernel whose result is wrong is not timed at all.

    Raises
    ------
    InputError
        The name is that of a candidate which is there already.

    Examples
    --------
    >>> def prepare(weight, mask, tokens, dtype):
    ...     if dtype != torch.float32:
    ...         return None, "float32 only"
    ...     return lambda x: x @ weight.T
    >>> register("mine", prepare)
    >>> "mine" in candidates()
    True
    >>> unregister("mine")
    """
    if not name.strip() or "," in name:
        raise InputError("a kernel needs a name without commas", seen=repr(name))
    if name in _builtin():
        raise InputError(f"there is a candidate called {name!r} already", hint="another name")
    _REGISTERED[name] = Candidate(
        name, "registered", lambda problem: prepare(problem.weight, problem.mask, problem.tokens, problem.dtype)
    )


def unregister(name: str) -> None:
    """Take a registered kernel out again."""
    _REGISTERED.pop(name, None)


def candidates() -> dict[str, Candidate]:
    """All by name: pyprune, those registered, dense ones, sparse libraries."""
    everyone = _builtin()
    return {OURS: everyone.pop(OURS), **_REGISTERED, **everyone}


def choose(names: Sequence[str] | None) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Those that take part, and of the others of this choice why they do not.

    Parameters
    ----------
    names : sequence of str, optional
        Rivals; pyprune and registered kernels always take part. By default all.

    Raises
    ------
    InputError
        A name that is not known, or one asked for by name that is not installed.
    """
    everyone = candidates()
    for name in names or ():
        if name not in everyone:
            raise InputError(f"there is no candidate called {name!r}", hint=f"one of {', '.join(everyone)}")
        if (reason := everyone[name].missing()) is not None:
            raise InputError(f"{name} cannot take part", seen=reason)
    asked = {
        name: candidate
        for name, candidate in everyone.items()
        if names is None or name in names or candidate.kind in ("pyprune", "registered")
    }
    missing = {name: reason for name, candidate in asked.items() if (reason := candidate.missing()) is not None}
    return {name: candidate for name, candidate in asked.items() if name not in missing}, missing


_REGISTERED: dict[str, Candidate] = {}


def _builtin() -> dict[str, Candidate]:
    from pyprune.bench import dense, libraries

    return {each.name: each for each in (Candidate(OURS, "pyprune", _ours), *dense.CANDIDATES, *libraries.CANDIDATES)}


def _ours(problem: Problem) -> Answer:
    format, geometry = "bitmask", (1, 1)
    if isinstance(problem.pattern, NM):
        format, geometry = "nm", (problem.pattern.keep, problem.pattern.of)
    elif isinstance(problem.pattern, Block):
        format, geometry = "block", (problem.pattern.rows, problem.pattern.cols)
    stored = compress(problem.weight, problem.mask, format=format, geometry=geometry, dtype=problem.dtype)
    prepared = arrange(stored)
    details = {"format": prepared.format, "stored_bytes": stored.nbytes, "auto": _auto(problem)}
    return Prepared(lambda x: spmm(x, prepared), prepared.nbytes, details=details)


def _auto(problem: Problem) -> str:
    """What ``sparsify`` takes here with format "auto", "sparse" or "dense"; the sparse one is what is timed."""
    out, columns = problem.weight.shape
    density = int(problem.mask.sum()) / problem.mask.numel()
    return faster(out, columns, density, dtype=problem.dtype, tokens=problem.tokens).format
