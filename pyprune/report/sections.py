# SPDX-License-Identifier: Apache-2.0
"""The tables of a report, in the order they are read; HTML and Markdown show the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pyprune.commands import common
from pyprune.commands.summary import DENOMINATORS
from pyprune.report.document import Bench, Document, Judged, Model, Share

NONE = "–"
_KINDS = {
    "pruned": "pruned",
    "trimmed": "fewer tokens",
    "average": "average",
    "dense": "dense",
    "records": "records only",
}


@dataclass(frozen=True)
class Table:
    """A caption, a heading for every column, and rows of text whose first cell names the row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def numbers(self, column: int) -> bool:
        """Whether a column holds nothing but numbers, with or without unit."""
        return column > 0 and all(re.match(r"[-+]?\d|–$", row[column]) for row in self.rows)


@dataclass(frozen=True)
class Section:
    """A part of the report.

    ``folded``: its tables are long, so that a page may hide them at first; ``warns``: its words are warnings.
    """

    key: str
    title: str
    words: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False
    warns: bool = False


def make_sections(document: Document) -> list[Section]:
    """All parts that have something to say."""
    models = document.models
    found = [
        Section("overview", "Models side by side", document.notes, (_overview(models),), warns=True),
        Section("robustness", "Accuracy and robustness", tuple(_robustness_words(models)), tuple(_robustness(models))),
        Section("sparsity", "Sparsity by denominator", (), tuple(_sparsity(models))),
        Section("units", "Heads and neurons that are left", _UNIT_WORDS, tuple(_units(models))),
        Section("vocabulary", "Tokens that are left", (), tuple(_vocabulary(models))),
        Section("embeddings", "Word embeddings", (), tuple(_embeddings(models))),
        Section("disk", "Size on disk", (), tuple(_disk(models))),
        Section("layers", "Error of each layer", _LAYER_WORDS, tuple(_layers(models)), folded=True),
        Section("masks", "Where weights are kept", _MASK_WORDS),
        Section("latency", "Latency", tuple(_latency_words(document.benches)), tuple(map(_latency, document.benches))),
        Section("settings", "Settings and versions", (), tuple(_facts(models)), folded=True),
        Section("data", "Data and hashes", (), tuple(_data(models)), folded=True),
        Section("remarks", "Notes, and what is missing", (), tuple(_remarks(document))),
    ]
    return [section for section in found if section.tables or section.key in ("overview", "masks")]


_LAYER_WORDS = (
    "The error is E‖Y − Ŷ‖² / E‖Y‖² of a layer's output against the dense model's, on the calibration text; the "
    "inputs are those of the model pruned so far.",
)
_MASK_WORDS = (
    "Each square is one matrix, shrunk to a small grid: outputs from top to bottom, inputs from left to right, one "
    "square per block of the model. The colour is the share of weights that are kept.",
)


_UNIT_WORDS = (
    "A cell is a head, as full as the share of its channels that is left; a bar is the neurons of a layer. Operations "
    "are counted at the mean length of the calibration text, and at its longest.",
)


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction in per cent, or a dash."""
    return NONE if value is None else common.percent(value, digits)


def share(value: Share | None) -> str:
    """``88.42 % (86.1 to 90.4)``."""
    if value is None:
        return NONE
    if value.low is None or value.high is None:
        return percent(value.value)
    return f"{percent(value.value)} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def size(value: int | None) -> str:
    """Bytes for a person."""
    if value is None:
        return NONE
    return f"{value / 2**20:.1f} MiB" if value < 2**30 else common.mebibytes(value)


def judged(value: Judged | None) -> str:
    """The number that a task is usually reported in, with the accuracy's interval."""
    if value is None:
        return NONE
    if value.metric == "accuracy":
        return share(value.accuracy)
    if value.value is None:
        return NONE
    own = f"{value.metric} {value.value:.4g}"
    return own if value.accuracy is None else f"{own}, {value.accuracy_is} {share(value.accuracy)}"


def accuracies(models: Sequence[Model]) -> dict[str, Share | None]:
    """Of each model by name: as evaluated, or where no model was, on the rows that were attacked."""
    if any(model.judged is not None for model in models):
        return {model.name: model.judged.accuracy for model in models if model.judged is not None}
    return {model.name: model.attack.accuracy for model in models if model.attack is not None}


def _overview(models: Sequence[Model]) -> Table:
    rows, unattacked = [], accuracies(models)
    for model in models:
        attack = model.attack
        rows.append(
            (
                model.name,
                model.method or _KINDS.get(model.kind, model.kind),
                percent(model.sparsity.get("linear_weights")),
                share(unattacked.get(model.name)) if model.judged is None else judged(model.judged),
                share(attack.aua if attack else None),
                share(attack.asr if attack else None),
                percent(model.mean_error),
                size(model.disk.get("weights")),
            )
        )
    header = ("model", "method", "zeros", "accuracy", "Aua", "Asr", "layer error", "weights")
    caption = (
        "Zeros of the pruned matrices; accuracy, accuracy under attack (Aua) and attack success rate (Asr) with 95 % "
        "intervals; mean error of the layers; weights on disk"
    )
    return _dropping(caption, header, rows)


