# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from tiny_models import build_batches, build_model

from pyprune.errors import InputError
from pyprune.training.masks import prunable
from pyprune.training.screening import input_grams, reconstruction_error


def test_grams_are_those_of_what_linears_see():
    model = build_model("bert", layers=1)
    names = prunable(model)
    batches = build_batches(2)
    last = names[-1]
    linear = model.get_submodule(last.removesuffix(".weight"))
    rows = []

    def note(module, inputs):
        rows.append(inputs[0].detach())

    handle = linear.register_forward_pre_hook(note)
    seen = input_grams(model, names, batches)
    handle.remove()
    keep = [batch["attention_mask"].bool() for batch in batches]
    x = torch.cat([row[mask] for row, mask in zip(rows, keep, strict=True)]).double()
    assert torch.allclose(seen[last], x.T @ x / len(x), rtol=1e-5, atol=1e-7)
    assert set(seen) == set(names)
    # A mask that drops one column of the last matrix costs what it contributes.
    mask = torch.ones_like(linear.weight, dtype=torch.bool)
    mask[:, 3] = False
    lost = x[:, 3, None] * linear.weight[:, 3].double()
    wanted = float(lost.square().sum() / (x @ linear.weight.double().T).square().sum())
    weights = {last: linear.weight}
    assert reconstruction_error(weights, {last: mask}, seen) == pytest.approx(wanted, rel=1e-4)
    assert reconstruction_error(weights, {last: torch.ones_like(mask)}, seen) == 0.0
    assert reconstruction_error(weights, {last: torch.zeros_like(mask)}, seen) == pytest.approx(1.0)


def test_what_does_not_fit_is_said():
    model = build_model("bert", layers=1)
    with pytest.raises(InputError, match="not the weight of a linear"):
        input_grams(model, ["bert.embeddings.word_embeddings.weight"], [])
    with pytest.raises(InputError, match="no input"):
        input_grams(model, prunable(model), [])
