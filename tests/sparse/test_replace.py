# SPDX-License-Identifier: Apache-2.0
"""sparsify replaces what should be sparse, leaves the rest, and says why."""

from __future__ import annotations

import copy

import pytest
import torch
from small import logits, pruned
from torch import nn

import pyprune
from pyprune.backends import Choice
from pyprune.errors import InputError
from pyprune.ops import spmm_plan
from pyprune.ops.spmm_plan import Verdict
from pyprune.sparse import SparseLinear, replace


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small are faster dense: half of the weights decide."""

    def faster(out: int, columns: int, density: float, **rest: object) -> Verdict:
        return Verdict("sparse" if density <= 0.5 else "dense", "")

    monkeypatch.setattr(replace, "faster", faster)


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize("family", ["bert", "distilbert", "llama"])
def test_models_of_a_known_family(family: str) -> None:
    result = pruned(family, "lm" if family == "llama" else "classification")
    before = copy.deepcopy(result.model.state_dict())
    model = pyprune.sparsify(result.model, masks=result.masks)
    torch.testing.assert_close(logits(model), logits(result.model), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in result.model.state_dict().items())
    kinds = {choice.format for choice in model.pyprune_sparse}
    assert kinds == {"bitmask", "nm", "block", None}
    for choice in model.pyprune_sparse:
        module = model.get_submodule(choice.name)
        assert isinstance(module, nn.Linear if choice.format is None else SparseLinear)
        assert module.bias is None or module.bias is not result.model.get_submodule(choice.name).bias
    assert "sparse is faster" in str(model.pyprune_sparse)
    assert "stays dense: it has no zeros" in str(model.pyprune_sparse)
    found = pyprune.sparsify(result.model)  # without masks: zeros of the blocks alone
    assert [choice.name for choice in found.pyprune_sparse] == [choice.name for choice in model.pyprune_sparse]


@pytest.mark.parametrize(("kept", "tokens", "format"), [(0.1, 128, "bitmask"), (0.9, 128, None), (0.9, 1, None)])
def test_the_plan_decides(
    monkeypatch: pytest.MonkeyPatch, kept: float, tokens: int, format: str | None, generator: torch.Generator
) -> None:
    monkeypatch.setattr(spmm_plan.backends, "instructions", lambda: "avx2")  # with AVX-512 it decides otherwise
    linear = nn.Linear(768, 768)
    mask = torch.rand(768, 768, generator=generator) < kept
    (choice,) = pyprune.sparsify(nn.Sequential(linear), masks={"0": mask}, tokens=tokens).pyprune_sparse
    assert choice.format == format
    assert choice.reason == f"{'dense' if format is None else 'sparse'} is faster at {tokens} tokens"


@pytest.mark.parametrize(
    ("kernels", "kept", "tokens", "dtype", "wanted", "words"),
    [
        ("cuda", 0.1, 1, torch.bfloat16, "sparse", "sparse is faster at 1 tokens, by analysis"),
        ("cuda", 0.9, 1, torch.bfloat16, "dense", "dense is faster at 1 tokens, by analysis"),
        ("cuda", 0.1, 1024, torch.bfloat16, "dense", "dense is faster at 1024 tokens, by analysis"),
        ("cuda", 0.1, 1, torch.float32, "sparse", "sparse is faster at 1 tokens, by analysis"),
        ("triton", 0.1, 1, torch.bfloat16, "dense", "dense is faster at 1 tokens, by analysis"),
        ("torch", 0.1, 1, torch.bfloat16, "dense", "no sparse kernel here: torch"),
        ("torch", "2:4", 4096, torch.bfloat16, "sparse", "sparse is faster at 4096 tokens"),
        ("torch", "2:4", 4096, torch.float32, "dense", "no sparse kernel here: torch"),
        ("triton", "blocks", 128, torch.bfloat16, "sparse", "sparse is faster at 128 tokens"),
    ],
)
def test_the_plan_of_a_gpu_decides(
    monkeypatch: pytest.MonkeyPatch,
    kernels: str,
    kept: float | str,
    tokens: int,
    dtype: torch.dtype,
    wanted: str,
    words: str,
    generator: torch.Generator,
) -> None:
    monkeypatch.setattr(replace, "arch_of", lambda device: 90)
    monkeypatch.setattr(replace.backends, "choose", lambda op, device: Choice(kernels, len, ()))
    if kept == "2:4":
        halves = torch.rand(64, 16, 4, generator=generator).argsort(-1) < 2
        mask, kept = halves.reshape(64, 64).repeat(64, 64), 0.5
    elif kept == "blocks":
        mask = (torch.rand(128, 128, generator=generator) < 0.1).repeat_interleave(32, 0).repeat_interleave(32, 1)
        kept = 0.1
    else:
        mask = torch.rand(4096, 4096, generator=generator) < kept
    found, reason = replace._on_gpu(mask.to(dtype), mask, float(kept), dtype, tokens)
    assert found == wanted
    assert words in reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_gives_the_same_logits() -> None:
    result = pruned("bert", "classification")
    model = pyprune.sparsify(result.model.cuda(), masks=result.masks, tokens=1)
    assert all("analysis" in choice.reason or "zeros" in choice.reason for choice in model.pyprune_sparse)
    forced = pyprune.sparsify(result.model, "bitmask", masks=result.masks)
    assert all(choice.format in ("bitmask", None) for choice in forced.pyprune_sparse)
    torch.testing.assert_close(logits(forced), logits(result.model), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("half")
def test_any_module_and_formats() -> None:
    shared = nn.Linear(16, 16)
    shared.weight.data[:, 1:] = 0
    model = nn.Sequential(shared, nn.ReLU(), nn.Linear(16, 16), shared)
    dense = copy.deepcopy(model)
    assert pyprune.sparsify(model, inplace=True, dtype=torch.bfloat16) is model
    assert isinstance(model[0], SparseLinear)
    assert model[0] is model[3]
    assert model[0].sparse.dtype == torch.bfloat16
    assert type(model[2]) is nn.Linear
    for format in ("dense", "bitmask", "block"):
        found: SparseLinear = pyprune.sparsify(dense, format)[0]
        assert found.sparse.format == ("dense" if format == "dense" else "rows")
        assert f"format={format}" in repr(found)
        assert torch.equal(found.weight, dense[0].weight)
    dense[2].weight.data[0, :3] = 0
    assert "dense is faster" in str(pyprune.sparsify(dense).pyprune_sparse)


def test_wrong_requests() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(InputError, match="unknown format"):
        pyprune.sparsify(model, "csr")
    with pytest.raises(InputError, match=r"no plain nn\.Linear"):
        pyprune.sparsify(model, masks={"1": torch.ones(8, 8, dtype=torch.bool)})
    with pytest.raises(InputError, match="must be bool and of the weight's shape"):
        pyprune.sparsify(model, "bitmask", masks={"0": torch.zeros(4, 8, dtype=torch.bool)})
