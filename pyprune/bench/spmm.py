# SPDX-License-Identifier: Apache-2.0
"""``bench spmm``: products with one pruned weight, pyprune's beside dense ones and other sparse libraries."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, product
from typing import Any

import torch
from torch import Tensor

from pyprune.bench import report, timing, verdict
from pyprune.bench.machine import last_level_cache
from pyprune.bench.registry import Candidate, Prepared, Problem, choose
from pyprune.errors import InputError, PypruneError
from pyprune.patterns import Block, Pattern, Unstructured, parse_pattern
from pyprune.progress import Silent

SHAPES = ((384, 384), (1536, 384), (768, 768), (3072, 768))
TOKENS = (1, 8, 32, 128, 512)
SPARSITIES = (0.5, 0.7, 0.9, 0.95)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
SECONDS = 120.0  # that all cases together are measured, where nothing else is said
_AT_LEAST = 0.2  # seconds of a case
_BURST = 1e-3
# Largest |y - y64| / (|x| |W|ᵀ). float32: sums of thousands of terms; bfloat16: the result is rounded to 8 bits; int8:
# inputs quantised to 7 or 8 bits at every call.
LIMITS = {"float32": 1e-4, "bfloat16": 1e-2, "int8": 5e-2}


@dataclass(frozen=True)
class Case:
    """One line of the benchmark."""

    shape: tuple[int, int]
    tokens: int
    pattern: Pattern
    dtype: str
    streamed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As it is recorded."""
        return {
            "shape": list(self.shape),
            "tokens": self.tokens,
            "sparsity": self.pattern.sparsity,
            "kept": self.pattern.kept(*self.shape),
            "dtype": self.dtype,
            "pattern": self._kind(),
            "weights": "streamed" if self.streamed else "cached",
        }

    def _kind(self) -> str:
        if isinstance(self.pattern, Block):
            return f"{self.pattern.rows}x{self.pattern.cols} blocks"
        return "unstructured" if isinstance(self.pattern, Unstructured) else self.pattern.describe()

    def describe(self) -> str:
        """For a progress bar."""
        return f"{self.shape[0]}x{self.shape[1]}, {self.tokens} tokens, {self.pattern.describe()}, {self.dtype}"


def parse_cases(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    tokens: Sequence[int] = TOKENS,
    sparsities: Sequence[float] = SPARSITIES,
    dtypes: Sequence[str] = ("float32",),
    pattern: str = "unstructured",
    *,
    streamed: bool = False,
) -> list[Case]:
    """All combinations.

    Parameters
    ----------
    pattern : str
        "unstructured", "N:M" (which has its own sparsity) or "block:RxC".

    Raises
    ------
    InputError
        A number out of range, an unknown dtype or pattern, or a pattern that does not fit a shape.
    """
    for name, values in (("shapes", [size for shape in shapes for size in shape]), ("tokens", tokens)):
        if not values or min(values) < 1:
            raise InputError(f"{name} must be at least 1", seen=", ".join(map(str, values)) or "none")
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown or not dtypes:
        raise InputError(f"unknown dtype {unknown[0]!r}" if unknown else "no dtype", hint=", ".join(DTYPES))
    patterns = _patterns(pattern, sparsities)
    for shape, each in product(shapes, patterns):
        each.check(*shape)
    return [Case(*entry, streamed) for entry in product(shapes, tokens, patterns, dtypes)]


def _patterns(text: str, sparsities: Sequence[float]) -> list[Pattern]:
    if text != "unstructured" and not text.startswith("block:"):
        return [parse_pattern(text)]
    if not sparsities:
        raise InputError("no sparsity")
    prefix = "" if text == "unstructured" else f"{text}:"
    scope: Any = "layer"
    return [parse_pattern(f"{prefix}{sparsity}", scope=scope) for sparsity in sparsities]


def run(
    cases: Sequence[Case],
    *,
    names: Sequence[str] | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    progress: Silent | None = None,
) -> report.Document:
    """Measure cases.

    Parameters
    ----------
    cases : sequence of Case
        Of :func:`parse_cases`.
    names : sequence of str, optional
        Rivals; by default all that are installed. pyprune and registered kernels always take part.
    rounds : int, optional
        Of each case; by default as many as fit into `seconds`, at least :data:`pyprune.bench.timing.FEWEST`.
    seconds : float, optional
        Of each case, without preparation; by default two minutes for all.
    seed : int
        Of weights, masks and inputs.
    progress : optional

    Returns
    -------
    dict
        See :mod:`pyprune.bench.report`. Interrupted by Ctrl-C, it holds the cases that were finished.

    Raises
    ------
    InputError
        An unknown rival, or one that is not installed.
    """
    if not cases:
        raise InputError("no cases to measure")
    if seconds is None:
        seconds = max(_AT_LEAST, SECONDS / len(cases))
    chosen, missing = choose(names)
    document = report.new_document("spmm", {"rounds": rounds, "seconds": seconds, "seed": seed, "names": names})
    document["missing"] = missing
    document["candidates"] = {
        name: {"kind": candidate.kind, "version": candidate.version()} for name, candidate in chosen.items()
    }
    progress = progress if progress is not None else Silent()
    progress.start(len(cases), "measuring")
    try:
        for case in cases:
            progress.advance(case.describe())
            document["cases"].append(measure(case, chosen, rounds=rounds, seconds=seconds, seed=seed))
    except KeyboardInterrupt:
        document["interrupted"] = True
    progress.finish()
    return report.close_document(document, verdict.spmm(document))