def _dropping(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without the columns that say nothing."""
    keep = [0, *(i for i in range(1, len(header)) if any(row[i] != NONE for row in rows))]
    return Table(caption, tuple(header[i] for i in keep), tuple(tuple(row[i] for i in keep) for row in rows))


def _robustness_words(models: Sequence[Model]) -> Iterable[str]:
    if any(model.attack for model in models):
        yield (
            "Accuracy = (succeeded + failed attacks) / rows, Aua = failed attacks / rows, Asr = succeeded / "
            "(succeeded + failed) = 1 − Aua / accuracy; rows that the model gets wrong unattacked are skipped."
        )
        told = {_resources(model) for model in models} - {NONE}
        if len(told) == 1:
            yield f"What the attack used: {told.pop()}."
    elif any(model.judged for model in models):
        yield "No folder holds an attack (attack.json), so nothing is said of robustness."


def _robustness(models: Sequence[Model]) -> Iterable[Table]:
    rows: list[tuple[str, ...]] = []
    for model in models:
        value = model.judged
        if value is not None:
            dense = model.judged_dense
            same = dense is not None and dense.accuracy is not None and value.accuracy is not None
            change = ""
            if same and dense is not None and dense.accuracy is not None and value.accuracy is not None:
                change = f"{100 * (value.accuracy.value - dense.accuracy.value):+.2f}"
            rows.append((model.name, judged(value), change or NONE, _count(value.total), value.source or NONE))
    if rows:
        yield _dropping(
            "Without an attack, with 95 % intervals; change: points against the dense model it was made from",
            ("model", "accuracy", "change", "rows", "data"),
            rows,
        )
    attacks = [(model, model.attack) for model in models if model.attack is not None]
    differ = len({_resources(model) for model in models} - {NONE}) > 1
    if attacks:
        yield _dropping(
            "Under attack, with 95 % intervals; queries and changed words as means of the attacked rows",
            ("model", "recipe", "accuracy", "Aua", "Asr", "queries", "words changed", "rows", "skipped", "resources"),
            [
                (
                    model.name,
                    attack.recipe or NONE,
                    share(attack.accuracy),
                    share(attack.aua),
                    share(attack.asr),
                    NONE if attack.queries is None else f"{attack.queries:.1f}",
                    percent(attack.words_changed, 1),
                    _count(attack.total),
                    _count(attack.skipped),
                    _resources(model) if differ else NONE,
                )
                for model, attack in attacks
            ],
        )


def _resources(model: Model) -> str:
    found = {} if model.attack is None else model.attack.resources
    return "; ".join(f"{key}: {text}" for key, text in found.items()) or NONE


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _sparsity(models: Sequence[Model]) -> Iterable[Table]:
    found = [model for model in models if model.sparsity]
    keys = list(dict.fromkeys(key for model in found for key in model.sparsity))
    if found:
        yield Table(
            "Share of zeros; the rows say of what",
            ("zeros", *(model.name for model in found)),
            tuple((DENOMINATORS.get(key, key), *(percent(m.sparsity.get(key)) for m in found)) for key in keys),
        )


def _units(models: Sequence[Model]) -> Iterable[Table]:
    found = [model for model in models if model.units]
    names = tuple(model.name for model in found)
    if not found:
        return
    keys = [key for key in dict.fromkeys(key for model in found for key in model.left) if key != "asked"]
    shares = [(LEFT.get(key, key), *(percent(m.left.get(key)) for m in found)) for key in keys]
    asked = ("asked for", *(percent(model.left.get("asked")) for model in found))
    if shares:
        yield Table("What is left of the encoder's heads and neurons", ("left", *names), (*shares, asked))
    layers = max(len(model.units) for model in found)
    rows = [(str(layer), *(_left(model, layer) for model in found)) for layer in range(layers)]
    yield Table("Heads and neurons of each layer", ("layer", *names), tuple(rows))
    stages = list(dict.fromkeys(stage for model in found for stage in model.stages))
    if stages:
        times = [(stage, *(_seconds(model.stages.get(stage)) for model in found)) for stage in stages]
        yield Table("Time of each stage", ("stage", *names), tuple(times))


LEFT = {
    "flops": "floating-point operations",
    "flops_at_longest": "floating-point operations, longest text",
    "macs": "multiply-adds",
    "macs_at_longest": "multiply-adds, longest text",
    "parameters": "parameters",
}


def _left(model: Model, layer: int) -> str:
    if layer >= len(model.units):
        return NONE
    found = model.units[layer]
    return f"{found.kept_heads} of {len(found.heads)}, {found.neurons:,} of {found.of_neurons:,}"


def _seconds(value: float | None) -> str:
    return NONE if value is None else common.duration(value)


def _vocabulary(models: Sequence[Model]) -> Iterable[Table]:
    rows = []
    for model in models:
        found = model.vocabulary
        if found:
            pairs = [(found[f"{name} before"], found[f"{name} after"]) for name in ("tokens", "parameters", "bytes")]
            (tokens, parameters), (old, new) = ([f"{a:,} → {b:,}" for a, b in pairs[:2]], pairs[2])
            rows.append((model.name, tokens, parameters, f"{size(old)} → {size(new)}"))
    if rows:
        caption = "Tokens that never occurred are cut out of embeddings and tokenizer"
        yield Table(caption, ("model", "tokens", "parameters", "in memory"), tuple(rows))


def _embeddings(models: Sequence[Model]) -> Iterable[Table]:
    rows = [
        (m.name, f"{m.embeddings['rank']:,}", f"{m.embeddings['before']:,} → {m.embeddings['after']:,}")
        for m in models
        if m.embeddings
    ]
    if rows:
        yield Table("A product of two matrices in place of one table", ("model", "rank", "parameters"), tuple(rows))


def _disk(models: Sequence[Model]) -> Iterable[Table]:
    rows = [(m.name, m.storage or NONE, size(m.disk["weights"]), size(m.disk["folder"])) for m in models if m.disk]
    if rows:
        yield _dropping(
            "Weights are the safetensors files without separate masks; dense storage keeps the zeros",
            ("model", "storage", "weights", "whole folder"),
            rows,
        )


def _layers(models: Sequence[Model]) -> Iterable[Table]:
    found = [model for model in models if model.layers]
    names = list(dict.fromkeys(layer.name for model in found for layer in model.layers))
    errors = [{layer.name: layer.error for layer in model.layers} for model in found]
    if names:
        mean = ("mean", *(percent(model.mean_error) for model in found))
        rows = [(short, *(percent(e.get(name)) for e in errors)) for name, short in shortened(names).items()]
        yield Table("Error of each layer's output", ("layer", *(model.name for model in found)), (*rows, mean))


def shortened(names: Sequence[str]) -> dict[str, str]:
    """Names of layers without what all have in common at the front.

    >>> shortened(["bert.layer.0.query", "bert.layer.1.query"])
    {'bert.layer.0.query': '0.query', 'bert.layer.1.query': '1.query'}
    """
    split = [name.split(".") for name in names]
    common_parts = 0
    while all(len(parts) > common_parts + 1 for parts in split) and len({p[common_parts] for p in split}) == 1:
        common_parts += 1
    return {name: ".".join(parts[common_parts:]) for name, parts in zip(names, split, strict=True)}


def _latency_words(benches: Sequence[Bench]) -> Iterable[str]:
    for bench in benches:
        yield from bench.verdict


def _latency(bench: Bench) -> Table:
    rows = [
        (
            row.candidate,
            row.batch,
            row.length,
            row.status if row.median is None else f"{1e3 * row.median:.3g} ms",
            NONE if row.p90 is None else f"{1e3 * row.p90:.3g} ms",
            NONE if row.gain is None else f"{row.gain:.2f} ×",
            NONE if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
            size(bench.memory.get(row.candidate)),
        )
        for row in bench.rows
    ]
    pair = f"{bench.dense or '?'} beside {bench.pruned or '?'}"
    caption = f"{pair}: median and p90 of a batch, speed against dense, on {bench.machine}"
    header = ("candidate", "batch", "length", "median", "p90", "speed", "tokens/s", "memory")
    return _dropping(caption, header, rows)


def _facts(models: Sequence[Model]) -> Iterable[Table]:
    settings = _side_by_side("How each model was made", models, lambda model: _with_time(model))
    versions = _side_by_side("Versions", models, lambda model: model.versions)
    return [table for table in (settings, versions) if table.rows]


def _with_time(model: Model) -> dict[str, str]:
    return model.settings | ({} if model.seconds is None else {"time": common.duration(model.seconds)})


def _data(models: Sequence[Model]) -> Iterable[Table]:
    def facts(model: Model) -> dict[str, str]:
        attack = model.attack
        told = {} if attack is None else {"attack, sha256": attack.sha256, "attack, seed": _count(attack.seed)}
        return model.data | {key: text for key, text in told.items() if text is not None and text != NONE}

    table = _side_by_side("Models, calibration text and evaluated rows, by their hashes", models, facts)
    return [table] if table.rows else []


def _side_by_side(caption: str, models: Sequence[Model], facts: Callable[[Model], dict[str, str]]) -> Table:
    found = [(model.name, told) for model in models if (told := facts(model))]
    keys = list(dict.fromkeys(key for _, told in found for key in told))
    rows = tuple((key, *(told.get(key, NONE) for _, told in found)) for key in keys)
    return Table(caption, ("entry", *(name for name, _ in found)), rows)


def _remarks(document: Document) -> Iterable[Table]:
    rows = [(m.name, kind, text) for m in document.models for kind, text in _said(m)]
    rows += [(bench.source, "problem", text) for bench in document.benches for text in bench.problems]
    if rows:
        yield Table("A problem is what is there and cannot be read or believed", ("model", "kind", "what"), tuple(rows))


def _said(model: Model) -> Iterable[tuple[str, str]]:
    yield from (("problem", text) for text in model.problems)
    yield from (("missing", text) for text in model.missing)
    yield from (("note", text) for text in model.notes)
