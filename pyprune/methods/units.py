# SPDX-License-Identifier: Apache-2.0
"""``prune_units``: heads and neurons of an encoder go until a budget is met, without retraining and without labels."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pyprune import backends
from pyprune.budgets import MEASURES, KeptUnits, allowance, unit_costs
from pyprune.errors import InputError
from pyprune.methods import accounting
from pyprune.methods.calibration import gather
from pyprune.methods.driver import Progress, Silent
from pyprune.methods.entry import check_model, restore_types, to_float32
from pyprune.methods.journal import model_sha256
from pyprune.methods.kprune import KPrune, UnitMagnitude
from pyprune.methods.kwon import Kwon
from pyprune.methods.objectives import Objective
from pyprune.methods.report import Clock
from pyprune.methods.unit_run import UnitRun
from pyprune.models.replay import quiet
from pyprune.models.sublayers import encoder_shape, sub_layers

UnitMethod = KPrune | Kwon | UnitMagnitude
UNIT_METHODS: dict[str, type[UnitMethod]] = {kind.name: kind for kind in (KPrune, Kwon, UnitMagnitude)}
DEFAULT_BATCH = 32  # sentences whose gradients are one sample; published for GLUE by both papers


@dataclass(frozen=True)
class UnitsResult:
    """A model whose removed heads and neurons are zero, all shapes as they were.

    Attributes
    ----------
    model : transformers.PreTrainedModel
    kept : KeptUnits
        What is kept of every layer.
    report : dict
        JSON-able: ``method`` and its settings, ``budget`` (``measure``, ``share``, ``dense``, ``allowed``,
        ``reached``), ``layers`` (a record for each half of a block: ``units``, ``kept``, and where there is a target of
        the residual sum ``error``, its relative squared error), ``shares`` of everything a budget can be counted in,
        ``data``, ``seconds`` by stage, versions, memory, notes.
    """

    model: Any
    kept: KeptUnits
    report: dict[str, Any]


def prune_units(
    model: nn.Module,
    data: Any,
    *,
    tokenizer: Any = None,
    method: str | UnitMethod = "kprune",
    target_flops: float | None = None,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    samples: int | None = None,
    max_length: int | None = None,
    batch_size: int = DEFAULT_BATCH,
    seed: int = 0,
    text: str | None = None,
    text_pair: str | None = None,
    inplace: bool = False,
    progress: Progress | None = None,
) -> UnitsResult:
    """Prune heads and feed-forward neurons of a fine-tuned encoder to a budget.

    Biases of outputs, norms, embeddings and the head of the model are kept, and not counted. Everything is computed in
    evaluation mode and float32, with float64 sums. The same seed, machine and thread count give the same bits; no
    global random state is touched.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA or DistilBERT for classification, regression or question answering.
        Not changed unless ``inplace``.
    data, tokenizer, samples, max_length, text, text_pair
        Calibration text without labels, as for :func:`pyprune.prune`.
    method : str or settings
        ``"kprune"`` (default), ``"kwon"``, ``"magnitude"``; or :class:`KPrune`, :class:`Kwon`, :class:`UnitMagnitude`
        with settings of your own.
    target_flops, target_macs, target_parameters : float
        The part of the dense encoder's that may be left, from 0 to 1; exactly one of them. Operations are counted at
        the mean length of the calibration text.
    batch_size : int
        Sentences per batch at most; also how many make one sample of a gradient.
    seed : int
        Which sentences and labels are drawn.
    inplace : bool
        Prune the given model itself; a run that fails leaves it partly pruned.
    progress : optional
        Object with ``start(total, description)``, ``advance(description)``, ``note(text)``, ``finish()``.

    Raises
    ------
    InputError
        Something asked for does not fit: family, head of the model, data, target.
    NumericsError
        Weights, activations or gradients are not finite; the message names what.

    Examples
    --------
    >>> result = prune_units(model, sentences, tokenizer=tokenizer, target_flops=0.4)  # doctest: +SKIP
    >>> result.kept.heads.sum(dim=1)  # doctest: +SKIP
    """
    clock = Clock()
    progress = Silent() if progress is None else progress
    chosen = _method(method)
    measure, share = _target(flops=target_flops, macs=target_macs, parameters=target_parameters)
    adapter = check_model(model)
    shape = encoder_shape(sub_layers(model, adapter))
    objective = Objective(model)
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
    costs = unit_costs(shape, measure, calibration.tokens / calibration.sentences)
    sha256 = model_sha256(getattr(model, "config", None), sorted(model.state_dict().items()))
    clock.ready()
    work = model if inplace else copy.deepcopy(model)
    types = to_float32(work)
    trained = [parameter for parameter in work.parameters() if parameter.requires_grad]
    work.requires_grad_(False)  # gradients are taken of gates only
    generator = torch.Generator().manual_seed(seed)
    run = UnitRun(work, adapter, calibration, costs, share, objective, generator, progress)
    progress.start(len(run.parts), "measuring heads and neurons")
    try:
        with quiet(work):
            kept = chosen.run(run)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        progress.finish()
    restore_types(work, types)
    report = _report(chosen, run, kept, clock)
    report |= {"seed": seed, "settings": {**asdict(chosen), **calibration.choices(batch_size)}}
    report["model"]["sha256"] = sha256
    return UnitsResult(work, kept, report)


def _method(method: str | UnitMethod) -> UnitMethod:
    if isinstance(method, UnitMethod):
        return method
    if method not in UNIT_METHODS:
        raise InputError(f"unknown method {method!r} for units", hint=f"one of {', '.join(UNIT_METHODS)}")
    return UNIT_METHODS[method]()


def _target(**shares: float | None) -> tuple[str, float]:
    given = [(measure, share) for measure, share in shares.items() if share is not None]
    if len(given) != 1:
        names = ", ".join(f"target_{measure}" for measure in shares)
        seen = ", ".join(f"target_{measure}" for measure, _ in given) or "none"
        raise InputError(f"exactly one target has to be given: {names}", seen=seen, hint="target_flops=0.4")
    allowance(given[0][1], 0)
    return given[0]


def _report(method: UnitMethod, run: UnitRun, kept: KeptUnits, clock: Clock) -> dict[str, Any]:
    found = accounting.versions()
    config: Any = run.model.config
    costs = run.costs
    return {
        "pyprune": found["pyprune"],
        "method": method.name,
        "versions": found,
        "threads": {"torch": torch.get_num_threads(), "kernels": backends.threads()},
        "device": str(next(run.model.parameters()).device),
        "model": {
            "class": type(run.model).__name__,
            "family": run.adapter.family,
            "name": str(getattr(config, "_name_or_path", "") or ""),
        },
        "data": run.calibration.to_dict(),
        "budget": {
            "measure": costs.measure,
            "share": run.share,
            "dense": run.budget(1),
            "allowed": run.budget(run.share),
            "reached": costs.total(kept),
            "head": costs.head,
            "neuron": costs.neuron,
        },
        "shares": _shares(run, kept),
        "layers": run.records,
        "seconds": {"prepare": clock.prepared, **run.seconds, "total": time.perf_counter() - clock.begin},
        "memory": {"resident_before": clock.resident, "peak": accounting.peak_bytes()},
        "notes": [*run.calibration.notes, *run.notes],
    }


def _shares(run: UnitRun, kept: KeptUnits) -> dict[str, float]:
    """What is left, by everything a budget can be counted in; operations also at the longest sentence."""
    lengths = {"": run.calibration.tokens / run.calibration.sentences}
    lengths["_at_longest"] = float(max(batch["input_ids"].shape[1] for batch in run.calibration.batches))
    found = {}
    for measure in MEASURES:
        for suffix, tokens in lengths.items():
            costs = unit_costs(run.shape, measure, tokens)
            found[measure + suffix] = costs.total(kept) / costs.total(KeptUnits.all(run.shape))
    del found["parameters_at_longest"]
    return found
