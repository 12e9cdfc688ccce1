# SPDX-License-Identifier: Apache-2.0
"""Randomized masks: at each level of sparsity many masks are drawn, tried by a short training, and the best is trained.

Li et al., "Breaking through deterministic barriers" (Findings of EMNLP 2023): iterative pruning by size with a teacher,
where the mask of each level is the best of several in place of that of the largest weights. "Best" is what ``score``
says of the model after the short training, on text that neither trains nor is reported. One candidate of
``MaskDraw("magnitude")`` is the deterministic method (IMP) with the same schedule.

Of our own: with calibration batches more masks are drawn, and those whose outputs are nearest to the dense ones are
tried.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.files import write_atomically
from pyprune.methods.driver import Progress, Silent
from pyprune.methods.journal import model_sha256
from pyprune.training.distillation import PruningLoss
from pyprune.training.loop import Checkpoints, Training, train
from pyprune.training.masks import Masks, parameters_of, prunable
from pyprune.training.pruning import WeightPruning
from pyprune.training.random_masks import RATIOS, MaskDraw, candidate_masks
from pyprune.training.rows import Rows
from pyprune.training.schedules import Levels
from pyprune.training.screening import input_grams, reconstruction_error

LEVELS = (0.54, 0.83, 0.92, 0.9375)
_LEVEL_SEED = 1_000_003  # so far apart are the seeds of levels


class GivenMasks(WeightPruning):
    """Masks that were chosen before, held through a training.

    Parameters
    ----------
    masks : mapping of str to Tensor of bool
        By parameter name.
    """

    name = "given"

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        sparsity = Masks(masks).sparsity
        super().__init__(Levels((sparsity,), (0,)), names=list(masks))
        self.chosen_masks = dict(masks)

    def _scores(self) -> dict[str, Tensor]:
        return {}

    def chosen(self, scores: Mapping[str, Tensor], sparsity: float) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Those that were given."""
        return self.chosen_masks, {name: int(mask.sum()) for name, mask in self.chosen_masks.items()}


@dataclass
class Level:
    """What was tried at one sparsity.

    Attributes
    ----------
    sparsity : float
    scores : list of float
        Of the candidates after the short training; none if there was only one.
    best : int
    score : float
        After the long one.
    """

    sparsity: float
    scores: list[float]
    best: int
    score: float


@dataclass
class Randomized:
    """A model pruned by randomized masks, with what was tried on the way."""

    model: nn.Module
    masks: dict[str, Tensor]
    levels: list[Level] = field(default_factory=list)


