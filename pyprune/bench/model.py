# SPDX-License-Identifier: Apache-2.0
"""``bench model``: a pruned model, as it is and by pyprune's fast ways, beside the dense one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.bench import report, sizes, timing, verdict
from pyprune.bench.batches import random_batches, real_batches
from pyprune.bench.opening import check_pair, open_checkpoint
from pyprune.bench.ways import DTYPES, WAYS, Batch, Way, logits
from pyprune.commands.checkpoints import open_tokenizer
from pyprune.commands.evaluate import judge
from pyprune.errors import InputError, PypruneError
from pyprune.progress import Silent
from pyprune.tasks import Examples

BATCHES = (1, 8, 32)
SECONDS = 15.0  # of a case
_CHECKED = 2  # batches of a case that are compared before it is timed
_WARMUP = 1
# Largest difference of a logit to the same model eager in float32, as a share of the largest logit (or of 1). What int8
# costs is for the accuracy to say; the limit is for what is no model any more.
LIMITS = {"float32": 1e-3, "bfloat16": 0.2, "int8": 1.0}


@dataclass(frozen=True)
class Entrant:
    """A way in a dtype, ready to run."""

    name: str
    way: Way
    dtype: str
    module: Callable[..., Any]


def run(
    dense: str,
    pruned: str,
    *,
    batches: Sequence[int] = BATCHES,
    lengths: Sequence[int | str] = (128,),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    examples: Examples | None = None,
    compiled: bool = False,
    memory: bool = True,
    rounds: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    progress: Silent | None = None,
) -> report.Document:
    """Measure two models.

    Parameters
    ----------
    dense, pruned : str
        Folders (the dense one may be a name on the hub). The pruned one has zeros in its weights, or is stored sparse.
    batches : sequence of int
        Sequences of a batch.
    lengths : sequence of int or "real"
        Tokens of random text, or "real": rows of the examples with padding.
    dtypes : sequence of {"float32", "bfloat16", "int8"}
        Of the weights.
    examples : Examples, optional
        Labelled rows for the accuracy of every candidate (text for the perplexity of a language model).
    compiled : bool
        Also the dense model by ``torch.compile``.
    memory : bool
        Measure resident memory, each candidate in a process of its own.
    rounds, seconds : int, float, optional
        Of each case; by default as many rounds as fit into :data:`SECONDS`, at least
        :data:`pyprune.bench.timing.FEWEST`.
    seed : int
        Of random tokens and of the order of the rows.
    progress : optional

    Returns
    -------
    dict
        See :mod:`pyprune.bench.report`. Interrupted by Ctrl-C, it holds what was measured until then.

    Raises
    ------
    InputError
        A model that cannot be opened, models that do not belong together, or settings out of range.
    """
    _check(batches, lengths, dtypes, examples)
    progress = progress if progress is not None else Silent()
    models = {"dense": open_checkpoint(dense), "pruned": open_checkpoint(pruned)}
    check_pair(models["dense"], models["pruned"])
    tokenizer = None if examples is None else open_tokenizer(dense)
    given = {
        (batch, length): real_batches(models["dense"], tokenizer, examples, batch, seed=seed)
        if length == "real" and examples is not None
        else random_batches(models["dense"], batch, int(length), seed=seed)
        for length in lengths
        for batch in batches
    }
    settings = {"batches": batches, "lengths": lengths, "dtypes": dtypes, "rounds": rounds, "seconds": seconds}
    settings |= {"seed": seed, "data": None if examples is None else examples.source}
    document = report.new_document("model", settings)
    document["models"] = _models({"dense": dense, "pruned": pruned}, models)
    document["candidates"] = {}
    try:
        entrants = _entrants(models, dtypes, compiled, next(iter(given.values()))[0], document)
        steps = len(given) + len(entrants) * (memory + (examples is not None))
        progress.start(steps, "measuring")
        for each in entrants if examples is not None else ():
            progress.advance(f"accuracy of {each.name}")
            _evaluate(each, examples, tokenizer, document)
        for (batch, length), inputs in given.items():
            progress.advance(f"batch {batch}, {length}")
            results = _measure(entrants, models, inputs, rounds=rounds, seconds=seconds)
            document["cases"].append({"batch": batch, "length": length, "results": results})
        for each in entrants if memory else ():
            progress.advance(f"memory of {each.name}")
            if not isinstance(each.module, nn.Module):
                continue  # what exporting it took would count as the model's
            path = dense if each.way.model == "dense" else pruned
            known = sizes.resident(path, each.way.name, each.dtype, threads=torch.get_num_threads())
            document["candidates"][each.name]["memory"] = known
    except KeyboardInterrupt:
        document["interrupted"] = True
    progress.finish()
    return report.close_document(document, verdict.model(document))


def _check(
    batches: Sequence[int], lengths: Sequence[int | str], dtypes: Sequence[str], examples: Examples | None
) -> None:
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown or not dtypes:
        raise InputError(f"unknown dtype {unknown[0]!r}" if unknown else "no dtype", hint=", ".join(DTYPES))
    if not batches or min(batches) < 1:
        raise InputError("batches must hold at least one sequence", seen=", ".join(map(str, batches)) or "none")
    if not lengths:
        raise InputError("no length")
    if "real" in lengths and examples is None:
        raise InputError("real lengths need data", hint="--task or --data, or a number of tokens")


def _models(paths: Mapping[str, str], models: Mapping[str, Any]) -> dict[str, Any]:
    try:
        linears = sizes.encoder_linears(models["dense"])
    except InputError:  # a family that is not pruned here can be timed all the same
        linears = []
    known: dict[str, Any] = {}
    for which, path in paths.items():
        plain = linears and all(isinstance(models[which].get_submodule(name), nn.Linear) for name in linears)
        known[which] = {
            "path": path,
            "disk": sizes.on_disk(path, linears),
            "linear_sparsity": sizes.zeros(models[which], linears) if plain else None,
        }
    return known


def _entrants(
    models: Mapping[str, Any], dtypes: Sequence[str], compiled: bool, batch: Batch, document: report.Document
) -> list[Entrant]:
    """Every way in every dtype; those that cannot take part leave a reason in the document."""
    found = []
    for each in WAYS:
        if each.optional and not compiled:
            continue
        if (reason := each.missing()) is not None:
            document["missing"][each.name] = reason
            continue
        for dtype in (name for name in dtypes if name in each.dtypes):
            name = f"{each.name} {dtype}"
            try:
                with torch.inference_mode():
                    module = each.make(copy.deepcopy(models[each.model]), DTYPES[dtype], batch)
            except Exception as error:  # whatever an exporter or a compiler raises
                document["missing"][name] = _reason(error)
                continue
            found.append(Entrant(name, each, dtype, module))
            document["candidates"][name] = {
                "model": each.model,
                "way": each.name,
                "dtype": dtype,
                "ours": each.ours,
                "memory": None,
                "evaluation": None,
            }
    return found


def _measure(
    entrants: Sequence[Entrant],
    models: Mapping[str, Any],
    batches: Sequence[Batch],
    *,
    rounds: int | None,
    seconds: float | None,
) -> dict[str, Any]:
    """Results of one case by candidate: compared with the model they stand for, then timed in turns."""
    results: dict[str, Any] = {}
    calls: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        exact = {which: [_scores(model, batch) for batch in batches[:_CHECKED]] for which, model in models.items()}
        for each in entrants:
            results[each.name] = _compared(each, exact[each.way.model], batches)
            if results[each.name]["status"] == "timed":
                calls[each.name] = _cycled(each.module, batches)
        if calls:
            measured = timing.turns(
                calls,
                rounds=timing.MOST if rounds is None else rounds,
                seconds=None if rounds is not None else SECONDS if seconds is None else seconds,
                warmup=_WARMUP,
            )
            for name, values in measured.items():
                results[name] |= _rates(values, batches)
    return results


def _compared(each: Entrant, exact: Sequence[Tensor], batches: Sequence[Batch]) -> dict[str, Any]:
    try:
        differences = []
        for wanted, batch in zip(exact, batches, strict=False):
            seen = _scores(each.module, batch)
            if seen.shape != wanted.shape:
                reason = f"logits {list(seen.shape)} instead of {list(wanted.shape)}"
                return {"status": "wrong", "error": None, "limit": None, "reason": reason}
            differences.append(float((seen - wanted).abs().max()))
    except Exception as error:  # whatever a runtime raises
        return {"status": "failed", "reason": _reason(error)}
    limit = LIMITS[each.dtype] * max(1.0, *(float(wanted.abs().max()) for wanted in exact))
    largest = max(differences)
    if not largest <= limit:  # or NaN
        known = largest if math.isfinite(largest) else None
        return {"status": "wrong", "error": known, "limit": limit, "reason": f"a logit is off by {largest:.2g}"}
    return {"status": "timed", "error": largest}


def _scores(module: Callable[..., Any], batch: Batch) -> Tensor:
    """Logits in float64 of the sequences, or of their real tokens where each has its own."""
    output = module(**batch)
    found = logits(output).double()
    by_token = found.dim() > 2 or not hasattr(output, "logits")
    return found[batch["attention_mask"].bool()] if by_token else found


def _cycled(module: Callable[..., Any], batches: Sequence[Batch]) -> Callable[[], object]:
    following = cycle(batches)
    return lambda: module(**next(following))


def _rates(seconds: Sequence[float], batches: Sequence[Batch]) -> dict[str, Any]:
    """Percentiles of the latency of a batch, and sums over the batches that were measured."""
    used = [batches[(_WARMUP + turn) % len(batches)]["attention_mask"] for turn in range(len(seconds))]
    total = sum(seconds)
    known = asdict(timing.summary(seconds))
    return {
        **known,
        "p50": known["median"],
        "sentences_per_second": sum(len(mask) for mask in used) / total,
        "tokens_per_second": sum(int(mask.sum()) for mask in used) / total,
    }


def _evaluate(each: Entrant, examples: Examples | None, tokenizer: Any, document: report.Document) -> None:
    """Judge what is a transformers model still, not a runtime's session; the plain ones can be judged or none can."""
    if not isinstance(each.module, nn.Module):
        return
    try:
        outcome = judge(each.module, examples, tokenizer=tokenizer).to_dict()
    except PypruneError as error:
        if each.way.name in ("dense", "pruned as dense"):
            raise
        document["missing"][f"accuracy of {each.name}"] = error.message
        return
    document["candidates"][each.name]["evaluation"] = outcome


def _reason(error: Exception) -> str:
    first = (str(error).strip().splitlines() or ["no message"])[0][:200]
    return f"{type(error).__name__}: {first}"
