# SPDX-License-Identifier: Apache-2.0
"""From folders to a document: each folder's records, the dense models they started from, and what forbids comparing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.files import REPORT, SOUP
from pyprune.report.document import Bench, Document, Judged, Layer, Model
from pyprune.report.maps import density
from pyprune.report.measured import read_attack, read_bench, read_judged
from pyprune.report.parts import Part, printable, read_json
from pyprune.report.structure import read_embeddings, read_shares, read_stages, read_units, read_vocabulary
from pyprune.result import each_mask
from pyprune.sparse.mask_file import MASKS
from pyprune.sparse.storage import is_sparse
from pyprune.structured.shapes import is_compact
from pyprune.version import __version__

ATTACK = "attack.json"
BENCHES = ("bench.json", "model.json")


def collect(folders: Sequence[str | os.PathLike[str]], benches: Sequence[str | os.PathLike[str]] = ()) -> Document:
    """Read folders of models and records of measurements.

    Parameters
    ----------
    folders : sequence of str or Path
        Pruned models, averages, dense checkpoints, or folders with records only: ``attack.json`` and a record of
        ``pyprune bench model`` are looked for in each.
    benches : sequence of str or Path
        More records of ``pyprune bench model``.

    Raises
    ------
    InputError
        A path that does not exist. Anything wrong inside is part of the document.
    """
    paths = list(dict.fromkeys(Path(folder).expanduser() for folder in folders))
    if not paths:
        raise InputError("there is nothing to report on", hint="folders written by pyprune")
    for path in paths:
        if not path.is_dir():
            raise InputError(f"there is no folder {path}", hint="folders written by pyprune, or with its records")
    records = [Path(path).expanduser() for path in benches]
    for path in records:
        if not path.is_file():
            raise InputError(f"there is no file {path}", hint="a record of `pyprune bench model --output DIR`")
    models = _with_attacked_starts([_read_folder(path) for path in paths])
    models = _named([*_dense_starts(models), *models])
    found = [*(bench for path in paths for bench in _benches_of(path)), *(read_bench(path) for path in records)]
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return Document(__version__, day, tuple(models), tuple(found), tuple(_warnings(models)))


def _read_folder(path: Path) -> Model:
    problems: list[str] = []
    report, soup = read_json(path / REPORT, problems), read_json(path / SOUP, problems)
    attack = read_json(path / ATTACK, problems)
    plain = (path / "config.json").is_file()
    if report is not None:
        model = _pruned(path, report)
    elif soup is not None:
        model = _average(path, soup)
    else:
        model = Model("", str(path), "dense" if plain else "records")
    model = replace(model, attack=None if attack is None else read_attack(attack), disk=_bytes(path) if plain else {})
    if model.kind == "pruned":
        model = replace(model, densities=_densities(path, problems))
    if plain:
        model = replace(model, units=read_units(path, report, problems), storage=_storage(path))
    if report is not None:
        stages = read_stages(report) if model.units else {}
        model = replace(model, left=read_shares(report), vocabulary=read_vocabulary(report), stages=stages)
        model = replace(model, embeddings=read_embeddings(report))
    if model.kind == "records" and model.attack is None and not _benches_of(path):
        problems.append("neither a model nor a record was found in this folder")
    return replace(model, missing=tuple(_missing(model, path)), problems=tuple(problems))


def _pruned(path: Path, report: Part) -> Model:
    evaluation, origin = report.part("evaluation"), report.part("model")
    shares = report.part("sparsity")
    sparsity = {printable(key, 60): shares.number(key, 0, 1) for key in shares.values}
    threads = {f"threads, {name}": value for name, value in report.part("threads").flat().items()}
    origin_facts = {f"model, {name}": value for name, value in origin.flat(skip=("name",)).items()}
    calibration = {f"calibration, {name}": value for name, value in report.part("data").flat().items()}
    judged = read_judged(evaluation.part("pruned"), evaluation)
    return Model(
        "",
        str(path),
        "trimmed" if "vocabulary" in report.values and "method" not in report.values else "pruned",
        method=report.text("method"),
        pattern=report.text("pattern"),
        origin=origin.text("name"),
        sparsity={name: value for name, value in sparsity.items() if value is not None},
        layers=tuple(_layer(part) for part in report.parts("layers")),
        mean_error=report.number("mean_error", 0),
        judged=judged,
        judged_dense=read_judged(evaluation.part("dense"), evaluation),
        seconds=report.part("seconds").number("total", 0),
        settings=report.part("settings").flat()
        | {key: report.text(key) or "?" for key in ("solver", "seed", "device")}
        | threads,
        versions=report.part("versions").flat(),
        data=origin_facts | calibration | _evaluated(judged),
        notes=report.texts("notes"),
    )


def _average(path: Path, soup: Part) -> Model:
    selection = soup.part("selection")
    members = {f"member {number}": _member(part) for number, part in enumerate(soup.parts("members"), start=1)}
    judged = read_judged(soup.part("evaluation"))
    return Model(
        "",
        str(path),
        "average",
        method=f"average, {soup.text('mode') or 'unknown'}",
        judged=judged,
        seconds=soup.number("seconds", 0),
        versions=soup.part("versions").flat(),
        data=members | {f"choice, {name}": value for name, value in selection.flat().items()} | _evaluated(judged),
        notes=soup.texts("notes"),
    )


def _member(part: Part) -> str:
    score, used = part.number("score"), part.values.get("used") is True
    facts = ["used" if used else "left out", "no score" if score is None else f"score {score:.4f}"]
    return ", ".join([part.text("path") or "?", *facts, f"sha256 {part.text('sha256') or '?'}"])


def _layer(part: Part) -> Layer:
    name = part.text("name") or "?"
    return Layer(name, part.count("rows"), part.count("cols"), part.count("kept"), part.number("error", 0))


def _densities(path: Path, problems: list[str]) -> dict[str, Any]:
    if not (path / MASKS).is_file() and not is_sparse(path):
        return {}
    try:
        return {printable(name, 120): density(mask) for name, mask in each_mask(path)}
    except Exception as error:  # damaged in whatever way, by files of whatever maker
        problems.append(f"the masks cannot be read: {printable(error, 160) or type(error).__name__}")
        return {}


def _evaluated(judged: Judged | None) -> dict[str, str]:
    if judged is None:
        return {}
    facts = {"source": judged.source, "sha256": judged.sha256}
    return {f"evaluation, {name}": value for name, value in facts.items() if value is not None}


def _storage(path: Path) -> str:
    kinds = [name for name, found in (("compact", is_compact(path)), ("sparse", is_sparse(path))) if found]
    return ", ".join(kinds) or "dense"


def _bytes(path: Path) -> dict[str, int]:
    files = [file for file in path.rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix == ".safetensors" and file.name != MASKS]
    return {"folder": sum(f.stat().st_size for f in files), "weights": sum(f.stat().st_size for f in weights)}


def _benches_of(path: Path) -> list[Bench]:
    found = []
    for name in BENCHES:
        record = read_json(path / name, [])
        if record is not None and record.values.get("kind") == "model":
            found.append(read_bench(path / name))
    return found


def _missing(model: Model, path: Path) -> Iterable[str]:
    if model.kind == "pruned":
        if not model.layers:
            yield "no records of layers"
        if not model.units and not (path / MASKS).is_file() and not is_sparse(path):
            yield f"no masks ({MASKS})"
        if model.judged is None:
            yield "no evaluation (pyprune prune --evaluate FILE)"
    if model.kind in ("pruned", "trimmed", "average") and not model.disk:
        yield "no model (config.json)"
    if model.kind != "records" and model.attack is None:
        yield f"no {ATTACK}"


def _with_attacked_starts(models: list[Model]) -> list[Model]:
    """Folders with nothing but an attack on a model that others were pruned from are put down to that model."""
    starts = {model.data.get("model, sha256"): model.origin for model in models if model.kind == "pruned"}
    given = {os.path.abspath(model.path): index for index, model in enumerate(models) if model.kind != "records"}
    found, moved = list(models), []
    for place, model in enumerate(models):
        attack = model.attack
        origin = starts.get(attack.model_sha256) if model.kind == "records" and attack is not None else None
        if origin is None:
            continue
        index = given.get(os.path.abspath(origin))
        if index is None:
            found[place] = replace(model, kind="dense", path=origin)
        elif found[index].attack is None:
            missing = tuple(text for text in found[index].missing if ATTACK not in text)
            found[index] = replace(found[index], attack=attack, missing=missing)
            moved.append(place)
    return [model for place, model in enumerate(found) if place not in moved]


def _dense_starts(models: list[Model]) -> list[Model]:
    """Dense models that are known from reports alone; folders that were given get their evaluation in place."""
    given = {os.path.abspath(model.path): index for index, model in enumerate(models)}
    added: dict[tuple[str, str | None], Model] = {}
    for model in models:
        dense = model.judged_dense
        if dense is None:
            continue
        origin = model.origin or "dense"
        index = given.get(os.path.abspath(origin))
        if index is None:
            known = Model("", origin, "dense", judged=dense, missing=("known only from the reports of pruned models",))
            added.setdefault((origin, dense.sha256), known)
        elif models[index].judged is None:
            models[index] = replace(models[index], judged=dense)
    return list(added.values())


def _named(models: list[Model]) -> list[Model]:
    """Give each the shortest end of its path that no other has."""
    parts = [[printable(part, 60) for part in Path(os.path.abspath(model.path)).parts] for model in models]
    named: list[Model] = []
    for index, model in enumerate(models):
        others = [other for place, other in enumerate(parts) if place != index]
        length = 1
        while length < len(parts[index]) and any(other[-length:] == parts[index][-length:] for other in others):
            length += 1
        name = "/".join(parts[index][-length:])
        while any(name == other.name for other in named):
            name += "'"
        named.append(replace(model, name=name))
    return named


def _warnings(models: Sequence[Model]) -> Iterable[str]:
    """What keeps numbers from being compared."""
    judged = {m.judged.sha256 for m in models if m.judged is not None and m.judged.sha256 is not None}
    if len(judged) > 1:
        yield "The models were not evaluated on the same rows (different hashes): their accuracies cannot be compared."
    attacks = [model.attack for model in models if model.attack is not None]
    for what, seen in (
        ("rows", {attack.sha256 for attack in attacks} - {None}),
        ("recipe", {attack.recipe for attack in attacks} - {None}),
        ("seed", {attack.seed for attack in attacks} - {None}),
        ("resources", {tuple(sorted(attack.resources.items())) for attack in attacks} - {()}),
    ):
        if len(seen) > 1:
            yield f"The attacks differ in their {what}: accuracies under attack cannot be compared."
    calibrations = {m.data["calibration, sha256"] for m in models if "calibration, sha256" in m.data}
    if len(calibrations) > 1:
        yield "The models were pruned on different calibration text (different hashes): so layer errors are not alike."