def prune_randomized(
    model: nn.Module,
    rows: Rows,
    score: Callable[[nn.Module], float],
    *,
    teacher: nn.Module | None,
    levels: Sequence[float] = LEVELS,
    candidates: int | Sequence[int] = 8,
    draw: MaskDraw | None = None,
    ratios: tuple[float, ...] = RATIOS,
    short: Training | None = None,
    long: Training | None = None,
    loss: Callable[[nn.Module | None], PruningLoss] | None = None,
    screen: Iterable[Mapping[str, Tensor]] = (),
    pool: int = 4,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    watch: Callable[[Randomized], None] | None = None,
    progress: Progress | None = None,
) -> Randomized:
    """Prune a fine-tuned classifier level by level.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Fine-tuned, float32. Not changed.
    rows : Rows
        To train on.
    score : callable
        Higher is better; of a model in evaluation mode, on text that is neither in ``rows`` nor reported.
    teacher : nn.Module or None
        Fine-tuned for the same labels; usually the model itself. None: labels teach.
    levels : sequence of float
        Sparsities of every matrix, rising.
    candidates : int or sequence of int
        Masks that are tried at each level; with one nothing is tried.
    draw : MaskDraw, optional
        Default: type 2 of the released code.
    ratios : tuple of float
        Of draws, in turns over candidates.
    short, long : Training, optional
        Of a candidate, and of a level's best one. Default: one epoch at 2e-4 and ten at 5e-5.
    loss : callable, optional
        Makes the loss of a training, of the teacher. Default: predictions, hidden states and attentions, or labels.
    screen : iterable of mappings
        Batches for a choice by reconstruction, before anything is trained; default none.
    pool : int
        With ``screen`` so many masks are drawn for each that is tried.
    seed : int
        Of masks; short and long have their own.
    folder : path, optional
        Where finished candidates and levels are kept, and every two minutes the long training under way; a run with the
        same settings goes on from there.
    watch : callable, optional
        Is shown what there is at the end of each level, also of those that were finished before.
    progress : optional

    Returns
    -------
    Randomized

    Raises
    ------
    InputError
        Levels do not rise, settings do not fit, or the folder holds a run with others.
    NumericsError
        A loss is not finite.

    Examples
    --------
    >>> done = prune_randomized(model, rows, accuracy, teacher=model, folder="run")  # doctest: +SKIP
    >>> [(level.sparsity, level.score) for level in done.levels]  # doctest: +SKIP
    """
    counts = [candidates] * len(levels) if isinstance(candidates, int) else list(candidates)
    if not levels or list(levels) != sorted(set(levels)) or not 0.0 < levels[0] <= levels[-1] < 1.0:
        raise InputError("levels rise from above 0 to below 1", seen=str(list(levels)))
    if len(counts) != len(levels) or min(counts) < 1:
        raise InputError("every level has at least one candidate", seen=str(counts))
    draw = MaskDraw() if draw is None else draw
    short = Training(epochs=1, rate=2e-4, decay=0.0) if short is None else short
    long = Training(epochs=10, rate=5e-5, decay=0.0) if long is None else long
    done = Randomized(copy.deepcopy(model), {})
    if model is teacher:  # whose weights a loss has frozen, or is about to
        done.model.requires_grad_(True)
    make, batches = (_default_loss if loss is None else loss), list(screen)
    chosen = {
        "model": model_sha256(getattr(model, "config", None), sorted(model.state_dict().items())),
        "rows": rows.sha256,
        "levels": list(levels),
        "candidates": counts,
        "draw": asdict(draw),
        "ratios": list(ratios),
        "short": asdict(short),
        "long": asdict(long),
        "seed": seed,
        "teacher": None if teacher is None else model_sha256(None, sorted(teacher.state_dict().items())),
        "loss": make(teacher).settings(),
        "pool": pool if batches else 0,
    }
    kept = _Folder(None if folder is None else Path(folder).expanduser(), chosen)
    progress = Silent() if progress is None else progress
    for index, (sparsity, count) in enumerate(zip(levels, counts, strict=True)):
        if kept.level(index) is not None:
            _take_up(done, kept, index)
            if watch is not None:
                watch(done)
            continue
        weights = {name: p.detach() for name, p in parameters_of(done.model, prunable(done.model)).items()}
        drawn = candidate_masks(
            weights,
            sparsity,
            count * pool if batches else count,
            draw,
            ratios=ratios,
            among=done.masks or None,
            seed=seed + _LEVEL_SEED * index,
        )
        tried = _nearest(done.model, weights, drawn, batches, count) if batches else drawn
        scores: list[float] = []
        best: dict[str, Tensor] = {}
        for candidate, masks in enumerate(tried):
            value = 0.0 if count == 1 else kept.score(index, candidate)
            if value is None:
                progress.note(f"{100 * sparsity:g} %, mask {candidate + 1} of {count}")
                value = float(score(_trained(done.model, masks, rows, make(teacher), short, progress)))
                if not math.isfinite(value):
                    raise InputError("the score of a candidate is not a finite number", seen=str(value))
                kept.note(index, candidate, value)
            if not scores or value > max(scores):
                best = masks
            scores.append(value)
        progress.note(f"{100 * sparsity:g} %, the best of {count}")
        settings = replace(long, seed=long.seed + index)
        checkpoints = kept.checkpoints(index)
        done.model = _trained(done.model, best, rows, make(teacher), settings, progress, checkpoints)
        done.masks = best
        winner = max(range(count), key=scores.__getitem__)
        done.levels.append(Level(sparsity, scores if count > 1 else [], winner, float(score(done.model))))
        kept.finish(index, done)
        if watch is not None:
            watch(done)
    return done


