# SPDX-License-Identifier: Apache-2.0
"""Cases, candidates and what is done with those that are wrong; never how long anything takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyprune import bench
from pyprune.bench import registry, report, spmm
from pyprune.errors import InputError
from pyprune.patterns import NM, Block

QUICK = {"rounds": 1, "seconds": None}


def results(case: spmm.Case, *names: str) -> dict[str, Any]:
    chosen = {name: candidate for name, candidate in registry.candidates().items() if not names or name in names}
    usable = {name: candidate for name, candidate in chosen.items() if candidate.missing() is None}
    found: dict[str, Any] = spmm.measure(case, usable, rounds=1, seconds=0.0, seed=0)["results"]
    return found


def only(case: spmm.Case, prepare: Callable[..., Any]) -> dict[str, Any]:
    bench.register("mine", prepare)
    return dict(results(case, "mine")["mine"])


def test_all_combinations() -> None:
    cases = bench.parse_cases([(8, 4), (4, 8)], [1, 3], [0.5, 0.75], ["float32", "int8"])
    assert len(cases) == len({json.dumps(case.to_dict()) for case in cases}) == 16
    assert cases[0].to_dict() == {
        "shape": [8, 4],
        "tokens": 1,
        "sparsity": 0.5,
        "kept": 16,
        "dtype": "float32",
        "pattern": "unstructured",
        "weights": "cached",
    }


def test_patterns() -> None:
    (groups,) = bench.parse_cases([(8, 8)], [1], [0.1, 0.2], pattern="2:4")
    assert groups.pattern == NM(2, 4)
    assert (groups.to_dict()["pattern"], groups.to_dict()["sparsity"]) == ("2:4", 0.5)
    blocks = bench.parse_cases([(8, 8)], [1], [0.5, 0.75], pattern="block:4x2", streamed=True)
    assert blocks[1].pattern == Block(4, 2, 0.75)
    assert (blocks[1].to_dict()["pattern"], blocks[1].to_dict()["weights"]) == ("4x2 blocks", "streamed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": [0]}, "tokens must be at least 1"),
        ({"tokens": []}, "tokens must be at least 1"),
        ({"shapes": [(4, -1)]}, "shapes must be at least 1"),
        ({"sparsities": [1.5]}, "outside 0 to 1"),
        ({"sparsities": []}, "no sparsity"),
        ({"dtypes": ["float8"]}, "unknown dtype 'float8'"),
        ({"dtypes": []}, "no dtype"),
        ({"pattern": "2:5"}, "2:5 does not fit"),
        ({"pattern": "diagonal"}, "not understood"),
        ({"pattern": "block:5x5"}, "blocks of 5x5 do not fit"),
    ],
)
def test_bad_cases(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench.parse_cases(**arguments)
    with pytest.raises(InputError, match="no cases"):
        bench.run_spmm([])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:4x4"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_every_candidate_is_right(dtype: str, pattern: str, tokens: int) -> None:
    (case,) = bench.parse_cases([(12, 16)], [tokens], [0.75], [dtype], pattern)
    found = results(case)
    assert found["pyprune"]["status"] == "timed"
    assert found["pyprune"]["error"] < spmm.LIMITS[dtype] / 3
    expected = {
        "float32": {"torch.linear", "torch.csr"},
        "bfloat16": {"torch.linear", "torch.float32"},
        "int8": {"torch.int8", "torch.float32"},
    }[dtype]
    timed = {name for name, result in found.items() if result["status"] == "timed"}
    assert expected <= timed
    assert not [name for name, result in found.items() if result["status"] == "wrong"]
    assert ("torch.bsr" in timed) == (dtype == "float32" and pattern.startswith("block"))
    for name in timed:
        assert found[name]["median"] > 0
        assert found[name]["rounds"] == 1


def test_problems_have_the_pattern_and_are_the_same_again() -> None:
    (case,) = bench.parse_cases([(8, 32)], [4], [0.9], ["int8"])
    problem, x = spmm.make_problem(case, 3)
    again, _ = spmm.make_problem(case, 3)
    other, _ = spmm.make_problem(case, 4)
    assert torch.equal(problem.weight, again.weight)
    assert not torch.equal(problem.weight, other.weight)
    assert int(problem.mask.sum()) == case.to_dict()["kept"] == 26
    assert not problem.weight[~problem.mask].any()
    assert x.shape == (4, 32)
    # rounding to int8 by rows loses nothing
    step = problem.weight.abs().amax(1, keepdim=True) / 127
    whole = problem.weight / step.where(step > 0, 1.0)
    assert torch.allclose(whole, whole.round(), atol=1e-4)


def correct(weight: Tensor, mask: Tensor, tokens: int, dtype: torch.dtype) -> Any:
    return lambda x: x @ weight.T


def test_a_kernel_of_ones_own() -> None:
    (case,) = bench.parse_cases([(8, 16)], [2], [0.5])
    seen: list[tuple[Any, ...]] = []

    def prepare(weight: Tensor, mask: Tensor, tokens: int, dtype: torch.dtype) -> Any:
        seen.append((weight.shape, mask.dtype, tokens, dtype, bool((weight[~mask] == 0).all())))
        return correct(weight, mask, tokens, dtype)

    assert only(case, prepare)["status"] == "timed"
    assert seen == [((8, 16), torch.bool, 2, torch.float32, True)]
    record = bench.run_spmm([case], names=["torch.linear"], **QUICK)
    assert set(record["candidates"]) == {"pyprune", "mine", "torch.linear"}
    assert record["candidates"]["mine"]["kind"] == "registered"
    assert any(line.startswith("mine, float32") for line in record["verdict"])


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (None, "skipped", "not served"),
        ((None, "only on Sundays"), "skipped", "only on Sundays"),
        (7, "failed", "neither a callable"),
        (lambda x: x.new_full((2, 8), float("nan")), "wrong", "NaN"),
        (lambda x: x.new_zeros(8, 2), "wrong", "instead of"),
        (lambda x: "y", "wrong", "returned str"),
        (lambda x: 1 / 0, "failed", "ZeroDivisionError"),
    ],
)
def test_kernels_that_do_not_serve_or_are_wrong(answer: Any, status: str, words: str) -> None:
    (case,) = bench.parse_cases([(8, 16)], [2], [0.5])
    found = only(case, lambda *_: answer)
    assert found["status"] == status
    assert words in found["reason"]
    assert "median" not in found


def test_one_weight_that_is_missing_is_noticed() -> None:
    def prepare(weight: Tensor, mask: Tensor, tokens: int, dtype: torch.dtype) -> Any:
        weight = weight.clone()
        row, column = mask.nonzero()[0].tolist()
        weight[row, column] = 0.0
        return lambda x: x @ weight.T

    for dtype in ("float32", "bfloat16"):
        (case,) = bench.parse_cases([(16, 32)], [8], [0.5], [dtype])
        found = only(case, prepare)
        assert found["status"] == "wrong"
        assert found["error"] > found["limit"]


def test_inputs_must_stay_as_they_are() -> None:
    def prepare(weight: Tensor, *_: Any) -> Any:
        return lambda x: x.mul_(2.0) @ weight.T / 2.0

    (case,) = bench.parse_cases([(8, 16)], [2], [0.5])
    assert only(case, prepare)["reason"] == "changed its input"


def test_streamed_weights_are_copies_larger_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spmm, "last_level_cache", lambda: 10_000)
    weights: list[int] = []
    used: set[int] = set()

    def prepare(weight: Tensor, *_: Any) -> Any:
        weights.append(weight.data_ptr())

        def call(x: Tensor) -> Tensor:
            used.add(weight.data_ptr())
            return x @ weight.T

        return bench.Prepared(call, nbytes=4_000)

    (case,) = bench.parse_cases([(8, 16)], [2], [0.5], streamed=True)
    found = only(case, prepare)
    assert found["copies"] == 6  # five hold twice the cache
    assert len(set(weights)) == 6
    assert used == set(weights)
    # a kernel that does not say how large it is might be as small as a bitmask and the values
    assert only(case, correct)["copies"] == 1 + -(-20_000 // (64 * 4 + 16))


def test_names() -> None:
    with pytest.raises(InputError, match="already"):
        bench.register("scipy", correct)
    with pytest.raises(InputError, match="without commas"):
        bench.register("a,b", correct)
    with pytest.raises(InputError, match="no candidate called 'nobody'"):
        registry.choose(["nobody"])
    bench.register("mine", correct)
    bench.register("mine", correct)
    assert list(bench.candidates())[:2] == ["pyprune", "mine"]
    bench.unregister("mine")
    assert "mine" not in bench.candidates()


def test_what_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    chosen, missing = registry.choose(None)
    assert missing["scipy"] == "not installed: scipy"
    assert "pyprune" in chosen
    assert "scipy" not in chosen
    with pytest.raises(InputError, match="scipy cannot take part"):
        registry.choose(["scipy"])


def test_interrupted_it_keeps_what_was_measured(tmp_path: Any) -> None:
    cases = bench.parse_cases([(8, 16)], [1, 2, 3], [0.5])

    def prepare(weight: Tensor, mask: Tensor, tokens: int, dtype: torch.dtype) -> Any:
        if tokens == 3:
            raise KeyboardInterrupt
        return correct(weight, mask, tokens, dtype)

    bench.register("mine", prepare)
    record = bench.run_spmm(cases, names=["torch.linear"], **QUICK)
    assert record["interrupted"]
    assert [case["tokens"] for case in record["cases"]] == [1, 2]
    report.write(record, tmp_path / "new" / "spmm.json")
    assert json.loads((tmp_path / "new" / "spmm.json").read_text(encoding="utf-8")) == json.loads(json.dumps(record))


def test_the_layout_is_as_documented() -> None:
    record = bench.run_spmm(bench.parse_cases([(8, 16)], [1], [0.5]), names=["torch.linear", "torch.int8"], **QUICK)
    text = str(report.__doc__)
    case = record["cases"][0]
    keys = {*record, *case, *(key for result in case["results"].values() for key in result)}
    assert {key for key in keys if f"``{key}``" not in text} == set()
    assert case["results"]["torch.int8"]["status"] == "skipped"
    assert list(record)[-1] == "cases"
