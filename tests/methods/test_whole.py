# SPDX-License-Identifier: Apache-2.0
"""Whole-model pruning: exact counts, the objective it minimises, padding, determinism, and what it leaves alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyprune
from pyprune.errors import InputError, NumericsError
from pyprune.methods.request import RECIPES
from pyprune.models import adapter_for
from pyprune.models.replay import quiet
from pyprune.models.streams import DualStream
from pyprune.patterns import kept_count, pattern_from_dict
from pyprune.solvers import LayerProblem
from pyprune.stats import Moments

Tiny = Callable[..., nn.Module]
Batches = Callable[..., list[dict[str, Tensor]]]
METHODS = ("akr", "magnitude", "wanda", "sparsegpt", "obs")


def _logits(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in batches])


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_akr_in_every_family(tiny: Tiny, batches_of: Batches, kind: tuple[str, str], attention: str) -> None:
    model = tiny(*kind, attention=attention)
    before = _state(model)
    result = pyprune.prune(model, batches_of(), sparsity=0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(result.masks) == len(result.report["layers"]) == 2 * sum(map(len, adapter_for(model).groups))
    for record in result.report["layers"]:
        weight, mask = result.model.get_parameter(record["name"] + ".weight"), result.masks[record["name"]]
        assert bool((weight[~mask] == 0).all())
        assert bool((mask.sum(dim=1) == kept_count(weight.shape[1], 0.5)).all())
        assert record["kept"] == int(mask.sum())
        assert 0 < record["error"] < 1
    changed = {name for name, value in result.model.state_dict().items() if not torch.equal(before[name], value)}
    linears = {f"{name}.{part}" for name in result.masks for part in ("weight", "bias")}
    assert changed <= linears  # nothing else moved: embeddings, norms, pooler, head
    json.dumps(result.report, allow_nan=False)


def test_tied_embeddings_stay_tied(tiny: Tiny, batches_of: Batches, tmp_path: Path) -> None:
    for family in ("llama", "opt"):
        model = tiny(family, "lm", tie_word_embeddings=True)
        result = pyprune.prune(model, batches_of(), method="magnitude")
        for tied in (result.model, pyprune.load(result.save(tmp_path / family))):
            words = tied.get_input_embeddings().weight
            assert tied.get_output_embeddings().weight is words
            assert torch.equal(words, model.get_input_embeddings().weight)  # type: ignore[operator]
        counts = result.report["counts"]
        outside = counts["all_parameters"]["total"] - counts["encoder_and_embeddings"]["total"]
        assert outside == sum(
            p.numel() for name, p in model.named_parameters() if "layers." not in name and p.dim() == 1
        )


def test_hidden_states_wider_than_words(tiny: Tiny, batches_of: Batches) -> None:
    # OPT-350M: words are projected up, and norms come after the halves of a block.
    model = tiny("opt", "lm", word_embed_proj_dim=16, do_layer_norm_before=False)
    report = pyprune.prune(model, batches_of(8), sparsity=0.5).report
    assert report["mean_error"] < 0.5
    counts = report["counts"]
    inside = sum(p.numel() for name, p in model.named_parameters() if "embed" in name or "project_in" in name)
    assert counts["encoder_and_embeddings"]["total"] == counts["encoder_parameters"]["total"] + inside


def test_products_are_counted_with_the_keys_a_query_meets(tiny: Tiny, batches_of: Batches) -> None:
    batches = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches_of(1, tokens=11)]
    counts = pyprune.prune(tiny("llama", "lm", layers=1), batches, method="magnitude").report["counts"]
    weights = counts["linear_weights"]["total"]
    assert weights == 32 * 32 * 2 + 16 * 32 * 2 + 3 * 48 * 32
    assert counts["encoder_macs"]["total"] - weights == 2 * 6 * 32  # (1 + … + 11) / 11 keys, for scores and contexts
    assert counts["encoder_without_norms"]["total"] == weights
    assert counts["heads_and_neurons"]["total"] == 4 + 48


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.875])
def test_counts_are_exact(tiny: Tiny, batches_of: Batches, method: str, sparsity: float) -> None:
    result = pyprune.prune(tiny("bert", layers=1), batches_of(2), method=method, sparsity=sparsity)
    scope = "layer" if method in ("magnitude", "sparsegpt") else "row"
    for mask in result.masks.values():
        rows, cols = mask.shape
        if scope == "row":
            assert bool((mask.sum(dim=1) == kept_count(cols, sparsity)).all())
        else:
            assert int(mask.sum()) == kept_count(rows * cols, sparsity)
    counts = result.report["counts"]["linear_weights"]
    assert counts["removed"] == sum(int((~mask).sum()) for mask in result.masks.values())
    assert result.report["sparsity"]["linear_weights"] == pytest.approx(sparsity, abs=0.02)
    assert result.report["sparsity"]["all_parameters"] < result.report["sparsity"]["encoder_parameters"] < sparsity


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["2:4", "8:16", pyprune.NM(1, 8)])
def test_groups_are_not_over_pruned(tiny: Tiny, batches_of: Batches, method: str, pattern: Any) -> None:
    result = pyprune.prune(tiny("bert", layers=1), batches_of(2), method=method, pattern=pattern)
    keep, of = (pattern.keep, pattern.of) if isinstance(pattern, pyprune.NM) else map(int, pattern.split(":"))
    for name, mask in result.masks.items():
        assert bool((mask.reshape(-1, of).sum(dim=1) == keep).all())
        if method != "magnitude":  # survivors of a full group stay: they are zero nowhere
            assert int((result.model.get_parameter(name + ".weight") != 0).sum()) == int(mask.sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["block:4x4:0.5", pyprune.Block(8, 1, 0.7, "row")])
def test_whole_blocks_go(tiny: Tiny, batches_of: Batches, method: str, pattern: Any) -> None:
    result = pyprune.prune(tiny("bert", layers=1), batches_of(2), method=method, pattern=pattern)
    wanted = pyprune.Block(4, 4, 0.5) if isinstance(pattern, str) else pattern
    for name, mask in result.masks.items():
        assert wanted.holds(mask), name
        assert not bool(result.model.get_parameter(name + ".weight")[~mask].any())
    assert result.report["pattern"] == wanted.describe()
    assert pattern_from_dict(result.report["settings"]["pattern"]) == wanted
    assert result.report["sparsity"]["linear_weights"] == pytest.approx(wanted.sparsity, abs=0.02)


def test_blocks_that_do_not_fit_name_the_layer(tiny: Tiny, batches_of: Batches) -> None:
    with pytest.raises(InputError, match=r"encoder\.layer\.0\.attention\.self\.query: blocks of 4x5 do not fit"):
        pyprune.prune(tiny("bert", layers=1), batches_of(1), pattern="block:4x5:0.5")
    with pytest.raises(InputError, match="sparsity and pattern disagree"):
        pyprune.prune(tiny("bert", layers=1), batches_of(1), pattern="block:4x4:0.5", sparsity=0.6)


@pytest.mark.parametrize("method", METHODS)
def test_no_sparsity_changes_no_output(tiny: Tiny, batches_of: Batches, method: str) -> None:
    model, batches = tiny("roberta"), batches_of(40)
    result = pyprune.prune(model, batches, method=method, sparsity=0.0)
    torch.testing.assert_close(_logits(result.model, batches), _logits(model, batches), rtol=1e-4, atol=1e-4)
    assert result.report["mean_error"] < 1e-7
    assert result.report["sparsity"]["linear_weights"] == 0.0


def test_everything_removed_is_a_bias(tiny: Tiny, batches_of: Batches) -> None:
    result = pyprune.prune(tiny("bert", layers=1), batches_of(), method="magnitude", sparsity=1.0)
    assert result.report["sparsity"]["heads_and_neurons"] == 1.0
    assert all(not mask.any() for mask in result.masks.values())


def test_equal_streams_rectify_to_the_dense_weight(tiny: Tiny, batches_of: Batches) -> None:
    model, batches = tiny("bert"), batches_of(40)
    adapter = adapter_for(model)
    block = adapter.blocks(model)[0]
    linears = adapter.linears(block)
    with quiet(model), DualStream(model, adapter, batches) as stream:
        for index, group in enumerate(adapter.groups):
            members = {name: linears[name] for name in group}
            first = members[group[0]]
            moments = Moments(first.in_features, {name: linear.out_features for name, linear in members.items()})
            for inputs, outputs, keep in stream.group(block, block, index):
                moments.add(inputs, outputs, keep)
            problems = RECIPES["akr"].problems(moments.finish(), members, {name: name for name in group})
            for name, problem in problems.items():
                # What float32 leaves undecided in directions that hardly any token takes does not reach the output.
                dense = members[name].weight.double()
                change = problem.start(1e-4) - dense
                assert float(change.abs().max()) < 5e-3
                energy = float(((dense @ problem.gram) * dense).sum())
                assert float(((change @ problem.gram) * change).sum()) < 1e-10 * energy
                bias = RECIPES["akr"].bias(moments, name, members[name], members[name].weight)
                assert bias is not None
                torch.testing.assert_close(bias, members[name].bias.double(), rtol=1e-4, atol=1e-5)


def test_reported_error_is_the_distance_between_the_models(tiny: Tiny, batches_of: Batches) -> None:
    # Measured again with plain hooks on the finished models: the input of a linear in the pruned model depends on
    # layers below only, so that its error can be seen after the run.
    model, batches = tiny("electra", structured=True), batches_of(8)
    for method in METHODS:
        result = pyprune.prune(model, batches, method=method, sparsity=0.5)
        for record in result.report["layers"]:
            both = []
            for owner in (model, result.model):
                seen: list[Tensor] = []
                handle = owner.get_submodule(record["name"]).register_forward_hook(
                    lambda _, __, out, seen=seen: seen.append(out)
                )
                _logits(owner, batches)
                handle.remove()
                keeps = [batch["attention_mask"].bool() for batch in batches]
                both.append(torch.cat([out[keep] for out, keep in zip(seen, keeps, strict=True)]).double())
            want = float((both[0] - both[1]).square().sum() / both[0].square().sum())
            assert record["error"] == pytest.approx(want, rel=1e-3, abs=3e-7)


def test_akr_beats_the_others(tiny: Tiny, batches_of: Batches) -> None:
    model, batches = tiny("bert", layers=3, structured=True), batches_of(40)
    errors = {
        method: pyprune.prune(model, batches, method=method, sparsity=0.6).report["mean_error"] for method in METHODS
    }
    assert errors["akr"] <= errors["obs"] <= errors["sparsegpt"] <= errors["magnitude"]
    swept = pyprune.prune(model, batches, method="akr", solver="sparsegpt", sparsity=0.6).report["mean_error"]
    assert errors["akr"] <= swept <= errors["sparsegpt"]


def test_rectify_and_solver_are_options(tiny: Tiny, batches_of: Batches) -> None:
    model, batches = tiny("bert"), batches_of()
    plain = pyprune.prune(model, batches, method="akr", rectify=False)
    obs = pyprune.prune(model, batches, method="obs")
    assert _same(plain.model, obs.model)
    assert plain.report["settings"]["rectify"] is False
    wanda = pyprune.prune(model, batches, solver="wanda")
    assert wanda.report["solver"] == "wanda"
    assert wanda.report["method"] == "akr"


def test_what_padding_holds_does_not_matter(tiny: Tiny, batches_of: Batches) -> None:
    model, batches = tiny("bert"), batches_of()
    other = [
        {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 57)} for batch in batches
    ]
    wide = [{key: nn.functional.pad(value, (0, 9)) for key, value in batch.items()} for batch in batches]
    one, two, three = (pyprune.prune(model, given, sparsity=0.5) for given in (batches, other, wide))
    errors = [[layer["error"] for layer in result.report["layers"]] for result in (one, two, three)]
    tokens = [result.report["data"]["tokens"] for result in (one, two, three)]
    assert tokens == tokens[:1] * 3
    # What stands in padding never enters: not a bit may change.
    assert errors[0] == errors[1]
    assert _same(one.model, two.model)
    # Another width rounds attention otherwise; a near tie may then fall the other way, and change all that follows.
    assert errors[2][:4] == pytest.approx(errors[0][:4], rel=1e-4)
    assert one.report["mean_error"] == pytest.approx(three.report["mean_error"], rel=0.02)
    torch.testing.assert_close(_logits(one.model, batches), _logits(three.model, batches), rtol=0.05, atol=0.05)


def test_how_sentences_are_batched_does_not_matter(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert", layers=1)
    rows = [
        {key: value[row : row + 1] for key, value in batch.items()}
        for batch in batches_of()
        for row in range(len(batch["input_ids"]))
    ]
    one = pyprune.prune(model, batches_of(), sparsity=0.5).report
    two = pyprune.prune(model, rows, sparsity=0.5).report
    assert one["data"]["sentences"] == two["data"]["sentences"]
    assert one["mean_error"] == pytest.approx(two["mean_error"], rel=0.02)


def test_same_bits_again_and_no_global_state(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("distilbert")
    model.train()  # dropout would show
    random, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    one = pyprune.prune(model, batches_of(), sparsity=0.5)
    two = pyprune.prune(model, batches_of(), sparsity=0.5)
    assert _same(one.model, two.model)
    assert all(torch.equal(one.masks[name], two.masks[name]) for name in one.masks)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_float32_matmul_precision() == precision
    assert torch.is_grad_enabled()
    assert model.training


def test_half_precision_comes_back_as_it_went(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert").half()
    result = pyprune.prune(model, batches_of(), sparsity=0.5)
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float16}
    assert model.get_parameter("classifier.weight").dtype == torch.float16
    full = pyprune.prune(copy.deepcopy(model).float(), batches_of(), sparsity=0.5)
    assert all(torch.equal(full.masks[name], result.masks[name]) for name in full.masks)


def test_inplace_and_spill_give_the_same_bits(
    tiny: Tiny, batches_of: Batches, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tiny("bert")
    want = pyprune.prune(model, batches_of())
    spilled = pyprune.prune(model, batches_of(), spill=tmp_path_factory.mktemp("spill"))
    assert _same(want.model, spilled.model)
    twin = copy.deepcopy(model)
    result = pyprune.prune(twin, batches_of(), inplace=True)
    assert result.model is twin
    assert _same(want.model, twin)


def test_linears_without_bias(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert")
    for block in adapter_for(model).blocks(model):
        for linear in adapter_for(model).linears(block).values():
            linear.bias = None
    errors = {m: pyprune.prune(model, batches_of(20), method=m).report["mean_error"] for m in ("akr", "sparsegpt")}
    assert errors["akr"] < errors["sparsegpt"]


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_finite(tiny: Tiny, batches_of: Batches, method: str) -> None:
    model = tiny("bert")
    model.get_parameter("bert.encoder.layer.1.output.dense.weight").data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"layer\.1\.output\.dense"):
        pyprune.prune(model, batches_of(), method=method)


def test_activations_that_overflow_are_named(tiny: Tiny, batches_of: Batches) -> None:
    model = tiny("bert")
    model.get_parameter("bert.encoder.layer.0.intermediate.dense.weight").data.fill_(3e38)
    with pytest.raises(NumericsError, match=r"layer\.0\.(intermediate|output)\.dense"):
        pyprune.prune(model, batches_of())


def test_singular_layer_states_its_damping(tiny: Tiny, batches_of: Batches) -> None:
    # Three sentences cannot fill 48 dimensions: solved by the ridge, and said.
    result = pyprune.prune(tiny("bert"), batches_of(1, rows=3, tokens=6), damping=0.0)
    assert any("damping raised" in note for record in result.report["layers"] for note in record["notes"])
    assert any("fewer than" in note for note in result.report["notes"])
    assert all(record["damping"] > 0 for record in result.report["layers"])


def test_wrong_requests(tiny: Tiny, batches_of: Batches) -> None:
    model, batches = tiny("bert"), batches_of()
    requests: list[tuple[dict[str, Any], str]] = [
        ({"method": "best"}, r"unknown method 'best'[\s\S]*akr"),
        ({"solver": "magic"}, r"unknown solver 'magic'"),
        ({"sparsity": 1.2}, "outside 0 to 1"),
        ({"pattern": "2:5"}, r"layer\.0\.attention\.self\.query.*2:5"),
        ({"pattern": "2:4", "sparsity": 0.7}, "disagree"),
        ({"pattern": 3}, "must be a pattern"),
        ({"damping": -1.0}, "damping"),
        ({"resume": True}, "resume needs a journal"),
        ({"solver_options": {"speed": 3}}, "no option 'speed'"),
    ]
    for request, message in requests:
        with pytest.raises(InputError, match=message):
            pyprune.prune(model, batches, **request)
    with pytest.raises(InputError, match="must be a loaded model"):
        pyprune.prune("some/path", batches)  # type: ignore[arg-type]


def test_siblings_share_one_factorisation(tiny: Tiny, batches_of: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = LayerProblem.__init__

    def counted(self: LayerProblem, *args: Any, **kwargs: Any) -> None:
        made.append(kwargs.get("name"))
        original(self, *args, **kwargs)

    monkeypatch.setattr(LayerProblem, "__init__", counted)
    pyprune.prune(tiny("bert", layers=1), batches_of(2))
    assert len(made) == 4  # one gram for query, key and value
