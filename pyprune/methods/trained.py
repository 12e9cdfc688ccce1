# SPDX-License-Identifier: Apache-2.0
"""``train_prune``: methods that prune while the model is fine-tuned, most of them with a teacher."""

from __future__ import annotations

import copy
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.methods import accounting
from pyprune.methods.driver import Progress, Silent
from pyprune.methods.journal import fingerprint, model_sha256
from pyprune.methods.report import Clock, circumstances
from pyprune.methods.working_copy import check_model, restore_types, to_float32
from pyprune.models import Adapter
from pyprune.result import PruneResult
from pyprune.tasks.evaluate import classes_of, longest_input
from pyprune.tasks.labels import gold_classes
from pyprune.tasks.loading import Examples
from pyprune.training import PUBLISHED, LogitsLoss, MagnitudePruning, MovementPruning, PruningLoss, Ramp, UnitPruning
from pyprune.training.contrast import Contrast
from pyprune.training.loop import Checkpoints, Trained, Training, described, train
from pyprune.training.pruning import WeightPruning
from pyprune.training.rows import Rows

LONGEST = 128  # tokens of a row, unless more are asked for


@dataclass(frozen=True)
class TrainRecipe:
    """What distinguishes one of these methods.

    Attributes
    ----------
    name, line : str
        ``line``: for a person, in a few words.
    pruner : callable
        Makes the pruner of a sparsity, the loss and options.
    hard, soft, hidden : float
        Weights of the losses, where there is a teacher.
    maps : bool
        Learned maps between hidden states.
    logits : LogitsLoss
    training : Training
        Defaults.
    """

    name: str
    line: str
    pruner: Callable[..., WeightPruning | UnitPruning]
    hard: float = 0.1
    soft: float = 0.9
    hidden: float = 0.0
    maps: bool = False
    logits: LogitsLoss = PUBLISHED["movement"]
    training: Training = field(default_factory=Training)


def _imp(sparsity: float, loss: PruningLoss, **options: Any) -> WeightPruning:
    return MagnitudePruning(Ramp(sparsity, **_ramp(options)), **options)


def _movement(sparsity: float, loss: PruningLoss, **options: Any) -> WeightPruning:
    return MovementPruning(Ramp(sparsity, **_ramp(options)), **options)


def _soft_movement(sparsity: float, loss: PruningLoss, **options: Any) -> WeightPruning:
    options.setdefault("threshold", 0.1)
    ramp = Ramp(options.pop("threshold"), **_ramp(options))
    # How much goes follows from the penalty; there is no formula from the one to the other.
    options.setdefault("soft", 400.0 * sparsity)
    return MovementPruning(ramp, **options)


def _smp(sparsity: float, loss: PruningLoss, **options: Any) -> WeightPruning:
    return _movement(sparsity, loss, **{"frozen": True, "rate": 2e-2, **options})


def _grain(sparsity: float, loss: PruningLoss, *, separate: bool = True, **options: Any) -> UnitPruning:
    ramp = Ramp(sparsity, **{"warm_up": 0.2, "cool_down": 0.6, **_ramp(options)})
    return UnitPruning(ramp, loss=loss if separate else None, **options)


def _ramp(options: dict[str, Any]) -> dict[str, Any]:
    """Take the schedule's options out of all options."""
    return {name: options.pop(name) for name in ("warm_up", "cool_down", "initial", "every") if name in options}