def _trained(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    rows: Rows,
    loss: PruningLoss,
    settings: Training,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> nn.Module:
    """A copy, trained within masks."""
    work = copy.deepcopy(model)
    pruner = GivenMasks(masks)
    train(work, rows, loss, pruner, settings, checkpoints=checkpoints, progress=progress)
    pruner.check()
    return work


def _nearest(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    drawn: Iterable[dict[str, Tensor]],
    batches: list[Mapping[str, Tensor]],
    count: int,
) -> list[dict[str, Tensor]]:
    """Those masks whose outputs are nearest to those without them."""
    grams = input_grams(model, weights, batches)
    found: list[tuple[float, int, dict[str, Tensor]]] = []
    for number, masks in enumerate(drawn):
        found = sorted([*found, (reconstruction_error(weights, masks, grams), number, masks)], key=lambda one: one[:2])
        del found[count:]
    return [masks for _, _, masks in found]


def _default_loss(teacher: nn.Module | None) -> PruningLoss:
    if teacher is None:
        return PruningLoss(None, hard=1.0, soft=0.0)
    from pyprune.training.losses import PUBLISHED

    return PruningLoss(teacher, hard=0.0, soft=1.0, hidden=1.0, attention=1.0, logits=PUBLISHED["randomized"])


class _Folder:
    """Scores of candidates and models of levels, each written whole or not at all."""

    def __init__(self, folder: Path | None, chosen: Mapping[str, Any]) -> None:
        self._folder = folder
        self._notes: dict[str, Any] = {"settings": json.loads(json.dumps(chosen)), "scores": {}, "levels": {}}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            self._notes = self._read(folder)

    def _read(self, folder: Path) -> dict[str, Any]:
        """What an earlier process noted; scores and levels are believed only as far as they are such."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            settings = dict(found["settings"])
            scores = {str(key): float(value) for key, value in found["scores"].items()}
            levels = {str(key): asdict(Level(**value)) for key, value in found["levels"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{self._file} is damaged",
                seen=f"{type(error).__name__}: {error}"[:200],
                hint=f"remove {folder} and start anew",
            ) from error
        known = self._notes["settings"]
        wrong = [name for name in sorted({*known, *settings}) if settings.get(name) != known.get(name)]
        if wrong:
            raise InputError(f"{folder} holds a run with other settings", seen=", ".join(wrong), hint="another folder")
        return {"settings": settings, "scores": scores, "levels": levels}

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return self._folder / "run.json"

    def _write(self) -> None:
        if self._folder is not None:
            write_atomically(self._file, json.dumps(self._notes, indent=1).encode(), "the record of a run")

    def score(self, level: int, candidate: int) -> float | None:
        value: float | None = self._notes["scores"].get(f"{level}/{candidate}")
        return value

    def note(self, level: int, candidate: int, value: float) -> None:
        self._notes["scores"][f"{level}/{candidate}"] = value
        self._write()

    def level(self, index: int) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._notes["levels"].get(str(index))
        return found

    def tensors(self, index: int) -> dict[str, Tensor]:
        assert self._folder is not None
        path = self._folder / f"level-{index}.safetensors"
        try:
            found: dict[str, Tensor] = load_file(path)
        except Exception as error:  # the library raises its own types
            raise InputError(
                f"{path} is missing or damaged",
                seen=str(error)[:200],
                hint=f"remove {self._folder} and start anew",
            ) from error
        return found

    def _under_way(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"level-{index}.training"

    def checkpoints(self, index: int) -> Checkpoints | None:
        """Of the long training of a level, which goes on with what is there."""
        if self._folder is None:
            return None
        settings = {"run": self._notes["settings"], "level": index}
        return Checkpoints(self._under_way(index), resume=True, settings=settings)

    def finish(self, index: int, done: Randomized) -> None:
        if self._folder is None:
            return
        bits = {f"mask/{name}": mask.to(torch.uint8) for name, mask in done.masks.items()}
        weights = {f"model/{name}": value.clone() for name, value in done.model.state_dict().items()}
        write_atomically(self._folder / f"level-{index}.safetensors", save(weights | bits), "the model of a level")
        self._notes["levels"][str(index)] = asdict(done.levels[-1])
        self._write()
        shutil.rmtree(self._under_way(index), ignore_errors=True)


def _take_up(done: Randomized, kept: _Folder, index: int) -> None:
    """A level that was finished before."""
    tensors = kept.tensors(index)
    weights = {n.removeprefix("model/"): value for n, value in tensors.items() if n.startswith("model/")}
    try:
        done.model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"the model of level {index} does not fit", seen=str(error)[:200], hint="start anew"
        ) from error
    done.masks = {n.removeprefix("mask/"): value.bool() for n, value in tensors.items() if n.startswith("mask/")}
    found = kept.level(index)
    assert found is not None
    done.levels.append(Level(**found))
