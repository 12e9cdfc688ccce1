# SPDX-License-Identifier: Apache-2.0
"""``prune``: a model and text go in, a pruned model and a report come out."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune import backends, solvers
from pyprune.errors import InputError
from pyprune.methods import accounting
from pyprune.methods.akr import AKR
from pyprune.methods.calibration import DEFAULT_BATCH, DEFAULT_SAMPLES, Calibration, gather
from pyprune.methods.driver import Driver, Outcome, Progress, Silent
from pyprune.methods.journal import Journal, fingerprint, model_sha256
from pyprune.methods.one_shot import MAGNITUDE, OBS, SPARSEGPT, WANDA
from pyprune.methods.plan import Plan, make_plan
from pyprune.methods.recipe import Recipe
from pyprune.models import Adapter, adapter_for
from pyprune.models.replay import quiet
from pyprune.patterns import Pattern, parse_pattern
from pyprune.result import PruneResult

RECIPES = {recipe.name: recipe for recipe in (AKR, MAGNITUDE, WANDA, SPARSEGPT, OBS)}


def available() -> tuple[str, ...]:
    """Names that ``prune(..., method=...)`` takes."""
    return tuple(RECIPES)


def describe() -> dict[str, str]:
    """What each method does, in a line."""
    return {name: recipe.line for name, recipe in RECIPES.items()}


@dataclass(frozen=True)
class _Prepared:
    adapter: Adapter
    recipe: Recipe
    pattern: Pattern
    calibration: Calibration
    plan: Plan
    seconds: float


def prune(
    model: nn.Module,
    data: Any,
    *,
    tokenizer: Any = None,
    method: str = "akr",
    sparsity: float | None = None,
    pattern: Pattern | str | None = None,
    solver: str | None = None,
    rectify: bool | None = None,
    damping: float | None = None,
    samples: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    text: str | None = None,
    text_pair: str | None = None,
    inplace: bool = False,
    spill: str | os.PathLike[str] | None = None,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
    solver_options: Mapping[str, Any] | None = None,
) -> PruneResult:
    """Prune all linears of a model's blocks, without retraining and without labels.

    Embeddings, norms, biases, the pooler and the head are not pruned. Statistics, targets and solutions are
    computed in evaluation mode, float32 with float64 sums. The same seed, machine and thread count give the same
    bits; no global random state is touched.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, DistilBERT, LLaMA, Mistral, Qwen2, Qwen3 or OPT with any head. Not
        changed unless ``inplace``.
    data
        Calibration text without labels: texts, pairs of texts, a ``datasets.Dataset``,
        :class:`pyprune.tasks.Examples`, or batches with ``input_ids`` and ``attention_mask``.
    tokenizer : optional
        Of transformers; needed for texts, and saved with the result.
    method : str
        ``"akr"`` (default), ``"magnitude"``, ``"wanda"``, ``"sparsegpt"`` or ``"obs"``.
    sparsity : float, optional
        Fraction of zeros in each linear. Default 0.5, or what ``pattern`` says.
    pattern : Unstructured, NM, Block or str, optional
        ``"2:4"`` keeps 2 of every 4, ``"block:4x4:0.5"`` removes half of the blocks of 4 outputs by 4 inputs. Default:
        unstructured, rows or the whole layer competing as in the paper of the solver.
    solver : str, optional
        Another of :func:`pyprune.solvers.available` in place of the method's own.
    rectify : bool, optional
        Work towards the dense model's output (default for ``"akr"``) or towards the layer's own (all others).
        With ``rectify=True`` the bias is always refitted.
    damping : float, optional
        Ridge relative to the mean diagonal of the inputs' second moments. Default: the solver's own.
    samples : int, optional
        Calibration sentences at most, drawn without replacement. Default 2560.
    max_length : int, optional
        Tokens of a sentence at most. Default 128.
    batch_size : int, optional
        Sentences per forward pass at most. Default 64.
    seed : int
        Which sentences are drawn.
    text, text_pair : str, optional
        Columns of a ``Dataset``.
    inplace : bool
        Prune the given model itself; a run that fails leaves it partly pruned.
    spill : path, optional
        Folder for hidden states, in place of memory. Does not change the result.
    journal : path, optional
        Folder in which every finished block is kept, so that a stopped run can go on.
    resume : bool
        Go on with the journal; starts from the beginning where there is none.
    progress : optional
        Object with ``start(total, description)``, ``advance(description)``, ``note(text)``, ``finish()``.
    dry_run : bool
        Only plan: nothing is pruned, ``result.report["plan"]`` says what would be.
    solver_options : mapping, optional
        Further options of the solver.

    Returns
    -------
    PruneResult

    Raises
    ------
    InputError
        Something asked for does not fit: family, data, pattern, journal, ...
    NumericsError
        Weights or activations are not finite, or a layer cannot be solved; the message names it.

    Examples
    --------
    >>> result = pyprune.prune(model, sentences, tokenizer=tokenizer, sparsity=0.7)  # doctest: +SKIP
    >>> result.save("pruned")  # doctest: +SKIP
    """
    begin = time.perf_counter()
    progress = Silent() if progress is None else progress
    folder = None if journal is None else Path(journal).expanduser()
    spill_folder = None if spill is None else Path(spill).expanduser()
    if resume and folder is None:
        raise InputError("resume needs a journal", hint="journal=DIR, the folder of the run that was stopped")
    recipe = _recipe(method, solver, rectify)
    chosen = _pattern(recipe, sparsity, pattern)
    if damping is not None and not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping {damping} is not a ridge", hint="a number of at least 0, such as 1e-4")
    adapter = _check_model(model)
    calibration = gather(
        data,
        model,
        adapter,
        tokenizer=tokenizer,
        samples=samples,
        max_length=max_length,
        batch_size=batch_size,
        seed=seed,
        text=text,
        text_pair=text_pair,
    )
    planned = make_plan(model, adapter, recipe, chosen, calibration, spill=spill_folder, inplace=inplace)
    prepared = _Prepared(adapter, recipe, chosen, calibration, planned, time.perf_counter() - begin)
    if dry_run:
        return PruneResult(model, {}, {"dry_run": True, "plan": planned.to_dict()}, tokenizer)
    for line in planned.describe():
        progress.note(line)
    given_sha256 = model_sha256(model)
    # What changes the bits of the result; the sentences themselves are hashed as token ids.
    settings = {
        "method": recipe.name,
        "solver": recipe.solver,
        "rectify": recipe.rectify,
        "refit_bias": recipe.refit_bias,
        "pattern": chosen.to_dict(),
        "damping": damping,
        "solver_options": dict(solver_options or {}),
        "seed": seed,
        "batches": [list(batch["input_ids"].shape) for batch in calibration.batches],
    }
    device = next(model.parameters()).device
    kept = None
    if folder is not None:
        kept = Journal(folder, fingerprint(given_sha256, calibration.sha256, settings, device.type), resume=resume)
    before = accounting.resident_bytes()
    work = model if inplace else copy.deepcopy(model)
    types = {name: p.dtype for name, p in [*work.named_parameters(), *work.named_buffers()]}
    work.float()
    with quiet(work):
        outcome = Driver(
            model=work,
            adapter=adapter,
            recipe=recipe,
            pattern=chosen,
            batches=calibration.batches,
            damping=damping,
            options=dict(solver_options or {}),
            spill=spill_folder,
            journal=kept,
            progress=progress,
        ).run()
    _restore_types(work, types)
    report = _report(prepared, outcome, work, given_sha256)
    report["seed"] = seed
    report["settings"] = {key: value for key, value in settings.items() if key not in ("batches", "seed")} | {
        "sparsity": chosen.sparsity,
        "samples": DEFAULT_SAMPLES if samples is None else samples,
        "max_length": calibration.max_length,
        "batch_size": DEFAULT_BATCH if batch_size is None else batch_size,
        "spill": spill is not None,
    }
    report["memory"] = _memory(planned, before, device)
    report["seconds"]["total"] = time.perf_counter() - begin
    return PruneResult(work, outcome.masks, report, tokenizer)


def _recipe(method: str, solver: str | None, rectify: bool | None) -> Recipe:
    if method not in RECIPES:
        raise InputError(f"unknown method {method!r}", hint=f"one of {', '.join(RECIPES)}")
    recipe = RECIPES[method]
    if solver is not None:
        if solver not in solvers.available():
            raise InputError(f"unknown solver {solver!r}", hint=f"one of {', '.join(solvers.available())}")
        recipe = replace(recipe, solver=solver)
    if rectify is not None and rectify != recipe.rectify:
        # A rectified target has a mean of its own, which only the bias can follow.
        recipe = replace(recipe, rectify=rectify, refit_bias=rectify or recipe.refit_bias)
    return recipe


def _pattern(recipe: Recipe, sparsity: float | None, pattern: Pattern | str | None) -> Pattern:
    if isinstance(pattern, str):
        pattern = parse_pattern(pattern)
    if pattern is None:
        return solvers.default_pattern(recipe.solver, 0.5 if sparsity is None else sparsity)
    if not isinstance(pattern, Pattern):
        raise InputError("pattern must be a pattern", seen=repr(pattern), hint='pyprune.NM(2, 4), or "2:4"')
    if sparsity is not None and abs(sparsity - pattern.sparsity) > 1e-9:
        raise InputError(
            "sparsity and pattern disagree",
            asked=f"sparsity {sparsity:g}",
            seen=f"{pattern.describe()}, which is {pattern.sparsity:g}",
            hint="give one of them",
        )
    return pattern


def _check_model(model: Any) -> Adapter:
    if isinstance(model, (str, os.PathLike)):
        raise InputError(
            "model must be a loaded model",
            seen=repr(model),
            hint="AutoModelForSequenceClassification.from_pretrained(path)",
        )
    if not isinstance(model, nn.Module):
        raise InputError("model must be a torch module", seen=type(model).__name__)
    adapter = adapter_for(model)
    adapter.check(model)
    return adapter


def _restore_types(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.dtype != types[name]:
            tensor.data = tensor.data.to(types[name])


def _report(prepared: _Prepared, outcome: Outcome, model: nn.Module, given_sha256: str) -> dict[str, Any]:
    calibration, plan = prepared.calibration, prepared.plan
    records = outcome.records
    counts = accounting.count(
        model, prepared.adapter, outcome.masks, calibration.tokens / max(calibration.sentences, 1)
    )
    weights = sum(record["rows"] * record["cols"] for record in records)
    config: Any = model.config
    found = accounting.versions()
    return {
        "pyprune": found["pyprune"],
        "method": plan.method,
        "solver": plan.solver,
        "pattern": plan.pattern,
        "versions": found,
        "threads": {"torch": torch.get_num_threads(), "kernels": backends.threads()},
        "device": str(next(model.parameters()).device),
        "model": {
            "class": type(model).__name__,
            "family": prepared.adapter.family,
            "name": str(getattr(config, "_name_or_path", "") or ""),
            "sha256": given_sha256,
        },
        "data": calibration.to_dict(),
        "layers": records,
        "mean_error": sum(record["error"] for record in records) / len(records),
        "weighted_error": sum(record["error"] * record["rows"] * record["cols"] for record in records) / weights,
        "sparsity": {name: entry["removed"] / entry["total"] for name, entry in counts.items()},
        "counts": counts,
        "seconds": {"prepare": prepared.seconds, **outcome.seconds},
        "resumed_blocks": outcome.resumed,
        "notes": list(plan.notes),
    }


def _memory(plan: Plan, before: int | None, device: torch.device) -> dict[str, int | None]:
    return {
        "planned": plan.memory.total,
        "planned_disk": plan.memory.disk,
        "resident_before": before,
        # Of the process so far: larger than this run's own where something before it needed more.
        "peak": accounting.peak_bytes(),
        "cuda_peak": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }
