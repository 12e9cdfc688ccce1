# SPDX-License-Identifier: Apache-2.0
"""``train_prune(method="randomized")``: randomized masks from text and a sparsity to a result with a report."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyprune.errors import InputError
from pyprune.methods.driver import Progress, Silent
from pyprune.methods.journal import model_sha256
from pyprune.methods.randomized import LEVELS, Randomized, prune_randomized
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
from pyprune.methods.working_copy import check_model, restore_types, to_float32
from pyprune.result import PruneResult
from pyprune.tasks.loading import Examples
from pyprune.training import PUBLISHED, LogitsLoss, MaskDraw, Masks, PruningLoss
from pyprune.training.loop import Training
from pyprune.training.random_masks import RATIOS
from pyprune.training.rows import Rows

RANDOMIZED = "randomized"
LONG = Training(epochs=10, rate=5e-5, decay=0.0)
HELD_OUT = 0.1
_FASTER = 4.0  # the published rate of a candidate's short training, by that of the long one
_SCREENED = 256  # rows


def train_randomized(
    model: Any,
    data: Examples | Rows,
    *,
    tokenizer: Any = None,
    sparsity: float = 0.5,
    teacher: Any = None,
    training: Training | Mapping[str, Any] | None = None,
    max_length: int | None = None,
    losses: Mapping[str, float | None] | None = None,
    logits: LogitsLoss | None = None,
    held_out: Examples | Rows | float | None = None,
    options: Mapping[str, Any] | None = None,
    inplace: bool = False,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> PruneResult:
    """Prune a fine-tuned classifier level by level, each level within the best of several random masks.

    Parameters
    ----------
    model, data, tokenizer, teacher, max_length, logits, inplace, progress
        See :func:`pyprune.train_prune`; the model is fine-tuned, and usually the teacher too.
    sparsity : float
        Of the last level. Those before it are the published ones that are below.
    training : Training or mapping, optional
        Of the best mask of each level; default ten epochs at 5e-5.
    losses : mapping, optional
        Weights ``hard``, ``soft``, ``hidden``, ``attention``; None or missing: with a teacher 0, 1, 1, 1; without 1, 0,
        0, 0.
    held_out : Examples, Rows or float, optional
        By which masks are chosen; default 0.1 of ``data``, which is not trained on then.
    options : mapping, optional
        ``candidates`` (default 8), ``levels``, ``short_epochs`` (default 1), ``short_rate`` (default four times that of
        ``training``), ``draw`` (:class:`pyprune.training.MaskDraw`, or its kind), ``ratios``, ``pool`` (so many masks
        are drawn for each that is tried; the others go by reconstruction error. Default 1).
    folder : path, optional
        Where finished candidates and levels are kept.
    resume : bool
        Go on with what is there.
    clock : Clock, optional

    Returns
    -------
    PruneResult
        Its report has a ``levels``: sparsity, scores of the candidates, which was the best, and the score of what it
        became.

    Raises
    ------
    InputError
        Something asked for does not fit.
    NumericsError
        A loss is not finite.
    """
    clock = Clock() if clock is None else clock
    adapter = check_model(model)
    settings = settings_of(LONG, training)
    known = _options(options, settings, sparsity)
    place = None if folder is None else Path(folder).expanduser()
    _check_folder(place, resume=resume)
    rows, told = rows_of(data, model, tokenizer, max_length)
    part = HELD_OUT if held_out is None else held_out
    rows, held, held_told = held_out_rows(part, rows, model, tokenizer, max_length, settings.seed)
    assert held is not None
    check_teacher(model, teacher)
    weights: dict[str, Any] = _weights(losses, teacher)
    kind = PUBLISHED["randomized"] if logits is None else logits

    def loss(taught: nn.Module | None) -> PruningLoss:
        return PruningLoss(taught, **weights, logits=kind)

    given = model_sha256(getattr(model, "config", None), sorted(model.state_dict().items()))
    taught_by = None if teacher is None else model_sha256(teacher.config, sorted(teacher.state_dict().items()))
    work = model if inplace else copy.deepcopy(model)
    types = to_float32(work)
    screen = _batches(rows) if known["pool"] > 1 else []
    clock.ready()
    begin = clock.seconds({})["total"]
    with eager_attention([m for m in (work, teacher) if m is not None], wanted=bool(weights["attention"])):
        done = prune_randomized(
            work,
            rows,
            accuracy(held),
            teacher=teacher,
            levels=known["levels"],
            candidates=known["candidates"],
            draw=known["draw"],
            ratios=known["ratios"],
            short=known["short"],
            long=settings,
            loss=loss,
            screen=screen,
            pool=known["pool"],
            seed=settings.seed,
            folder=place,
            progress=Silent() if progress is None else progress,
        )
    pruned = _taken(work, done)
    restore_types(pruned, types)
    masks = Masks(done.masks).linears()
    trained = {"seconds": clock.seconds({})["total"] - begin, "levels": [asdict(level) for level in done.levels]}
    report = report_of(RANDOMIZED, pruned, adapter, masks, trained, clock, sha256=given) | {
        "settings": {
            "method": RANDOMIZED,
            "sparsity": sparsity,
            "training": asdict(settings),
            "loss": loss(teacher).settings(),
            **{name: known[name] for name in ("levels", "candidates", "ratios", "pool")},
            "draw": asdict(known["draw"]),
            "short": asdict(known["short"]),
        },
        "seed": settings.seed,
        "data": told | {"rows": len(rows), "sha256": rows.sha256},
        "held_out": held_told,
        "teacher": None if teacher is None else named(teacher, taught_by),
    }
    return PruneResult(pruned, masks, report, tokenizer)


def _options(given: Mapping[str, Any] | None, settings: Training, sparsity: float) -> dict[str, Any]:
    """Everything that may be chosen, with what it is if it was not."""
    options = dict(given or {})
    found = {
        "levels": tuple(options.pop("levels", levels_below(sparsity))),
        "candidates": options.pop("candidates", 8),
        "ratios": tuple(options.pop("ratios", RATIOS)),
        "pool": int(options.pop("pool", 1)),
    }
    draw: Any = options.pop("draw", MaskDraw())
    found["draw"] = draw if isinstance(draw, MaskDraw) else MaskDraw(draw)
    epochs, rate = options.pop("short_epochs", 1.0), options.pop("short_rate", _FASTER * settings.rate)
    found["short"] = replace(settings, epochs=epochs, rate=rate)
    if options:
        raise InputError(f"an option that {RANDOMIZED} does not know", seen=", ".join(options))
    if not found["levels"] or found["levels"][-1] != sparsity:
        raise InputError("the last level is the sparsity asked for", asked=str(sparsity), seen=str(found["levels"]))
    if found["pool"] < 1:
        raise InputError("a pool has at least one mask for each that is tried", seen=str(found["pool"]))
    return found


def levels_below(sparsity: float) -> tuple[float, ...]:
    """The published levels that are below a sparsity, and itself.

    >>> levels_below(0.9), levels_below(0.3)
    ((0.54, 0.83, 0.9), (0.3,))
    """
    return (*(level for level in LEVELS if level < sparsity), sparsity)


def _weights(given: Mapping[str, float | None] | None, teacher: Any) -> dict[str, float]:
    taught = 0.0 if teacher is None else 1.0
    found = {"hard": 1.0 - taught, "soft": taught, "hidden": taught, "attention": taught}
    return found | {name: float(value) for name, value in (given or {}).items() if value is not None}


def _check_folder(folder: Path | None, *, resume: bool) -> None:
    if folder is None or not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / "run.json").exists():
        raise InputError(f"{folder} is not empty and holds no run", hint="an empty or new folder")
    if not resume:
        raise InputError(
            f"{folder} holds a run that was stopped",
            hint="resume=True (--resume) to go on with it, or remove the folder",
        )


def _batches(rows: Rows) -> list[dict[str, Any]]:
    """The first rows, without labels, for reconstruction errors."""
    count = min(len(rows), _SCREENED)
    parts = [torch.arange(start, min(start + 32, count)) for start in range(0, count, 32)]
    return [rows.inputs(some) for some in parts]


def _taken(work: nn.Module, done: Randomized) -> nn.Module:
    """The weights that were found, in the model that was to be pruned."""
    work.load_state_dict(done.model.state_dict())
    return work.eval()
