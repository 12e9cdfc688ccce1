# SPDX-License-Identifier: Apache-2.0
"""Reading folders: true numbers out of whole ones, problems out of damaged ones, never an exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_attacker import FakeAttacker
from made_up import model_record
from tiny_checkpoint import build_tokenizer

from pyprune import attack, tasks
from pyprune.commands.checkpoints import open_model
from pyprune.errors import InputError
from pyprune.report import collect, make_sections
from pyprune.report.document import Model
from pyprune.result import load_report
from pyprune.tasks.metrics import wilson

Folder = Callable[..., Path]


def only(path: Path) -> Model:
    models = [model for model in collect([path]).models if model.path == str(path)]
    assert len(models) == 1
    return models[0]


def test_a_pruned_folder(made: Path) -> None:
    folder = made / "akr-75"
    model, report = only(folder), load_report(folder)
    assert (model.name, model.kind, model.method, model.storage) == ("akr-75", "pruned", "akr", "dense")
    assert model.sparsity == report["sparsity"]
    assert [layer.error for layer in model.layers] == [record["error"] for record in report["layers"]]
    assert model.judged is not None
    assert model.judged.accuracy is not None
    evaluation = report["evaluation"]["pruned"]
    share = model.judged.accuracy
    assert [share.value, share.low, share.high] == [evaluation["accuracy"], *evaluation["interval"]]
    assert model.data["calibration, sha256"] == report["data"]["sha256"]
    assert model.disk["weights"] == (folder / "model.safetensors").stat().st_size
    assert model.disk["folder"] == sum(file.stat().st_size for file in folder.iterdir())
    assert model.densities.keys() == {record["name"] for record in report["layers"]}
    # cells hold shares of almost equal numbers of weights: their mean is about the share of the matrix
    assert all(abs(float(grid.mean()) - 0.25) < 0.06 for grid in model.densities.values())
    assert model.missing == ("no attack.json",)
    assert model.problems == ()


def test_the_dense_model_is_taken_from_reports(made: Path) -> None:
    """Once, whether its folder is given or not."""
    value = load_report(made / "akr-75")["evaluation"]["dense"]["accuracy"]
    for folders in (["magnitude-50", "akr-75"], ["dense", "magnitude-50", "akr-75"]):
        models = collect([made / name for name in folders]).models
        dense = [model for model in models if model.kind == "dense"]
        assert len(dense) == 1
        assert dense[0].judged is not None
        assert dense[0].judged.accuracy is not None
        assert dense[0].judged.accuracy.value == value
        assert [model.name for model in models] == ["dense", "magnitude-50", "akr-75"]


def test_names_tell_folders_apart(attacked: Folder, tmp_path: Path) -> None:
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        attacked(f"{place}/run")
    models = collect([tmp_path / "first" / "run", tmp_path / "second" / "run"]).models
    assert [model.name for model in models] == ["first/run", "second/run"]


def test_attack(attacked: Folder) -> None:
    attack = only(attacked()).attack
    assert attack is not None
    assert attack.aua is not None
    assert attack.asr is not None
    assert (attack.recipe, attack.queries, attack.seed, attack.skipped) == ("textfooler", 41.5, 3, 20)
    # without intervals in the record they are those of the counts: of all rows, and of those attacked
    assert (attack.aua.low, attack.aua.high) == wilson(20, 100)
    assert (attack.asr.low, attack.asr.high) == wilson(60, 80)
    given = only(attacked("given", intervals={"aua": [0.1, 0.4]})).attack
    assert given is not None
    assert given.aua is not None
    assert (given.aua.low, given.aua.high) == (0.1, 0.4)
    bare = only(attacked("bare", total=None, skipped=None, accuracy=None)).attack
    assert bare is not None
    assert bare.aua is not None
    assert bare.aua.low is None


def attack_really(model: Path, dev: Path, output: Path) -> dict[str, Any]:
    """An attack of `model` by pyprune's own run, its summary written by pyprune; returns what it says."""
    examples = tasks.load_texts(dev, purpose="evaluation")
    found = attack.run(
        open_model(str(model)), examples, tokenizer=build_tokenizer(), recipe="pwws", attacker=FakeAttacker
    )
    found.save(output)
    return found.summary


