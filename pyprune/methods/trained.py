# SPDX-License-Identifier: Apache-2.0
"""``train_prune``: methods that prune while the model is fine-tuned, most of them with a teacher."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from pyprune.errors import InputError
from pyprune.methods.driver import Progress, Silent
from pyprune.methods.journal import fingerprint, model_sha256
from pyprune.methods.randomized_entry import RANDOMIZED, train_randomized
from pyprune.methods.report import Clock
from pyprune.methods.train_parts import (
    accuracy,
    check_teacher,
    eager_attention,
    held_out_rows,
    named,
    report_of,
    rows_of,
    settings_of,
)
from pyprune.methods.train_recipes import TRAIN_RECIPES, TrainRecipe, few_steps, levels_to
from pyprune.methods.working_copy import check_model, restore_types, to_float32
from pyprune.result import PruneResult
from pyprune.structured import factorise
from pyprune.tasks.loading import Examples
from pyprune.training import LogitsLoss, PruningLoss, UnitPruning
from pyprune.training.choice import Choice
from pyprune.training.contrast import Contrast
from pyprune.training.loop import Checkpoints, Training, described, train
from pyprune.training.rows import Rows
from pyprune.training.schedules import steps_of


def train_prune(
    model: nn.Module,
    data: Examples | Rows,
    *,
    tokenizer: Any = None,
    method: str = "movement",
    sparsity: float = 0.5,
    teacher: nn.Module | None = None,
    training: Training | Mapping[str, Any] | None = None,
    max_length: int | None = None,
    hard: float | None = None,
    soft: float | None = None,
    hidden: float | None = None,
    attention: float | None = None,
    logits: LogitsLoss | None = None,
    contrast: Mapping[str, Any] | bool = False,
    held_out: Examples | Rows | float | None = None,
    options: Mapping[str, Any] | None = None,
    inplace: bool = False,
    checkpoints: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Prune a classifier, or a model that finds answers in passages, while it is fine-tuned.

    Rows are shuffled and dropout is drawn by seeds of their own, so that the same seed, machine and thread count give
    the same bits, also if the run was stopped and went on from a checkpoint. No global random state is touched.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        For sequence classification or question answering, of a family that :func:`pyprune.prune` knows; pre-trained or
        fine-tuned. Not changed unless ``inplace``.
    data : Examples or Rows
        Labelled text, or questions with passages and answers (:func:`pyprune.tasks.load_texts`); or token ids.
    tokenizer : optional
        Of transformers; needed for text.
    method : str
        ``"imp"``, ``"movement"`` (default), ``"soft-movement"``, ``"smp"``, ``"grain"``, ``"first-order"`` or
        ``"randomized"``.
    sparsity : float
        Fraction of zeros in each linear of the blocks at the end; of ``"grain"`` that of the parameters of all neurons
        and channels; of ``"first-order"`` that of the heads, and of the neurons.
    teacher : optional
        Fine-tuned for the same labels. Without one labels alone teach.
    training : Training or mapping, optional
        Settings, or those that are to differ from the method's.
    max_length : int, optional
        Tokens of a row at most; default 128, of a question with its passage 384.
    hard, soft, hidden, attention : float, optional
        Weights of the losses (:class:`pyprune.training.PruningLoss`). Default: the method's; of labels alone 1.
    logits : LogitsLoss, optional
        Between predictions of student and teacher.
    contrast : bool or mapping
        CAP's terms on top of the method, with settings of :class:`pyprune.training.Contrast`.
    held_out : Examples, Rows or float, optional
        Labelled text by which the best of the last weights is chosen, ten times an epoch once the sparsity is reached;
        or a part of ``data`` that is set aside for it. None: the last weights are kept. ``"randomized"`` chooses its
        masks by it (default 0.1).
    options : mapping, optional
        Of the method: ``warm_up`` and ``cool_down`` (parts of the run), ``every`` (steps between masks; of ``"grain"``
        between scores), ``scope``; of movement's kinds ``rate`` (of
        scores), ``soft`` and ``start`` (``"size"``: scores begin at the sizes of weights, for short runs); of
        ``"grain"`` ``unit`` (``"heads"``: whole heads), ``separate``, ``regularisation``, ``decay``,
        ``shrink`` (steps get faster as units go; default), ``embedding_rank`` (word embeddings become a product
        of that rank before the training, :func:`pyprune.structured.factorise`; the paper's 192; default: they stay); of
        ``"first-order"`` ``levels`` (rising sparsities, default tenths), ``shrink`` and ``embedding_rank``; of
        ``"randomized"`` see :func:`pyprune.methods.randomized_entry.train_randomized`.
    inplace : bool
        Prune the given model itself; a run that fails leaves it partly pruned.
    checkpoints : path, optional
        Folder in which the run is kept every two minutes, so that it can go on.
    resume : bool
        Go on with what is there; from the beginning if there is nothing.
    checkpoint_every : int, optional
        Steps between checkpoints, in place of the clock.
    progress : optional
        Object with ``start(total, description)``, ``advance(description)``, ``note(text)``, ``finish()``.

    Returns
    -------
    PruneResult

    Raises
    ------
    InputError
        Something asked for does not fit: family, head, data, teacher, settings, checkpoint.
    NumericsError
        Weights or losses are not finite.

    Examples
    --------
    >>> examples = pyprune.tasks.load_texts("train.tsv")  # doctest: +SKIP
    >>> result = train_prune(model, examples, tokenizer=tokenizer, teacher=teacher, sparsity=0.9)  # doctest: +SKIP
    >>> result.save("pruned")  # doctest: +SKIP
    """
    clock = Clock()
    progress = Silent() if progress is None else progress
    if resume and checkpoints is None:
        raise InputError("resume needs checkpoints", hint="checkpoints=DIR, the folder of the run that was stopped")
    if method == RANDOMIZED:
        if contrast or checkpoint_every is not None:
            raise InputError("randomized masks know no contrast, and are kept candidate by candidate")
        return train_randomized(
            model,
            data,
            tokenizer=tokenizer,
            sparsity=sparsity,
            teacher=teacher,
            training=training,
            max_length=max_length,
            losses={"hard": hard, "soft": soft, "hidden": hidden, "attention": attention},
            logits=logits,
            held_out=held_out,
            options=options,
            inplace=inplace,
            folder=checkpoints,
            resume=resume,
            progress=progress,
            clock=clock,
        )
    recipe = _recipe(method)
    options = dict(options or {})
    default = recipe.training
    if recipe.epochs_each:
        options["levels"] = levels_to(sparsity, options.get("levels"))
        rounds = len(options["levels"])
        default = replace(default, epochs=recipe.epochs_each * rounds, rounds=rounds)
    settings = settings_of(default, training)
    adapter = check_model(model)
    rows, told = rows_of(data, model, tokenizer, max_length)
    rows, held, held_told = held_out_rows(held_out, rows, model, tokenizer, max_length, settings.seed)
    check_teacher(model, teacher)
    if teacher is None:
        hard, soft, hidden = (
            default if value is None else value for value, default in ((hard, 1.0), (soft, 0.0), (hidden, 0.0))
        )
    given = model_sha256(getattr(model, "config", None), sorted(model.state_dict().items()))
    taught_by = None if teacher is None else model_sha256(teacher.config, sorted(teacher.state_dict().items()))
    work = model if inplace else copy.deepcopy(model)
    rank = options.pop("embedding_rank", None) if recipe.units else None
    embeddings = None if rank is None else factorise(work, rank)
    types = to_float32(work)
    folder = None if checkpoints is None else Path(checkpoints).expanduser()
    with _banks(folder, wanted=bool(contrast)) as banks:
        loss = PruningLoss(
            teacher,
            hard=recipe.hard if hard is None else hard,
            soft=recipe.soft if soft is None else soft,
            hidden=recipe.hidden if hidden is None else hidden,
            attention=attention or 0.0,
            logits=recipe.logits if logits is None else logits,
            maps=recipe.maps,
            contrast=None if banks is None else _contrast(banks, rows, teacher, settings, recipe.contrast, contrast),
        )
        try:
            more = {"rows": rows, "settings": settings} if recipe.epochs_each else {}
            pruner = recipe.pruner(sparsity, loss, **more, **options)
        except TypeError as error:
            raise InputError(f"an option that {method} does not know", seen=str(error)) from None
        an_epoch = steps_of(1, len(rows), settings.batch_size, settings.accumulate)
        warning = few_steps(pruner, round(settings.epochs * an_epoch))
        if warning is not None:
            progress.note(warning)
        choice = None if held is None else Choice(accuracy(held), every=max(an_epoch // 10, 1))
        chosen = described(settings, loss, pruner, choice) | {"method": method, "sparsity": sparsity}
        if held_told is not None:
            chosen["held_out"] = held_told["sha256"]
        if rank is not None:
            chosen["embedding_rank"] = rank
        kept = None
        if folder is not None:
            device = str(next(work.parameters()).device.type)
            whole = fingerprint(given, rows.sha256, {**chosen, "teacher": taught_by}, device)
            kept = Checkpoints(folder, resume=resume, settings=whole, every=checkpoint_every)
        clock.ready()
        with eager_attention([m for m in (work, teacher) if m is not None], wanted=bool(attention)):
            done = train(work, rows, loss, pruner, settings, choice=choice, checkpoints=kept, progress=progress)
    pruner.check()
    restore_types(work, types)
    masks = pruner.linears()
    trained = asdict(done) | ({} if choice is None else {"kept": choice.step, "scores": choice.scores})
    report = report_of(recipe.name, work, adapter, masks, trained, clock, sha256=given, embeddings=embeddings) | {
        "settings": chosen,
        "seed": settings.seed,
        "notes": [] if warning is None else [warning],
        "data": told | {"rows": len(rows), "sha256": rows.sha256},
        "held_out": held_told,
        "teacher": None if teacher is None else named(teacher, taught_by),
    }
    return PruneResult(
        work, masks, report, tokenizer, units=pruner.units() if isinstance(pruner, UnitPruning) else None
    )


def _recipe(method: str) -> TrainRecipe:
    if method not in TRAIN_RECIPES:
        raise InputError(f"unknown method {method!r}", hint=f"one of {', '.join((*TRAIN_RECIPES, RANDOMIZED))}")
    return TRAIN_RECIPES[method]


@contextmanager
def _banks(checkpoints: Path | None, *, wanted: bool) -> Iterator[Path | None]:
    """A folder for the banks of a contrast: beside the checkpoints, until the training is done."""
    if not wanted:
        yield None
    elif checkpoints is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        beside = checkpoints.with_name(f"{checkpoints.name}.banks")
        yield beside
        shutil.rmtree(beside, ignore_errors=True)


def _contrast(
    banks: Path,
    rows: Rows,
    teacher: Any,
    settings: Training,
    usual: Mapping[str, Any],
    given: Mapping[str, Any] | bool,
) -> Contrast:
    options = {**usual, **({} if isinstance(given, bool) else given)}
    options = {"seed": settings.seed, "keep": max(int(settings.epochs), 1), **options}
    if rows.labels is None and (isinstance(given, bool) or "supervised" not in given):
        options["supervised"] = 0.0  # as published for answers: there are no classes that rows share
    if teacher is None:
        options.setdefault("terms", ("pretrained", "snapshots"))
    try:
        return Contrast(banks, rows, teacher=teacher, **options)
    except TypeError as error:
        raise InputError("a setting that a contrast does not know", seen=str(error)) from None
