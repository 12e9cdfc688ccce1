# SPDX-License-Identifier: Apache-2.0
"""Averages of fine-tuned checkpoints, chosen greedily on held-out data: the robust dense start of AKR.

Li et al., EMNLP 2023, Algorithm 3, after Wortsman et al., ICML 2022 (arXiv 2203.05482): sorted by score, best first,
checkpoint ``i`` joins the chosen ones ``S`` if ``score(mean(S + {i})) >= score(mean(S))``. The result is the uniform
mean of ``S``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyprune.errors import InputError, NumericsError
from pyprune.files import SOUP, whole_folder
from pyprune.methods import accounting
from pyprune.methods.driver import Progress
from pyprune.methods.journal import model_sha256
from pyprune.methods.members import Member, mean, notes_on, open_members, stored_dtype
from pyprune.models.weights import ShardWriter, Spec
from pyprune.sparse.storage import stored_tensors

Score = Callable[[Any], float]


@dataclass(frozen=True)
class Soup:
    """An average of checkpoints.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        In float32, in evaluation mode, with the weights that :meth:`save` writes.
    report : dict
        JSON-able, what ``soup.json`` holds. ``mode`` ("greedy" or "uniform"); ``members`` in the order given:
        ``path``, ``sha256`` (of the weights), ``score`` (its own; null where there is none), ``used``; ``steps`` in
        the order tried: ``model``, ``score`` (of the average with it), ``kept``; ``score`` (of the result);
        ``selection`` (what was said of the score), ``pyprune``, ``versions``, ``seconds``, ``notes``.
    """

    model: Any
    report: dict[str, Any]
    _used: tuple[Member, ...] = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a folder that transformers loads, with the tokenizer of the first member that has one.

        Tensors go from the members' files to the new one, one at a time. The folder appears whole, and replaces an
        earlier one of pyprune only then.

        Raises
        ------
        InputError
            The path holds something else, is a member's own folder, or the disk is full.
        """
        target = Path(path).expanduser().absolute()
        if any(target.resolve() == Path(member["path"]).expanduser().resolve() for member in self.report["members"]):
            raise InputError(f"{path} is the folder of a member", hint="another folder")
        likes = stored_tensors(self.model)
        specs = {name: Spec(stored_dtype(self._used, name, like), tuple(like.shape)) for name, like in likes.items()}
        with whole_folder(target, sum(spec.bytes for spec in specs.values())) as part:
            with ShardWriter(part, specs) as weights:
                for name, like in likes.items():
                    weights.put(name, mean(self._used, name, like))
            self._write_rest(part, max(specs.values(), key=lambda spec: spec.bytes).dtype)
        return target

    def _write_rest(self, folder: Path, dtype: torch.dtype) -> None:
        first = self._used[0]
        # Not the config of the model, which was opened in float32.
        first.config.dtype = dtype
        first.config.save_pretrained(folder)
        generation = first.folder / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
        tokenizer = next((member.tokenizer for member in self._used if member.tokenizer is not None), None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        text = json.dumps(self.report, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / SOUP).write_text(text + "\n", encoding="utf-8")


def soup(
    models: Sequence[str | os.PathLike[str]],
    score: Score | None = None,
    *,
    uniform: bool = False,
    selection: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Soup:
    """Average fine-tuned checkpoints of one architecture.

    One model is in memory, and one tensor of it in float64; everything else is read from the files when it is needed.

    Parameters
    ----------
    models : sequence of str or Path
        Folders with dense safetensors, fine-tuned from one start. Equal scores are tried in this order.
    score : callable, optional
        ``score(model) -> float`` for a transformers model in float32, larger is better: accuracy, accuracy under
        attack. It must come from data that is not what will be reported: choosing on reported data flatters it.
    uniform : bool
        Average all, without choosing; then ``score`` is only noted.
    selection : mapping, optional
        JSON-able: what the score is; kept in the report.
    progress : optional
        Receives ``start(total, text)``, ``advance(text)``, ``finish()``.

    Returns
    -------
    Soup

    Raises
    ------
    InputError
        Checkpoints that cannot be read or differ in architecture, labels, tokenizer or shapes; nothing to choose by.
    NumericsError
        Weights or scores that are not finite.

    Examples
    --------
    >>> found = pyprune.soup(["a", "b", "c"], lambda model: accuracy(model, held_out))  # doctest: +SKIP
    >>> found.save("averaged")  # doctest: +SKIP
    """
    begin = time.perf_counter()
    if score is None and not uniform:
        raise InputError("there is nothing to choose checkpoints by", hint="score=..., or uniform=True")
    members, likes = open_members(models)
    candidate = _Candidate(members[0].load(), score, progress)
    if progress is not None and score is not None:
        progress.start(len(members) + (1 if uniform else len(members) - 1), "scoring checkpoints")
    try:
        own = [candidate.score_of([member], member.path) for member in members] if score is not None else []
        used, steps = _all(candidate, members, own) if uniform else _greedy(candidate, members, own)
    finally:
        if progress is not None and score is not None:
            progress.finish()
    candidate.fill(used)
    report = {
        "pyprune": accounting.versions()["pyprune"],
        "mode": "uniform" if uniform else "greedy",
        "members": [
            {
                "path": member.path,
                "sha256": model_sha256(
                    None, ((name, member.weights.read(name, likes[name])) for name in sorted(likes))
                ),
                "score": own[index] if own else None,
                "used": member in used,
            }
            for index, member in enumerate(members)
        ],
        "steps": steps,
        "score": next((step["score"] for step in reversed(steps) if step["kept"]), None),
        "selection": dict(selection) if selection is not None else None,
        "versions": accounting.versions(),
        "seconds": time.perf_counter() - begin,
        "notes": notes_on(members),
    }
    return Soup(candidate.model, report, tuple(used))


class _Candidate:
    """The one model in memory, filled with averages and scored."""

    def __init__(self, model: Any, score: Score | None, progress: Progress | None) -> None:
        self.model, self._score, self._progress = model, score, progress
        self._places = stored_tensors(model)

    def fill(self, members: Sequence[Member]) -> None:
        """Put the mean of these members into the model, rounded as it would be stored."""
        with torch.no_grad():
            for name, place in self._places.items():
                place.copy_(mean(members, name, place))

    def score_of(self, members: Sequence[Member], what: str) -> float:
        """The score of their mean."""
        assert self._score is not None
        self.fill(members)
        value = float(self._score(self.model))
        if not math.isfinite(value):
            raise NumericsError("a score is not finite", seen=f"{value} for the average with {what}")
        if self._progress is not None:
            self._progress.advance(f"scored {what}")
        return value


_Chosen = tuple[list[Member], list[dict[str, Any]]]


def _greedy(candidate: _Candidate, members: Sequence[Member], own: Sequence[float]) -> _Chosen:
    order = sorted(range(len(members)), key=lambda index: (-own[index], index))
    used, best = [members[order[0]]], own[order[0]]
    steps: list[dict[str, Any]] = [{"model": used[0].path, "score": best, "kept": True}]
    for index in order[1:]:
        value = candidate.score_of([*used, members[index]], members[index].path)
        kept = value >= best
        if kept:
            used, best = [*used, members[index]], value
        steps.append({"model": members[index].path, "score": value, "kept": kept})
    return used, steps


def _all(candidate: _Candidate, members: Sequence[Member], own: Sequence[float]) -> _Chosen:
    value = candidate.score_of(members, "all") if own else None
    return list(members), [{"model": "all", "score": value, "kept": True}]