TRAIN_RECIPES = {
    recipe.name: recipe
    for recipe in (
        TrainRecipe("imp", "the smallest weights go on a cubic schedule", _imp),
        TrainRecipe("movement", "weights go that training moves towards zero (Sanh et al. 2020)", _movement),
        TrainRecipe(
            "soft-movement", "the same by a threshold and a penalty; how much goes is up to them", _soft_movement
        ),
        TrainRecipe("smp", "only scores are learned, weights keep their values (Jiang et al. 2023)", _smp),
        TrainRecipe(
            "grain",
            "neurons and channels of heads go by their gates' gradients (Yang et al. 2023)",
            _grain,
            hard=0.0,
            soft=1.0,
            hidden=1.0,
            maps=True,
            logits=PUBLISHED["grain"],
            training=Training(epochs=20),
        ),
    )
}


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
    attention: float = 0.0,
    logits: LogitsLoss | None = None,
    contrast: Mapping[str, Any] | bool = False,
    options: Mapping[str, Any] | None = None,
    inplace: bool = False,
    checkpoints: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Prune a classifier while it is fine-tuned.

    Rows are shuffled and dropout is drawn by seeds of their own, so that the same seed, machine and thread count give
    the same bits, also if the run was stopped and went on from a checkpoint. No global random state is touched.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A sequence classifier of a family that :func:`pyprune.prune` knows; pre-trained or fine-tuned. Not changed
        unless ``inplace``.
    data : Examples or Rows
        Labelled text (:func:`pyprune.tasks.load_texts`), or token ids.
    tokenizer : optional
        Of transformers; needed for text.
    method : str
        ``"imp"``, ``"movement"`` (default), ``"soft-movement"``, ``"smp"`` or ``"grain"``.
    sparsity : float
        Fraction of zeros in each linear of the blocks at the end; of ``"grain"`` that of the parameters of all neurons
        and channels.
    teacher : optional
        Fine-tuned for the same labels. Without one labels alone teach.
    training : Training or mapping, optional
        Settings, or those that are to differ from the method's.
    max_length : int, optional
        Tokens of a row at most; default 128.
    hard, soft, hidden, attention : float, optional
        Weights of the losses (:class:`pyprune.training.PruningLoss`). Default: the method's; of labels alone 1.
    logits : LogitsLoss, optional
        Between predictions of student and teacher.
    contrast : bool or mapping
        CAP's terms on top of the method, with settings of :class:`pyprune.training.Contrast`.
    options : mapping, optional
        Of the method: ``warm_up`` and ``cool_down`` (parts of the run), ``scope``, ``rate`` (of scores), ``soft``; of
        ``"grain"`` ``unit`` (``"heads"``: whole heads), ``separate``, ``regularisation``, ``decay``.
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
    recipe = _recipe(method)
    settings = _settings(recipe, training)
    adapter = check_model(model)
    rows, told = _rows(data, model, tokenizer, max_length)
    _check_teacher(model, teacher)
    if teacher is None:
        hard, soft, hidden = (
            default if value is None else value for value, default in ((hard, 1.0), (soft, 0.0), (hidden, 0.0))
        )
    given = model_sha256(getattr(model, "config", None), sorted(model.state_dict().items()))
    taught_by = None if teacher is None else model_sha256(teacher.config, sorted(teacher.state_dict().items()))
    work = model if inplace else copy.deepcopy(model)
    types = to_float32(work)
    folder = None if checkpoints is None else Path(checkpoints).expanduser()
    with _banks(folder, wanted=bool(contrast)) as banks:
        loss = PruningLoss(
            teacher,
            hard=recipe.hard if hard is None else hard,
            soft=recipe.soft if soft is None else soft,
            hidden=recipe.hidden if hidden is None else hidden,
            attention=attention,
            logits=recipe.logits if logits is None else logits,
            maps=recipe.maps,
            contrast=None if banks is None else _contrast(banks, rows, teacher, settings, contrast),
        )
        try:
            pruner = recipe.pruner(sparsity, loss, **dict(options or {}))
        except TypeError as error:
            raise InputError(f"an option that {method} does not know", seen=str(error)) from None
        chosen = described(settings, loss, pruner) | {"method": method, "sparsity": sparsity}
        kept = None
        if folder is not None:
            device = str(next(work.parameters()).device.type)
            whole = fingerprint(given, rows.sha256, {**chosen, "teacher": taught_by}, device)
            kept = Checkpoints(folder, resume=resume, settings=whole, every=checkpoint_every)
        clock.ready()
        done = train(work, rows, loss, pruner, settings, checkpoints=kept, progress=progress)
    pruner.check()
    restore_types(work, types)
    masks = pruner.linears()
    report = _report(recipe, work, adapter, masks, done, clock, sha256=given) | {
        "settings": chosen,
        "seed": settings.seed,
        "data": told | {"rows": len(rows), "sha256": rows.sha256},
        "teacher": None if teacher is None else _named(teacher, taught_by),
    }
    return PruneResult(
        work, masks, report, tokenizer, units=pruner.units() if isinstance(pruner, UnitPruning) else None
    )


def _recipe(method: str) -> TrainRecipe:
    if method not in TRAIN_RECIPES:
        raise InputError(f"unknown method {method!r}", hint=f"one of {', '.join(TRAIN_RECIPES)}")
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


