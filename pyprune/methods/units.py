# SPDX-License-Identifier: Apache-2.0
"""``prune_units``: heads and neurons of an encoder go until a budget is met, without retraining and without labels."""

from __future__ import annotations

import copy
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyprune.budgets import UnitCosts, unit_costs
from pyprune.errors import InputError
from pyprune.latency import LatencyCosts, LatencyTable, latency_costs
from pyprune.methods.calibration import gather
from pyprune.methods.driver import Progress, Silent
from pyprune.methods.journal import Journal, fingerprint, model_sha256
from pyprune.methods.latency import measure_latency
from pyprune.methods.objectives import Objective
from pyprune.methods.report import Clock
from pyprune.methods.unit_plan import make_unit_plan
from pyprune.methods.unit_report import make_unit_report
from pyprune.methods.unit_request import Target, UnitMethod, UnitRequest, share_of, unit_method
from pyprune.methods.unit_run import UnitRun
from pyprune.methods.working_copy import check_model, restore_types, to_float32
from pyprune.models.replay import quiet
from pyprune.models.sublayers import sub_layers
from pyprune.result import PruneResult
from pyprune.structured import dense_units, unit_masks
from pyprune.structured.shapes import has_layers

DEFAULT_BATCH = 32  # sentences whose gradients are one sample; published for GLUE by both papers
_TABLE = "latency.json"  # in a journal: a run that goes on does so by the same times