def test_a_real_attack(made: Path, copied: Folder, attacked: Folder) -> None:
    """Every number of an attack as it is written is in the report: nothing is lost between writer and reader."""
    folder = copied()
    summary = attack_really(folder, made / "dev.tsv", folder)
    model = only(folder)
    found = model.attack
    assert found is not None
    assert model.problems == ()
    assert "no attack.json" not in model.missing
    for name in ("accuracy", "aua", "asr"):
        share = getattr(found, name)
        assert [share.value, share.low, share.high] == [summary[name], *summary["intervals"][name]], name
    assert (found.queries, found.words_changed) == (summary["queries_mean"], summary["words_changed"])
    for name in ("recipe", "total", "skipped", "seed", "sha256", "model_sha256"):
        assert getattr(found, name) == summary[name], name
    assert found.resources == {"words": "stand-in, none"}
    # the made-up record of the other tests has no key that a real one lacks
    made_up = json.loads((attacked() / "attack.json").read_text(encoding="utf-8"))
    assert made_up.keys() <= summary.keys()


@pytest.mark.parametrize("given", [False, True])
def test_an_attack_on_the_dense_model(made: Path, tmp_path: Path, given: bool) -> None:
    """Its records lie apart from the model, whose folder is not pyprune's; the hash of its weights tells."""
    summary = attack_really(made / "dense", made / "dev.tsv", tmp_path / "records")
    models = collect([*([made / "dense"] if given else []), tmp_path / "records", made / "akr-75"]).models
    assert [(model.name, model.kind) for model in models] == [("dense", "dense"), ("akr-75", "pruned")]
    assert models[0].attack is not None
    assert models[0].judged is not None
    assert models[0].attack.aua is not None
    assert models[0].attack.aua.value == summary["aua"]
    assert not any("attack.json" in text for text in models[0].missing)
    # an attack on a model that nothing here was pruned from stays what it is
    other = attack_really(made / "akr-75", made / "dev.tsv", tmp_path / "others")
    assert other["model_sha256"] != summary["model_sha256"]
    assert only(tmp_path / "others").kind == "records"


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"asr": 0.5}, "asr is 0.5000, but 1 - Aua / accuracy is 0.7500"),
        ({"aua": 20.0}, "aua is 20, out of range"),
        ({"aua": "0.2"}, "aua is not a number"),
        ({"total": 99.5}, "total is not a whole number"),
        ({"intervals": {"aua": [0.3, 0.4]}}, "aua is no interval around the value"),
        ({"intervals": [1]}, "intervals is not an object"),
        ({"queries_mean": 10**400}, "queries_mean is inf, out of range"),
        ({"recipe": ["x"]}, "recipe is not text"),
        ({"resources": {"synonyms": "stand-in"}}, "resources is not a list"),
        ({"resources": ["synonyms"]}, "resources 0 is not an object"),
    ],
)
def test_attacks_that_cannot_be(attacked: Folder, changed: dict[str, Any], problem: str) -> None:
    model = only(attacked(**changed))
    assert any(problem in said for said in model.problems), model.problems
    assert model.attack is not None


def test_what_forbids_comparing(made: Path, attacked: Folder) -> None:
    first = attacked("first")
    assert collect([first, attacked("same")]).notes == ()
    for key, what in (("recipe", "recipe"), ("seed", "seed"), ("sha256", "rows")):
        other = attacked(key, **{key: 4 if key == "seed" else "other"})
        (note,) = collect([first, other]).notes
        assert f"differ in their {what}:" in note
    assert collect([made / "magnitude-50", made / "akr-75"]).notes == ()


def test_other_rows_and_other_text(made: Path, copied: Folder) -> None:
    report = load_report(made / "akr-75")
    report["evaluation"]["pruned"]["sha256"] = report["data"]["sha256"] = "cd" * 32
    other = copied(evaluation=report["evaluation"], data=report["data"])
    notes = collect([made / "akr-75", other]).notes
    assert len(notes) == 2
    assert "not evaluated on the same rows" in notes[0]
    assert "different calibration text" in notes[1]