def _contrast(banks: Path, rows: Rows, teacher: Any, settings: Training, given: Mapping[str, Any] | bool) -> Contrast:
    options = {} if isinstance(given, bool) else dict(given)
    options = {"seed": settings.seed, "keep": max(int(settings.epochs), 1), **options}
    if teacher is None:
        options.setdefault("terms", ("pretrained", "snapshots"))
    try:
        return Contrast(banks, rows, teacher=teacher, **options)
    except TypeError as error:
        raise InputError("a setting that a contrast does not know", seen=str(error)) from None


def _check_teacher(model: Any, teacher: Any) -> None:
    if teacher is None:
        return
    for name in ("vocab_size", "num_labels"):
        ours, theirs = (getattr(m.config, name, None) for m in (model, teacher))
        if ours != theirs:
            raise InputError(
                "the teacher does not fit the model",
                seen=f"{name} {theirs} of the teacher, {ours} of the model",
                hint="a teacher with the same tokenizer, fine-tuned for the same labels",
            )


def _settings(recipe: TrainRecipe, given: Training | Mapping[str, Any] | None) -> Training:
    if isinstance(given, Training):
        return given
    try:
        return replace(recipe.training, **dict(given or {}))
    except TypeError as error:
        raise InputError("a setting that a training does not know", seen=str(error)) from None


def _rows(data: Any, model: Any, tokenizer: Any, max_length: int | None) -> tuple[Rows, dict[str, Any]]:
    if isinstance(data, Rows):
        return data, {}
    if not isinstance(data, Examples):
        raise InputError(
            "training needs labelled text", seen=type(data).__name__, hint="pyprune.tasks.load_texts(path), or Rows"
        )
    if tokenizer is None:
        raise InputError("text needs a tokenizer", hint="tokenizer=AutoTokenizer.from_pretrained(path)")
    labels = gold_classes(data, model.config, classes_of(model))
    limit = longest_input(model, tokenizer, None)
    length = min(limit, LONGEST) if max_length is None else longest_input(model, tokenizer, max_length)
    pairs = None if data.pairs is None else list(data.pairs)
    output = tokenizer(list(data.texts), pairs, truncation=True, max_length=length, padding=False)
    accepted = set(inspect.signature(model.forward).parameters)  # DistilBERT takes no token_type_ids
    names = [name for name in output if name in accepted]
    encoded = [{name: output[name][row] for name in names} for row in range(len(data))]
    told = {"source": data.source, "source_sha256": data.sha256, "max_length": length}
    return Rows(encoded, labels, {"input_ids": int(tokenizer.pad_token_id)}), told


def _named(model: Any, sha256: str | None) -> dict[str, Any]:
    return {"name": str(getattr(model.config, "_name_or_path", "") or ""), "sha256": sha256}


def _report(
    recipe: TrainRecipe,
    model: Any,
    adapter: Adapter,
    masks: Mapping[str, Tensor],
    done: Trained,
    clock: Clock,
    *,
    sha256: str,
) -> dict[str, Any]:
    device = next(model.parameters()).device
    layers = [
        {
            "name": name,
            "rows": mask.shape[0],
            "cols": mask.shape[1],
            "kept": int(mask.sum()),
            "sparsity": 1.0 - int(mask.sum()) / mask.numel(),
        }
        for name, mask in masks.items()
    ]
    removed = sum(int((~mask).sum()) for mask in masks.values())
    counts = accounting.count(model, adapter, removed, _units(model, adapter, masks), 0.0)
    del counts["encoder_macs"]  # there is no one length
    return {
        "method": recipe.name,
        **circumstances(model, adapter, sha256=sha256, device=device),
        "layers": layers,
        "sparsity": {name: entry["removed"] / entry["total"] for name, entry in counts.items()},
        "counts": counts,
        "training": {"steps": done.steps, "resumed": done.resumed, "losses": done.losses},
        "seconds": clock.seconds({"training": done.seconds}),
        "memory": clock.memory(device),
        "notes": [],
    }


def _units(model: Any, adapter: Adapter, masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Heads and neurons that nothing reads any more."""
    found = {"removed": 0, "total": 0}
    for index, block in enumerate(adapter.blocks(model)):
        prefix = adapter.block_name(model, index)
        own = {name: masks[f"{prefix}.{name}"] for name in adapter.linears(block)}
        for key, count in accounting.units(model, adapter, own).items():
            found[key] += count
    return found
