# SPDX-License-Identifier: Apache-2.0
"""Pruned heads and neurons through the whole path: ``prune``, saved smaller or with zeros, exported, loaded again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyprune
from pyprune.errors import InputError
from pyprune.methods import KPrune, UnitMagnitude
from pyprune.result import export, load_masks, load_report, load_units

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]

# What a fresh process is asked for: outputs of saved models.
_AGAIN = """
import sys, torch, pyprune
for folder in sys.argv[1:]:
    with torch.inference_mode():
        output = pyprune.load(folder)(**torch.load(folder + "/batch.pt"))
    torch.save([value for value in output.values()], folder + "/outputs.pt")
"""


def _outputs(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return list(model.eval()(**batch).values())


def _same(one: nn.Module, other: nn.Module, batches: list[dict[str, Tensor]], *, atol: float = 1e-5) -> None:
    for batch in batches:
        for got, wanted in zip(_outputs(one, batch), _outputs(other, batch), strict=True):
            assert bool(torch.isfinite(wanted).all())
            torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def _equal(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def _size(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("family", "head", "method"),
    [
        ("bert", "classification", "kprune"),
        ("distilbert", "qa", "kprune"),
        ("roberta", "classification", "kwon"),
        ("distilbert", "classification", "unit-magnitude"),
    ],
)
def test_saved_both_ways(tiny: Tiny, batches_of: Batches, tmp_path: Path, family: str, head: str, method: str) -> None:
    model, batches = tiny(family, head), batches_of(count=2)
    result = pyprune.prune(model, batches, method=method, target_flops=0.3)
    assert isinstance(result, pyprune.PruneResult)
    units = result.units
    assert units is not None
    small, plain = result.save(tmp_path / "small"), result.save(tmp_path / "plain", storage="dense")
    assert _size(small) < _size(plain)
    loaded = pyprune.load(small)
    _same(loaded, result.model, batches)
    _equal(loaded, result.compact())
    assert load_report(small) == load_report(plain) == result.report
    assert load_units(small) == load_units(plain) == units
    with pytest.raises(InputError, match="no masks"):
        load_masks(small)
    masks = load_masks(plain)
    assert all(torch.equal(masks[name], mask) for name, mask in result.masks.items())

    # with the zeros plain transformers has it
    zeros = type(model).from_pretrained(plain)  # type: ignore[attr-defined]
    _equal(zeros, result.model)
    for name, mask in masks.items():
        assert not bool(zeros.get_submodule(name).weight[~mask].any())

    # from one storage to the other and back
    _equal(type(model).from_pretrained(export(small, tmp_path / "again", storage="dense")), zeros)  # type: ignore[attr-defined]
    assert load_masks(tmp_path / "again").keys() == masks.keys()
    back = export(plain, tmp_path / "cut", storage="compact")
    assert (back / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()
    for folder, storage, message in (
        (small, "compact", "compact already"),
        (plain, "dense", "dense already"),
        (small, "sparse", "no masks of weights"),
    ):
        with pytest.raises(InputError, match=message):
            export(folder, tmp_path / "no", storage=storage)
    sparse = pyprune.load(export(plain, tmp_path / "sparse", storage="sparse"))
    _same(sparse, result.model, batches)


def test_a_compact_model_alone_gets_its_zeros_back(tiny: Tiny, batches_of: Batches) -> None:
    from pyprune.structured import expand

    model, batches = tiny("bert"), batches_of(count=2)
    result = pyprune.prune(model, batches, method="unit-magnitude", target_flops=0.3)
    small = result.compact()
    _equal(expand(small, result.units), result.model)
    first = expand(small)  # where its units were nobody says; in the first places they compute the same
    _same(first, small, batches)
    assert not hasattr(first.config, "pyprune")
    with pytest.raises(InputError, match="not compact"):
        expand(model)
    with pytest.raises(InputError, match="not those of this model"):
        expand(small, pyprune.prune(model, batches, method="unit-magnitude", target_flops=0.6).units)
    with pytest.raises(InputError, match="compact already"):
        pyprune.prune(small, batches, method="kprune", target_flops=0.5)


EDGES = {
    "no heads in a layer": {"heads": (0,)},
    "no neurons in a layer": {"neurons": (1,)},
    "one head left": {"heads": (0, 1), "keep": 1},
    "nothing left": {"heads": (0, 1), "neurons": (0, 1)},
}


def _fade(model: Any, family: str, edge: dict[str, Any]) -> None:
    """Make heads and neurons of some layers nearly nothing, so that magnitudes let them go first."""
    blocks = model.bert.encoder.layer if family == "bert" else model.distilbert.transformer.layer
    with torch.no_grad():
        for layer in edge.get("heads", ()):
            attention = blocks[layer].attention
            out = attention.output.dense if family == "bert" else attention.out_lin
            reads = (
                [attention.self.query, attention.self.key, attention.self.value]
                if family == "bert"
                else [attention.q_lin, attention.k_lin, attention.v_lin]
            )
            first = 8 * edge.get("keep", 0) if layer else 0
            out.weight[:, first:] *= 1e-4
            for linear in reads:
                linear.weight[first:] *= 1e-4
        for layer in edge.get("neurons", ()):
            wide, narrow = (
                (blocks[layer].intermediate.dense, blocks[layer].output.dense)
                if family == "bert"
                else (blocks[layer].ffn.lin1, blocks[layer].ffn.lin2)
            )
            wide.weight *= 1e-4
            narrow.weight *= 1e-4


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_edges_in_a_fresh_process(tiny: Tiny, batches_of: Batches, tmp_path: Path, family: str) -> None:
    """All heads of a layer gone, all neurons, one head left, nothing left, one token, half precision."""
    batches = batches_of(count=2)
    token = [{"input_ids": torch.tensor([[7]]), "attention_mask": torch.tensor([[1]])}]
    wanted: dict[str, list[Tensor]] = {}

    def run(name: str, model: nn.Module, data: list[dict[str, Tensor]], method: Any, share: float) -> pyprune.Units:
        result = pyprune.prune(model, data, method=method, target_flops=share)
        folder = result.save(tmp_path / name)
        wanted[name] = _outputs(result.model, data[0])
        torch.save(data[0], folder / "batch.pt")
        assert result.units is not None
        return result.units

    kept: dict[str, pyprune.Units] = {}
    for name, edge in EDGES.items():
        model = tiny(family)
        _fade(model, family, edge)
        share = {"one head left": 0.42, "nothing left": 0.0}.get(name, 0.5)
        for method in (UnitMagnitude(), KPrune()):
            kept[f"{method.name} {name}"] = run(
                f"{method.name} {name}", model, data=batches, method=method, share=share
            )
    magnitudes = {name: kept[f"unit-magnitude {name}"].shapes for name in EDGES}
    assert magnitudes["no heads in a layer"][0].value == ()
    assert magnitudes["no neurons in a layer"][1].neurons == 0
    assert [len(shape.value) for shape in magnitudes["one head left"]] == [0, 1]
    assert all(shape.value == () and shape.neurons == 0 for shape in magnitudes["nothing left"])
    assert all(shape.value == () and shape.neurons == 0 for shape in kept["kprune nothing left"].shapes)
    for method in ("kprune", "kwon", "unit-magnitude"):
        run(f"{method} one token", tiny(family), token, method, 0.5)
    halves = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    for name, dtype in halves.items():
        run(name, tiny(family).to(dtype), batches, "kprune", 0.4)

    folders = [str(tmp_path / name) for name in wanted]
    subprocess.run([sys.executable, "-c", _AGAIN, *folders], check=True, timeout=300)
    for name, outputs in wanted.items():
        again = torch.load(tmp_path / name / "outputs.pt")
        atol = {"float16": 2e-3, "bfloat16": 2e-2}.get(name, 1e-5)
        assert len(again) == len(outputs)
        for got, want in zip(again, outputs, strict=True):
            assert got.dtype == want.dtype == halves.get(name, torch.float32)
            assert bool(torch.isfinite(want).all()), name
            torch.testing.assert_close(got, want, rtol=0, atol=atol, msg=name)


def test_what_does_not_go_together(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model, batches = tiny("bert"), batches_of(count=1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "kprune"}, "exactly one target"),
        ({"method": "kprune", "sparsity": 0.5}, r"sparsity cannot go with kprune"),
        ({"method": "kwon", "pattern": "2:4", "target_flops": 0.5}, r"pattern cannot go with kwon"),
        ({"method": KPrune(), "solver": "obs", "rectify": True, "target_flops": 0.5}, "solver and rectify cannot"),
        ({"method": "kprune", "spill": tmp_path, "target_flops": 0.5}, "spill cannot"),
        ({"method": "kwon", "damping": 0.1, "target_flops": 0.5}, "kwon has no ridge"),
        ({"method": "akr", "target_flops": 0.5}, "target_flops cannot go with akr"),
        ({"method": "magnitude", "target_macs": 0.5}, "unit-magnitude"),
        ({"method": "kprune", "target_flops": 40}, "from 0 to 1"),
        ({"method": "kprune", "target_flops": 0.5, "resume": True}, "resume needs a journal"),
        ({"method": 3, "target_flops": 0.5}, "method is a name"),
        ({"method": "kpruned"}, "unknown method"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            pyprune.prune(model, batches, **options)
    weights = pyprune.prune(model, batches, method="magnitude", sparsity=0.5)
    with pytest.raises(InputError, match="nothing to cut out"):
        weights.save(tmp_path / "out", storage="compact")
    assert load_units(weights.save(tmp_path / "dense")) is None
    with pytest.raises(InputError, match="has all its heads and neurons"):
        export(tmp_path / "dense", tmp_path / "out", storage="compact")
    assert not (tmp_path / "out").exists()


def test_the_ridge_reaches_kprune(tiny: Tiny, batches_of: Batches) -> None:
    result = pyprune.prune(tiny("bert"), batches_of(count=1), method="kprune", target_macs=0.5, damping=0.25)
    assert {layer["damping"] for layer in result.report["layers"]} <= {0.25, 0.0}
    assert result.report["settings"]["damping"] == 0.25


@pytest.mark.parametrize("damage", ["{", "[]", '{"hidden": 32}'])
def test_damaged_units_are_refused(tiny: Tiny, batches_of: Batches, tmp_path: Path, damage: str) -> None:
    result = pyprune.prune(tiny("bert", layers=1), batches_of(count=1), method="unit-magnitude", target_flops=0.5)
    folder = result.save(tmp_path / "small")
    (folder / "pyprune_units.json").write_text(damage, encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be read|not a description"):
        export(folder, tmp_path / "plain", storage="dense")
    _same(pyprune.load(folder), result.model, batches_of(count=1))


def test_report_counts_what_is_gone(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert")
    result = pyprune.prune(model, batches_of(count=2), method="kwon", target_parameters=0.4)
    report, small = result.report, result.compact()

    def size(one: nn.Module, part: str = "") -> int:
        return sum(value.numel() for name, value in one.named_parameters() if part in name)

    for name, part in (("all_parameters", ""), ("encoder_parameters", "encoder.layer")):
        count = report["counts"][name]
        assert count == {"removed": size(model, part) - size(small, part), "total": size(model, part)}
    linear = report["counts"]["linear_weights"]
    assert linear["removed"] == sum(int((~mask).sum()) for mask in result.masks.values())
    assert linear["total"] == sum(mask.numel() for mask in result.masks.values())
    assert report["left"]["parameters"] == report["budget"]["reached"] / report["budget"]["dense"] <= 0.4
    units = report["counts"]["heads_and_neurons"]
    assert units["removed"] == sum(layer["units"] - layer["kept"] for layer in report["layers"])
    assert "at most 40 % of the parameters" in report["pattern"]
    assert report["mean_error"] > 0


def test_plan(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    model, batches = tiny("bert"), batches_of(count=2)
    plans = {
        method: pyprune.prune(
            model, batches, method=method, target_flops=0.4, dry_run=True, journal=tmp_path / "journal"
        )
        for method in ("kprune", "kwon", "unit-magnitude")
    }
    for method, result in plans.items():
        assert result.dry_run
        assert result.model is model
        plan = result.report["plan"]
        real = pyprune.prune(model, batches, method=method, target_flops=0.4).report
        assert plan["budget"].items() <= real["budget"].items()
        assert [(one["name"], one["units"]) for one in plan["layers"]] == [
            (one["name"], one["units"]) for one in real["layers"]
        ]
        assert plan["memory"]["total"] == real["memory"]["planned"] > 0
    assert list(tmp_path.iterdir()) == []
