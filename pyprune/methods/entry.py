# SPDX-License-Identifier: Apache-2.0
"""``prune``: a model and text go in, a pruned model and a report come out."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.methods.calibration import gather
from pyprune.methods.driver import Driver, InMemory, Progress, Silent
from pyprune.methods.journal import Journal, fingerprint, model_sha256
from pyprune.methods.plan import estimate, make_plan
from pyprune.methods.report import Clock, make_report
from pyprune.methods.request import resolve
from pyprune.models import Adapter, adapter_for
from pyprune.models.replay import quiet
from pyprune.patterns import Pattern
from pyprune.result import PruneResult


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
        Calibration sentences at most, drawn without replacement. Default 2560. For causal language models texts are
        joined and cut into sequences of ``max_length``, 128 of them.
    max_length : int, optional
        Tokens of a sentence at most. Default 128, for causal language models 2048.
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


def check_model(model: Any) -> Adapter:
    """The adapter of a model that can be pruned.

    Raises
    ------
    InputError
        It is none, of an unknown family, or not what that family computes.
    """
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


def to_float32(model: nn.Module) -> dict[str, torch.dtype]:
    """Compute in float32 from here on; the types there were, for :func:`restore_types`."""
    types = {name: tensor.dtype for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    model.float()
    return types


def restore_types(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Give every tensor the type that it had."""
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.dtype != types[name]:
            tensor.data = tensor.data.to(types[name])
