# SPDX-License-Identifier: Apache-2.0
"""save_pretrained of compressed models writes what pyprune.load loads; of optimized ones it says no."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from small import logits, pruned
from torch import nn

import pyprune
from pyprune.errors import InputError
from pyprune.sparse import SparseLinear


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_sparsified_there_and_back(family: str, tmp_path: Path) -> None:
    result = pruned(family, "lm" if family == "llama" else "classification")
    model = pyprune.sparsify(result.model, "bitmask", masks=result.masks)
    model.save_pretrained(tmp_path / "sparse")
    assert not list((tmp_path / "sparse").glob("model*"))  # nothing that transformers would load
    loaded = pyprune.load(tmp_path / "sparse")
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(pyprune.load(tmp_path / "again")), logits(model))
    dense = pyprune.load(tmp_path / "again", dense=True)
    dense.save_pretrained(tmp_path / "dense")  # transformers' own
    assert torch.equal(logits(type(dense).from_pretrained(tmp_path / "dense").eval()), logits(dense))


def test_a_copy_saves_its_own_weights(tmp_path: Path) -> None:
    result = pruned("bert", "classification")
    model = pyprune.sparsify(result.model, "bitmask", masks=result.masks)
    for number, copied in enumerate([copy.deepcopy(model), pickle.loads(pickle.dumps(model))]):
        for module in copied.modules():
            if isinstance(module, SparseLinear) and module.bias is not None:
                nn.init.ones_(module.bias)
        copied.save_pretrained(tmp_path / str(number))
        assert torch.equal(logits(pyprune.load(tmp_path / str(number))), logits(copied))
        assert not torch.equal(logits(copied), logits(model))


def test_trained_values_are_saved(tmp_path: Path) -> None:
    result = pruned("bert", "classification")
    name = next(iter(result.masks))
    model = pyprune.sparsify(
        result.model, "bitmask", masks={n: mask for n, mask in result.masks.items() if n != name}, inplace=True
    )
    path, _, key = name.rpartition(".")
    sparse = SparseLinear.from_linear(model.get_submodule(name), result.masks[name], trainable_values=True)
    setattr(model.get_submodule(path), key, sparse)
    with torch.no_grad():
        sparse.values.mul_(2)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(pyprune.load(tmp_path)), logits(model), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    result = pruned("bert", "classification")
    model = pyprune.sparsify(result.model, "bitmask", masks=result.masks)
    for asked in ({"state_dict": {"a": torch.zeros(1)}}, {"push_to_hub": True}):
        with pytest.raises(InputError, match=next(iter(asked))):
            model.save_pretrained(tmp_path / "no", **asked)
    result.model.save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match="holds a dense model"):
        model.save_pretrained(tmp_path / "dense")
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="form for inference"):
        pyprune.optimize(result.model).save_pretrained(tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