def prune_units(
    model: nn.Module,
    data: Any,
    *,
    tokenizer: Any = None,
    method: str | UnitMethod = "kprune",
    target_flops: float | None = None,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    target_latency: float | None = None,
    latency_table: LatencyTable | str | os.PathLike[str] | None = None,
    damping: float | None = None,
    samples: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    text: str | None = None,
    text_pair: str | None = None,
    inplace: bool = False,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> PruneResult:
    """Prune heads and feed-forward neurons of a fine-tuned encoder to a budget; :func:`pyprune.prune` comes here.

    Biases of outputs, norms, embeddings and the head of the model are kept, and not counted. Everything is computed in
    evaluation mode and float32, with float64 sums. The same seed, machine and thread count give the same bits; no
    global random state is touched.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA or DistilBERT for classification, regression or question answering.
        Not changed unless ``inplace``.
    data, tokenizer, samples, max_length, text, text_pair, seed, inplace, progress, dry_run
        As for :func:`pyprune.prune`.
    method : str or settings
        ``"kprune"`` (default), ``"kwon"``, ``"unit-magnitude"``; or :class:`KPrune`, :class:`Kwon`,
        :class:`UnitMagnitude` with settings of your own.
    target_flops, target_macs, target_parameters : float
        The part of the dense encoder's that may be left, from 0 to 1; exactly one target. Operations are counted at
        the mean length of the calibration text.
    target_latency : float
        Instead: how many times as fast a call has to be, 2.0 for half the time.
    latency_table : LatencyTable or path, optional
        Times to go by; default: those of 32 sequences of the mean length in :func:`pyprune.optimize`'s form, measured
        before pruning (:func:`measure_latency` measures others). The report's ``budget["table"]`` holds it, and
        ``pyprune.json`` or the folder of a result can be given back here: the same table, the same units.
    damping : float, optional
        Another ridge for K-prune.
    batch_size : int, optional
        Sentences per batch at most, default 32; also how many make one sample of a gradient.
    journal, resume
        As for :func:`pyprune.prune`; of K-prune. The other methods prune all at once and start from the beginning.

    Returns
    -------
    PruneResult
        With ``units``. Its report has ``budget`` (``measure``, ``share``, ``dense``, ``allowed``, ``reached``,
        ``head``, ``neuron``), ``left`` (the part that is left, by everything a budget can be counted in) and
        ``layers``: a record for each half of a block with ``name``, ``kind``, ``units``, ``kept``, and where there is
        a target of the residual sum ``error``, its relative squared error.

    Raises
    ------
    InputError
        Something asked for does not fit: family, head of the model, data, target, journal.
    NumericsError
        Weights, activations or gradients are not finite; the message names what.

    Examples
    --------
    >>> result = prune_units(model, sentences, tokenizer=tokenizer, target_flops=0.4)  # doctest: +SKIP
    >>> [len(layer.heads) for layer in result.units.layers]  # doctest: +SKIP
    """
    clock = Clock()
    progress = Silent() if progress is None else progress
    target = Target.of(
        flops=target_flops, macs=target_macs, parameters=target_parameters, latency=share_of(target_latency)
    )
    if latency_table is not None and target_latency is None:
        raise InputError("latency_table goes with target_latency", hint="target_latency=2.0")
    request = UnitRequest(unit_method(method, damping=damping), target, seed)
    if resume and journal is None:
        raise InputError("resume needs a journal", hint="journal=DIR, the folder of the run that was stopped")
    if has_layers(getattr(model, "config", None)):
        raise InputError("the model is compact already", hint="prune the dense model that it was made of")
    adapter = check_model(model)
    parts = sub_layers(model, adapter)
    dense = dense_units(model)
    objective = Objective(model)
    batch_size = DEFAULT_BATCH if batch_size is None else batch_size
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
        labels=objective.kind if request.method.needs_labels else None,
    )
    length = calibration.tokens / calibration.sentences
    costs: UnitCosts | LatencyCosts
    if target.measure == "latency":
        stored = None if journal is None else Path(journal).expanduser() / _TABLE
        table = _table(latency_table, model, length, stored if resume else None, progress)
        costs = latency_costs(table, dense)
    else:
        costs = unit_costs(dense, target.measure, length)
    plan = make_unit_plan(model, adapter, request, calibration, parts, dense, costs, inplace=inplace)
    if dry_run:
        return PruneResult(model, {}, {"dry_run": True, "plan": plan.to_dict()}, tokenizer)
    for line in plan.describe():
        progress.note(line)
    sha256 = model_sha256(getattr(model, "config", None), sorted(model.state_dict().items()))
    device = next(model.parameters()).device
    kept = None
    if journal is not None and request.method.resumes:
        settings = request.settings(calibration)
        if isinstance(costs, LatencyCosts):
            settings["latency"] = table.to_json()
        mark = fingerprint(sha256, calibration.sha256, settings, device.type)
        kept = Journal(Path(journal).expanduser(), mark, resume=resume)
        if isinstance(costs, LatencyCosts):
            table.save(Path(journal).expanduser() / _TABLE)
    elif resume:
        progress.note(f"{request.method.name} prunes all at once and keeps no journal: it starts from the beginning")
    clock.ready()
    work = model if inplace else copy.deepcopy(model)
    types = to_float32(work)
    trained = [parameter for parameter in work.parameters() if parameter.requires_grad]
    work.requires_grad_(False)  # gradients are taken of gates only
    generator = torch.Generator().manual_seed(seed)
    run = UnitRun(work, adapter, calibration, costs, target.share, objective, generator, progress, kept)
    try:
        with quiet(work):
            request.method.run(run)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        progress.finish()
    restore_types(work, types)
    settings = {**asdict(request.method), **calibration.choices(batch_size)}
    report = make_unit_report(request, plan, run, sha256=sha256, device=device, settings=settings, clock=clock)
    units = run.units()
    return PruneResult(work, unit_masks(work, units), report, tokenizer, units)


def _table(
    given: LatencyTable | str | os.PathLike[str] | None,
    model: nn.Module,
    length: float,
    stored: Path | None,
    progress: Progress,
) -> LatencyTable:
    """The table of latencies that was given, that of a run that goes on, or one measured now."""
    if isinstance(given, LatencyTable):
        return given
    if given is not None:
        return LatencyTable.load(Path(given))
    if stored is not None and stored.exists():
        return LatencyTable.load(stored)
    progress.note("measuring how long layers take by their heads and neurons; latency_table= gives a table back")
    return measure_latency(model, length=max(1, round(length)))