_DAMAGED = (
    "",
    "{",
    "[1]",
    '"x"',
    "\x00",
    "[" * 100_000,
    '{"layers": NaN}',
    '{"layers": 3, "sparsity": [], "data": 1}',
    '{"layers": [1, {"name": {}, "rows": -1, "error": 1e999}]}',
    '{"evaluation": {"pruned": {"metric": [], "accuracy": 7}}}',
    '{"method": {"a": 1}, "notes": {"a": 1}, "model": "x", "settings": [[]], "seconds": {"total": -1}}',
)


@pytest.mark.parametrize("text", _DAMAGED, ids=range(len(_DAMAGED)))
def test_damaged_reports(copied: Folder, text: str) -> None:
    folder = copied()
    (folder / "pyprune.json").write_text(text, encoding="utf-8")
    document = collect([folder])
    model = document.models[-1]
    assert model.kind == "pruned"
    assert model.problems
    assert model.missing
    assert make_sections(document)


def test_bytes_that_are_no_text(copied: Folder) -> None:
    folder = copied()
    (folder / "pyprune.json").write_bytes(b"\xff\xfe{")
    assert "cannot be read" in only(folder).problems[0]


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: b"\xff" * 64, lambda data: data[:-9]])
def test_damaged_masks(copied: Folder, damage: Callable[[bytes], bytes]) -> None:
    folder = copied()
    masks = folder / "pyprune_masks.safetensors"
    masks.write_bytes(damage(masks.read_bytes()))
    model = only(folder)
    assert model.problems[0].startswith("the masks cannot be read")
    assert model.densities == {}
    assert model.layers
    masks.unlink()
    assert "no masks (pyprune_masks.safetensors)" in only(folder).missing


def test_sparse_storage(made: Path, tmp_path: Path) -> None:
    from pyprune.result import export

    sparse = only(export(made / "akr-75", tmp_path / "small", storage="sparse"))
    assert sparse.storage == "sparse"
    dense = only(made / "akr-75")
    assert sparse.disk["weights"] < dense.disk["weights"]
    assert all((sparse.densities[name] == grid).all() for name, grid in dense.densities.items())


def test_bench(tmp_path: Path, attacked: Folder) -> None:
    record = model_record(
        (1, 128, {"dense eager": 0.02, "pruned optimize": 0.005, "pruned eager": {"status": "failed"}})
    )
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record | {"verdict": ["four times"]}), encoding="utf-8")
    folder = attacked()
    (bench,) = collect([folder], [file]).benches
    assert [(row.candidate, row.gain, row.status) for row in bench.rows] == [
        ("dense eager", 1.0, "timed"),
        ("pruned optimize", 4.0, "timed"),
        ("pruned eager", None, "failed"),
    ]
    assert bench.machine == "Made-up 9000, 2 threads, torch 2.9"
    assert bench.verdict == ("four times",)
    # in the folder it is found by itself
    (folder / "model.json").write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    assert len(collect([folder]).benches) == 1
    for text in ("{", '{"kind": "spmm"}', '{"kind": "model", "cases": [{"results": [1]}], "candidates": 4}'):
        file.write_text(text, encoding="utf-8")
        (bench,) = collect([attacked(f"x{len(text)}")], [file]).benches
        assert bench.problems
        assert bench.rows == ()


def test_an_average(tmp_path: Path, made: Path) -> None:
    from tiny_checkpoint import build_checkpoint

    import pyprune

    members = [build_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    model = only(pyprune.soup(members, uniform=True).save(tmp_path / "average"))
    assert (model.kind, model.method) == ("average", "average, uniform")
    assert model.data["member 1"].startswith(f"{members[0]}, used, no score, sha256 ")
    assert model.problems == ()


def test_paths_that_are_not_there(tmp_path: Path, made: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="there is no file"):
        collect([made / "akr-75"], [tmp_path / "nowhere.json"])
    (tmp_path / "empty").mkdir()
    assert "neither a model nor a record" in only(tmp_path / "empty").problems[0]