def make_problem(case: Case, seed: int) -> tuple[Problem, Tensor]:
    """Weight and inputs ``[tokens, in]`` of a case, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[case.dtype]
    scores = torch.rand(case.shape, generator=generator)
    weight = torch.randn(case.shape, generator=generator)
    mask = case.pattern.select(scores)
    weight = weight.masked_fill(~mask, 0.0)
    x = torch.randn(case.tokens, case.shape[1], generator=generator)
    if dtype == torch.int8:
        step = weight.abs().amax(1, keepdim=True) / 127
        weight = (weight / step.where(step > 0, 1.0)).round() * step
        return Problem(weight, mask, case.tokens, dtype, case.pattern), x
    return Problem(weight.to(dtype), mask, case.tokens, dtype, case.pattern), x.to(dtype)


def measure(
    case: Case, candidates: Mapping[str, Candidate], *, rounds: int | None, seconds: float, seed: int
) -> dict[str, Any]:
    """The record of one case: each candidate prepared, held against float64, and timed in turns with the others."""
    with torch.inference_mode():
        problem, x = make_problem(case, seed)
        exact = x.double() @ problem.weight.double().T
        scale = x.double().abs() @ problem.weight.double().abs().T
        results: dict[str, dict[str, Any]] = {}
        calls: dict[str, Callable[[], object]] = {}
        for name, candidate in candidates.items():
            results[name], kernels = _prepared(candidate, problem, x, exact, scale, case)
            if kernels:
                takes = kernels[0].takes
                calls[name] = _cycled([kernel.call for kernel in kernels], x if takes is None else x.to(takes))
        if calls:
            measured = timing.turns(
                calls,
                rounds=timing.MOST if rounds is None else rounds,
                seconds=seconds if rounds is None else None,
                burst=_BURST,
            )
            for name, values in measured.items():
                results[name] |= asdict(timing.summary(values))
    return {**case.to_dict(), "results": results}


def _prepared(
    candidate: Candidate, problem: Problem, x: Tensor, exact: Tensor, scale: Tensor, case: Case
) -> tuple[dict[str, Any], list[Prepared]]:
    """A result without its times, and the copies to time: none where it is not served, fails or is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own sparse and quantised tensors
            kernel, reason = _kernel(candidate.prepare(problem))
        if kernel is None:
            return {"status": "skipped", "reason": reason}, []
        given = x.clone() if kernel.takes is None else x.to(kernel.takes, copy=True)
        before = given.clone()
        y = kernel.call(given)
        fault, error = _fault(y, exact, scale, LIMITS[case.dtype])
        if fault is None and not torch.equal(given, before):
            fault = "changed its input"
        if fault is not None:
            return {"status": "wrong", "error": error, "limit": LIMITS[case.dtype], "reason": fault}, []
        kernels = [kernel]
        for _ in range(_copies(kernel, problem) - 1 if case.streamed else 0):
            again, _ = _kernel(candidate.prepare(replace(problem, weight=problem.weight.clone())))
            kernels += [again] if again is not None else []
    except Exception as failure:  # whatever a library or a kernel of the user's raises
        text = str(failure).strip() or "no message"
        first = failure.message if isinstance(failure, PypruneError) else text.splitlines()[0][:200]
        return {"status": "failed", "reason": f"{type(failure).__name__}: {first}"}, []
    return {
        "status": "timed",
        "error": error,
        "nbytes": kernel.nbytes,
        "copies": len(kernels),
        "details": dict(kernel.details),
    }, kernels


def _kernel(answer: Any) -> tuple[Prepared | None, str]:
    if isinstance(answer, tuple) and len(answer) == 2 and answer[0] is None:
        return None, str(answer[1])
    if answer is None:
        return None, "not served"
    if not isinstance(answer, Prepared) and not callable(answer):
        raise TypeError(f"prepare returned a {type(answer).__name__}, neither a callable nor (None, reason)")
    return answer if isinstance(answer, Prepared) else Prepared(answer), ""


def _fault(y: Any, exact: Tensor, scale: Tensor, limit: float) -> tuple[str | None, float | None]:
    """What is wrong with a result, if anything, and its error where that is a number."""
    if not isinstance(y, Tensor) or y.shape != exact.shape:
        seen = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        return f"returned {seen} instead of {list(exact.shape)}", None
    difference = (y.double() - exact).abs()
    if not bool(torch.isfinite(difference).all()):
        return "NaN or infinity", None
    error = float((difference / scale.clamp_min(torch.finfo(torch.float32).tiny)).max()) if y.numel() else 0.0
    return (f"off by {error:.2g} of the sum of sizes" if error > limit else None), error


def _copies(kernel: Prepared, problem: Problem) -> int:
    """So many that they do not fit into the last cache twice over."""
    least = int(problem.mask.sum()) * problem.dtype.itemsize + problem.mask.numel() // 8
    size = max(1, kernel.nbytes if kernel.nbytes is not None else least)
    return 1 + math.ceil(2 * last_level_cache() / size)


def _cycled(calls: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Callable[[], object]:
    if len(calls) == 1:
        call = calls[0]
        return lambda: call(x)
    following: Iterator[Callable[[Tensor], Tensor]] = cycle(calls)
    return lambda: next(following)(x)
