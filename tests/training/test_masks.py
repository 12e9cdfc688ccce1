# SPDX-License-Identifier: Apache-2.0
"""Masks hold against optimizers, wrappers, autocast and loss scales; counts and order are checked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models import adapter_for
from pyprune.training import Masks, prunable
from pyprune.training.masks import parameters_of, unwrapped

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adam_l2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def random_masks(model: nn.Module, names: tuple[str, ...] = ("0.weight", "2.weight"), **options: Any) -> Masks:
    generator = torch.Generator().manual_seed(1)
    found = parameters_of(model, names)
    return Masks({n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in found.items()}, **options)


def step(model: nn.Module, optimizer: Any, seed: int) -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_nothing_comes_back(kind: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for seed in range(3):  # moments of dense weights
        step(model, optimizer, seed)
    masks = random_masks(model)
    free = copy.deepcopy(model)
    free_optimizer = OPTIMIZERS[kind](free.parameters())
    free_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masks.apply(free)  # and nothing else: this is what moments and gradients do to it
    step(free, free_optimizer, 3)
    with pytest.raises(AssertionError, match="pruned weights are not zero"):
        masks.check(free)

    masks.apply(model)
    masks.apply_moments(model, optimizer)
    masks.hook(model)
    for seed in range(3, 8):
        step(model, optimizer, seed)
        masks.check(model)  # without another call to apply
    assert model[0].bias.grad.abs().sum() > 0
    assert (model[0].weight[masks["0.weight"]] != 0).all()


def test_hooks_follow_updates_and_end_when_removed() -> None:
    model = network()
    masks = Masks.dense(model, ["0.weight"])
    handles = masks.hook(model)
    x = torch.randn(4, 6)
    model(x).sum().backward()
    assert (model[0].weight.grad != 0).all()
    masks.update({"0.weight": torch.arange(30).reshape(5, 6) < 10})
    model.zero_grad()
    for _ in range(2):  # accumulated
        model(x).sum().backward()
    assert (model[0].weight.grad.flatten()[10:] == 0).all()
    assert (model[0].weight.grad.flatten()[:10] != 0).all()
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert (model[0].weight.grad != 0).all()
    masks.apply_gradients(model)
    assert (model[0].weight.grad.flatten()[10:] == 0).all()


def test_not_a_number_is_masked_too() -> None:
    model = network()
    masks = Masks({"0.weight": torch.arange(30).reshape(5, 6) % 2 == 0})
    with torch.no_grad():
        model[0].weight[0, 1], model[0].weight[0, 3] = torch.nan, torch.inf
    model[0].weight.grad = torch.full((5, 6), torch.inf)
    masks.apply(model)
    masks.apply_gradients(model)
    assert model[0].weight.isfinite().all()
    assert (model[0].weight.grad[~masks["0.weight"]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_loss_scale(dtype: torch.dtype) -> None:
    """Gradients are masked whatever their scale; a step that overflows is left out and nothing comes back."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    masks = random_masks(model)
    masks.apply(model)
    masks.hook(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for seed in range(4):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        if seed == 2:
            x = x * torch.inf
        before = model[0].weight.detach().clone()
        with torch.autocast("cpu", dtype=dtype):
            loss = model(x).float().square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        masks.check(model)
        assert torch.equal(before, model[0].weight) == (seed == 2)
    assert scaler.get_scale() == 2.0**9


def test_names_of_wrapped_models() -> None:
    model = network()
    masks = random_masks(model)
    wrapped = nn.DataParallel(model)
    assert next(name for name, _ in wrapped.named_parameters()) == "module.0.weight"
    masks.apply(wrapped)
    masks.check(model)
    assert unwrapped(wrapped) is model
    again = Masks({f"module.{name}": mask for name, mask in masks.items()})
    assert list(again) == list(masks)
    assert torch.equal(again["module.0.weight"], masks["0.weight"])
    compiled = nn.Module()  # as torch.compile wraps it, which would take seconds
    compiled._orig_mod = model
    assert set(parameters_of(compiled, masks)) == set(masks)
    assert unwrapped(compiled) is model


def test_updates_are_checked_before_any_is_taken() -> None:
    model = network()
    masks = random_masks(model, monotone=True)
    before = {name: mask.clone() for name, mask in masks.items()}
    fewer = {name: mask.clone() for name, mask in masks.items()}
    fewer["0.weight"][fewer["0.weight"].nonzero()[0, 0], fewer["0.weight"].nonzero()[0, 1]] = False
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({**fewer, "2.weight": torch.ones(3, 5, dtype=torch.bool)}, "would come back"),
        ({**fewer, "2.weight": torch.ones(3, 4, dtype=torch.bool)}, "does not fit"),
        ({**fewer, "2.weight": torch.zeros(3, 5)}, "does not fit"),
        ({**fewer, "1.weight": torch.zeros(3, 5, dtype=torch.bool)}, "no mask of"),
    ]
    for new, message in wrong:
        with pytest.raises(InputError, match=message):
            masks.update(new)
    counts = {name: int(mask.sum()) for name, mask in fewer.items()}
    with pytest.raises(InputError, match="does not keep the weights"):
        masks.update(fewer, counts={**counts, "2.weight": counts["2.weight"] + 1})
    for name, mask in masks.items():
        assert torch.equal(mask, before[name])
    masks.update(fewer, counts=counts)
    assert masks.kept == sum(counts.values())
    assert masks.sparsity == 1 - masks.kept / 45
    free = Masks(fewer)
    free.update({name: torch.ones_like(mask) for name, mask in fewer.items()})
    assert free.sparsity == 0.0


def test_files_and_packing(tmp_path: Path) -> None:
    masks = random_masks(network())
    masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(tmp_path / "masks.safetensors", monotone=True)
    assert again.monotone
    assert list(again) == list(masks)
    assert all(torch.equal(again[name], masks[name]) for name in masks)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        Masks.load(tmp_path / "bad.safetensors")
    bits, shapes = masks.packed()
    with pytest.raises(InputError, match="do not fit their shapes"):
        Masks.unpacked(bits, shapes.replace("0.weight", "7.weight"))


def test_what_does_not_fit_is_said() -> None:
    model = network()
    with pytest.raises(InputError, match="no parameter 'weight'"):
        Masks({"weight": torch.ones(2, 2, dtype=torch.bool)}).apply(model)
    with pytest.raises(InputError, match="a mask is bool"):
        Masks({"0.weight": torch.ones(5, 6)})
    with pytest.raises(InputError, match="does not fit the parameter"):
        Masks({"0.weight": torch.ones(2, 2, dtype=torch.bool)}).move_to(model)


def test_prunable_names(tiny: Any, family: str) -> None:
    model = tiny(family, "none")
    names = prunable(nn.DataParallel(model))
    assert names == prunable(model)
    blocks = adapter_for(model).blocks(model)
    linears = {id(module.weight) for block in blocks for module in block.modules() if type(module) is nn.Linear}
    assert {id(parameter) for parameter in parameters_of(model, names).values()} == linears
