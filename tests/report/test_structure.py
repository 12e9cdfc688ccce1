# SPDX-License-Identifier: Apache-2.0
"""Cut heads, neurons and tokens in a report: whichever record names them, believed as far as it can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cuts import CUTS
from tiny_models import build_model

from pyprune.report import collect, make_sections, to_html
from pyprune.report.document import Document, Left
from pyprune.structured import compact

UNITS = CUTS["uneven heads"]
_RECORD: dict[str, Any] = {
    "method": "kprune",
    "pattern": "40 % of flops",
    "budget": {"measure": "flops", "share": 0.4, "dense": 1000, "allowed": 400, "reached": 390},
    "left": {"flops": 0.39, "flops_at_longest": 0.38, "macs": 0.39, "parameters": 0.41},
    "layers": [
        {"name": f"layer.{layer}.{kind}", "kind": kind, "units": count, "kept": kept, "error": 0.1}
        for layer, (heads, neurons) in enumerate(((3, 17), (0, 48)))
        for kind, count, kept in (("heads", 4, heads), ("neurons", 48, neurons))
    ],
    "seconds": {"prepare": 1.5, "search": 0.25, "total": 61.0},
}


def _folder(path: Path, report: dict[str, Any] | None, units: object = None) -> Path:
    small: Any = compact(build_model("bert"), UNITS)
    small.save_pretrained(path)
    for name, record in (("pyprune.json", report), ("pyprune_units.json", units)):
        if record is not None:
            (path / name).write_text(json.dumps(record), encoding="utf-8")
    return path


def _tables(document: Document, key: str) -> dict[str, dict[str, tuple[str, ...]]]:
    section = next(section for section in make_sections(document) if section.key == key)
    return {table.caption: {row[0]: row[1:] for row in table.rows} for table in section.tables}


def test_named_counted_and_stored_units(tmp_path: Path) -> None:
    named = _folder(tmp_path / "named", _RECORD, UNITS.to_json())
    counted = _folder(tmp_path / "counted", _RECORD)
    stored = _folder(tmp_path / "stored", None)
    document = collect([named, counted, stored])
    models = {model.name: model for model in document.models}
    assert not any(model.problems for model in document.models)
    # which heads are left, and how much of each
    layer = UNITS.layers[0]
    wanted = [0.0] * 4
    for head, query, value in zip(layer.heads, layer.query, layer.value, strict=True):
        wanted[head] = (len(query) + len(value)) / 16
    assert models["named"].units[0] == Left(tuple(wanted), len(layer.neurons), 48)
    # only how many
    assert models["counted"].units == (Left((1.0, 1.0, 1.0, 0.0), 17, 48, False), Left((0.0,) * 4, 48, 48, False))
    # only the widths, in order
    assert sorted(models["stored"].units[0].heads) == sorted(wanted)
    assert models["stored"].units[1].neurons == len(UNITS.layers[1].neurons)
    assert models["named"].storage == "compact"
    assert not any("mask" in text for text in models["named"].missing)

    tables = _tables(document, "units")
    left = tables["What is left of the encoder's heads and neurons"]
    assert left["parameters"] == ("41.00 %", "41.00 %", "–")
    assert left["asked for"][0] == "40.00 %"
    assert tables["Heads and neurons of each layer"]["0"][1] == "3 of 4, 17 of 48"
    assert tables["Time of each stage"]["total"][0] == "1 min 01 s"


def test_the_picture_shows_each_head_and_each_layer(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'pyprune[report]'")
    from pyprune.report import draw

    document = collect([_folder(tmp_path / "named", _RECORD, UNITS.to_json())])
    figures = draw(document)
    (figure,) = figures["units"]
    assert f"layer 1: {len(UNITS.layers[1].heads)} of 4 heads, " in figure.description
    root = ElementTree.fromstring(figure.svg)
    fills = [element.get("style", "") for element in root.iter() if element.tag.endswith("path")]
    heads, neurons = (sum(f"fill: {colour}" in style for style in fills) for colour in ("#3f8fd2", "#e07b39"))
    assert heads == sum(len(layer.heads) for layer in UNITS.layers)
    assert neurons == sum(bool(layer.neurons) for layer in UNITS.layers)
    page = to_html(document, make_sections(document), figures)
    assert figure.svg in page
    assert "Heads and neurons that are left" in page


def test_tokens_that_are_gone(tmp_path: Path) -> None:
    sizes = {"tokens": (30522, 6477), "parameters": (22713986, 13480706), "bytes": (90855944, 53922824)}
    vocabulary = {name: {"before": before, "after": after} for name, (before, after) in sizes.items()}
    trimmed = _folder(tmp_path / "trimmed", {"pyprune": "0", "vocabulary": vocabulary})
    odd = _folder(tmp_path / "odd", {"vocabulary": {"tokens": {"before": -1}}})
    document = collect([trimmed, odd])
    assert [model.kind for model in document.models] == ["trimmed", "trimmed"]
    rows = _tables(document, "vocabulary")["Tokens that never occurred are cut out of embeddings and tokenizer"]
    assert rows == {"trimmed": ("30,522 → 6,477", "22,713,986 → 13,480,706", "86.6 MiB → 51.4 MiB")}
    assert any("out of range" in problem for problem in document.models[1].problems)


def test_embeddings_that_are_a_product(tmp_path: Path) -> None:
    sizes = {"rank": 192, "parameters": {"before": 23440896, "after": 6007680}, "error": 0.1}
    folders = [_folder(tmp_path / name, _RECORD | {"embeddings": told}) for name, told in (("a", sizes), ("b", {}))]
    folders.append(_folder(tmp_path / "c", _RECORD | {"embeddings": sizes | {"rank": -3}}))
    document = collect(folders)
    rows = _tables(document, "embeddings")["A product of two matrices in place of one table"]
    assert rows == {"a": ("192", "23,440,896 → 6,007,680")}
    assert any("out of range" in problem for problem in document.models[2].problems)


@pytest.mark.parametrize(
    "units",
    [
        [],
        {"layers": []},
        UNITS.to_json() | {"heads": 2**31 - 1},
        UNITS.to_json() | {"heads": -1},
        UNITS.to_json() | {"layers": [{}]},
        UNITS.to_json() | {"layers": UNITS.to_json()["layers"] * 400},
    ],
)
def test_what_cannot_be_believed_is_said(units: object, tmp_path: Path) -> None:
    layers = [*_RECORD["layers"], {"kind": "heads", "units": 1, "kept": 2}, {"kind": "heads", "units": "x"}, 5]
    (model,) = collect([_folder(tmp_path / "odd", _RECORD | {"layers": layers, "left": {"flops": 7}}, units)]).models
    assert model.problems
    assert [layer.named for layer in model.units] == [False, False]  # what the records count is shown instead
    config = json.loads((tmp_path / "odd" / "config.json").read_text(encoding="utf-8"))
    for change in ({"num_attention_heads": 10**9}, {"pyprune": {"layers": [1]}}, {"pyprune": 3}, {"hidden_size": "a"}):
        (tmp_path / "odd" / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
        (tmp_path / "odd" / "pyprune.json").unlink(missing_ok=True)
        (model,) = collect([tmp_path / "odd"]).models
        assert model.units == ()
