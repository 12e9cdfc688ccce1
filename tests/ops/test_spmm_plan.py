# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from pyprune.errors import InputError
from pyprune.ops import spmm_plan
from pyprune.ops.spmm_plan import faster


def verdict(out, columns, density, tokens, dtype=torch.float32, isa="avx2") -> str:
    return faster(out, columns, density, dtype=dtype, tokens=tokens, isa=isa).format


# As measured, away from the crossovers: (shape, tokens, density that was faster, density that was slower).
@pytest.mark.parametrize(
    ("shape", "tokens", "wins", "loses"),
    [
        ((768, 3072), 1, 0.1, 0.5),
        ((3072, 768), 1, 0.1, 0.5),
        ((768, 768), 1, 0.1, 0.5),
        ((4096, 4096), 1, 0.3, 0.5),
        ((768, 3072), 128, 0.5, 1.0),
        ((384, 384), 128, 0.5, 1.0),
    ],
)
def test_agrees_with_what_was_measured(shape, tokens, wins, loses):
    assert verdict(*shape, wins, tokens) == "sparse"
    assert verdict(*shape, loses, tokens) == "dense"


# The same with windows, one core of a Zen 5: one token in float32 is even where everything is kept.
@pytest.mark.parametrize(
    ("dtype", "isa", "shape", "tokens", "wins", "loses"),
    [
        (torch.float32, "avx512bf16", (768, 768), 1, 0.5, None),
        (torch.float32, "avx512", (384, 384), 1, 0.5, None),
        (torch.float32, "avx512", (768, 3072), 8, 0.5, None),
        (torch.bfloat16, "avx512bf16", (768, 768), 1, 0.5, None),
        (torch.bfloat16, "avx512bf16", (3072, 768), 8, 0.5, 1.0),
        (torch.int8, "avx512bf16", (3072, 768), 1, 0.3, None),
    ],
)
def test_agrees_with_what_was_measured_with_windows(dtype, isa, shape, tokens, wins, loses):
    assert verdict(*shape, wins, tokens, dtype, isa) == "sparse"
    assert loses is None or verdict(*shape, loses, tokens, dtype, isa) == "dense"


# And with more tokens: float32 is ahead of torch's linear even where everything is kept.
@pytest.mark.parametrize(
    ("dtype", "shape", "tokens", "wins", "loses"),
    [
        (torch.float32, (384, 384), 32, 1.0, None),
        (torch.float32, (768, 3072), 128, 1.0, None),
        (torch.bfloat16, (768, 768), 128, 0.5, 0.8),
        (torch.bfloat16, (768, 3072), 32, 0.6, 1.0),
        (torch.bfloat16, (768, 3072), 16, 0.3, 0.8),
    ],
)
def test_agrees_with_what_was_measured_with_avx512(dtype, shape, tokens, wins, loses):
    assert verdict(*shape, wins, tokens, dtype, "avx512bf16") == "sparse"
    assert loses is None or verdict(*shape, loses, tokens, dtype, "avx512bf16") == "dense"


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512bf16"])
@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 32, 33, 500])
def test_less_density_never_turns_it_dense(tokens, isa):
    verdicts = [verdict(768, 768, density / 50, tokens, torch.bfloat16, isa) for density in range(51)]
    assert verdicts == sorted(verdicts, key=["sparse", "dense"].index)


def test_baseline_and_types():
    assert verdict(768, 3072, 0.6, 32) == "sparse"
    assert verdict(768, 3072, 0.6, 32, isa="baseline") == "dense"
    assert verdict(768, 3072, 0.1, 1, dtype=torch.int8) == "sparse"


def test_nothing_to_multiply():
    for sizes in ((0, 8), (8, 0), (0, 0)):
        assert faster(*sizes, 0.5, dtype=torch.float32, tokens=0, isa="avx2").format in ("sparse", "dense")


def test_says_why(monkeypatch):
    assert "10 % of 4 x 6 kept, 3 tokens" in faster(4, 6, 0.1, dtype=torch.int8, tokens=3).reason
    monkeypatch.setattr(spmm_plan.backends, "instructions", lambda: "none")
    got = faster(4096, 4096, 0.1, dtype=torch.float32, tokens=32)
    assert got.format == "dense"
    assert "missing" in got.reason


@pytest.mark.parametrize(
    ("arguments", "dtype", "words"),
    [
        ((-1, 4, 0.5, 1), torch.float32, "out of range"),
        ((4, 4, 1.5, 1), torch.float32, "density 1.5"),
        ((4, 4, 0.5, 1), torch.float64, "float64"),
    ],
)
def test_errors_say_what_was_seen(arguments, dtype, words):
    with pytest.raises(InputError, match=words):
        faster(*arguments[:3], tokens=arguments[3], dtype=dtype)
