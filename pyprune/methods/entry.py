# SPDX-License-Identifier: Apache-2.0
"""``prune``: a model and text go in, a pruned model and a report come out."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pyprune.errors import InputError
from pyprune.latency import LatencyTable
from pyprune.methods.calibration import gather
from pyprune.methods.driver import Driver, InMemory, Progress, Silent
from pyprune.methods.journal import Journal, fingerprint, model_sha256
from pyprune.methods.plan import estimate, make_plan
from pyprune.methods.report import Clock, make_report
from pyprune.methods.request import resolve
from pyprune.methods.unit_request import UnitMethod, is_unit_method, refuse_for_units, refuse_targets
from pyprune.methods.units import prune_units
from pyprune.methods.working_copy import check_model, restore_types, to_float32
from pyprune.models.replay import quiet
from pyprune.patterns import Pattern
from pyprune.result import PruneResult


def prune(
    model: nn.Module,
    data: Any,
    *,
    tokenizer: Any = None,
    method: str | UnitMethod = "akr",
    sparsity: float | None = None,
    pattern: Pattern | str | None = None,
    solver: str | None = None,
    rectify: bool | None = None,
    damping: float | None = None,
    target_flops: float | None = None,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    target_latency: float | None = None,
    latency_table: LatencyTable | str | os.PathLike[str] | None = None,
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
    """Prune all linears of a model's blocks, or whole heads and neurons, without retraining and without labels.

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
    method : str or settings
        For single weights ``"akr"`` (default), ``"magnitude"``, ``"wanda"``, ``"sparsegpt"`` or ``"obs"``. For heads
        and feed-forward neurons of encoders ``"kprune"``, ``"kwon"`` or ``"unit-magnitude"``, or :class:`KPrune`,
        :class:`Kwon` or :class:`UnitMagnitude` of :mod:`pyprune.methods` with settings of your own; these take a
        target in place of sparsity, pattern, solver, rectify, spill and solver_options.
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
    target_flops, target_macs, target_parameters : float, optional
        The part of the dense encoder's that may be *left*, from 0 to 1: 0.4 removes 60 %. Exactly one of them, with a
        method for heads and neurons. Operations are counted at the mean length of the calibration text.
    target_latency : float, optional
        Instead: how many times as fast a call has to be, by times measured on this machine.
    latency_table : LatencyTable or path, optional
        Times measured before, as for :func:`pyprune.methods.prune_units`.
    samples : int, optional
        Calibration sentences at most, drawn without replacement. Default 2560. For causal language models texts are
        joined and cut into sequences of ``max_length``, 128 of them.
    max_length : int, optional
        Tokens of a sentence at most. Default 128, for causal language models 2048.
    batch_size : int, optional
        Sentences per forward pass at most. Default 64, for heads and neurons 32.
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
    >>> result = pyprune.prune(  # doctest: +SKIP
    ...     model, sentences, tokenizer=tokenizer, method="kprune", target_flops=0.4
    ... )
    """
    targets = {
        "flops": target_flops,
        "macs": target_macs,
        "parameters": target_parameters,
        "latency": target_latency,
    }
    if is_unit_method(method):
        unfit = {
            "sparsity": sparsity,
            "pattern": pattern,
            "solver": solver,
            "rectify": rectify,
            "spill": spill,
            "solver_options": solver_options or None,
        }
        refuse_for_units(method, unfit)
        return prune_units(
            model,
            data,
            tokenizer=tokenizer,
            method=method,
            target_flops=target_flops,
            target_macs=target_macs,
            target_parameters=target_parameters,
            target_latency=target_latency,
            latency_table=latency_table,
            damping=damping,
            samples=samples,
            max_length=max_length,
            batch_size=batch_size,
            seed=seed,
            text=text,
            text_pair=text_pair,
            inplace=inplace,
            journal=journal,
            resume=resume,
            progress=progress,
            dry_run=dry_run,
        )
    if not isinstance(method, str):
        raise InputError("method is a name, or settings of a method for heads and neurons", seen=repr(method)[:80])
    refuse_targets(method, targets)
    clock = Clock()
    progress = Silent() if progress is None else progress
    folder = None if journal is None else Path(journal).expanduser()
    spill_folder = None if spill is None else Path(spill).expanduser()
    if resume and folder is None:
        raise InputError("resume needs a journal", hint="journal=DIR, the folder of the run that was stopped")
    request = resolve(
        method,
        solver=solver,
        rectify=rectify,
        sparsity=sparsity,
        pattern=pattern,
        damping=damping,
        solver_options=solver_options,
        seed=seed,
    )
    adapter = check_model(model)
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
    memory = estimate(model, adapter, calibration, spill=spill is not None, inplace=inplace)
    plan = make_plan(model, adapter, request, calibration, memory)
    if dry_run:
        return PruneResult(model, {}, {"dry_run": True, "plan": plan.to_dict()}, tokenizer)
    for line in plan.describe():
        progress.note(line)
    given_sha256 = model_sha256(getattr(model, "config", None), sorted(model.state_dict().items()))
    device = next(model.parameters()).device
    kept = None
    if folder is not None:
        settings = request.settings(calibration.batches)
        kept = Journal(folder, fingerprint(given_sha256, calibration.sha256, settings, device.type), resume=resume)
    clock.ready()
    work = model if inplace else copy.deepcopy(model)
    types = to_float32(work)
    with quiet(work):
        outcome = Driver(
            blocks=InMemory(work, adapter),
            adapter=adapter,
            recipe=request.recipe,
            pattern=request.pattern,
            batches=calibration.batches,
            damping=damping,
            options=request.options,
            spill=spill_folder,
            journal=kept,
            progress=progress,
        ).run()
    restore_types(work, types)
    report = make_report(
        request,
        plan,
        calibration,
        outcome,
        work,
        adapter,
        sha256=given_sha256,
        device=device,
        choices=calibration.choices(batch_size) | {"spill": spill is not None},
        clock=clock,
    )
    return PruneResult(work, outcome.masks, report, tokenizer)
