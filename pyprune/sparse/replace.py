# SPDX-License-Identifier: Apache-2.0
"""``sparsify``: the linears of a pruned model replaced by compressed ones, where that is faster."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyprune import backends
from pyprune.errors import InputError
from pyprune.models import adapter_for, families
from pyprune.ops.gpu_plan import KERNELS, faster_on_gpu
from pyprune.ops.sparse_weight import STORED, VALUE_TYPES
from pyprune.ops.spmm_gpu import arrangement_of
from pyprune.ops.spmm_plan import faster
from pyprune.sparse.detect import format_of
from pyprune.sparse.linear import SparseLinear, compress_as
from pyprune.sparse.saving import save_compressed, saves_by
from pyprune.triton_kernels.device import arch_of

FORMATS = ("auto", *STORED)


@dataclass(frozen=True)
class Choice:
    """What became of one linear.

    Attributes
    ----------
    name : str
    shape : (int, int)
        ``(out, in)``.
    kept : float
        Fraction of its weights.
    format : str or None
        The stored format; None: it stays an ``nn.Linear``.
    dense_bytes, bytes : int
        Of the weight in memory, before and after.
    reason : str
    """

    name: str
    shape: tuple[int, int]
    kept: float
    format: str | None
    dense_bytes: int
    bytes: int
    reason: str


class Choices(tuple[Choice, ...]):
    """What :func:`sparsify` chose, one :class:`Choice` for every linear it looked at; printed, a short table."""

    def __str__(self) -> str:
        taken = [choice for choice in self if choice.format is not None]
        before, after = sum(choice.dense_bytes for choice in self), sum(choice.bytes for choice in self)
        lines = [f"{len(taken)} of {len(self)} linears are sparse, {_mib(before)} -> {_mib(after)}"]
        kinds: dict[tuple[Any, ...], list[Choice]] = {}
        for choice in self:
            kinds.setdefault((choice.shape, choice.format, choice.reason), []).append(choice)
        for (shape, format, reason), group in kinds.items():
            kept = sum(choice.kept for choice in group) / len(group)
            what = "stays dense" if format is None else format
            lines.append(f"  {len(group):3d} x [{shape[0]}, {shape[1]}]  {what}: {reason}, {100 * kept:.3g} % kept")
        return "\n".join(lines)


def sparsify(
    model: nn.Module,
    format: str = "auto",
    *,
    masks: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    tokens: int = 128,
    inplace: bool = False,
) -> nn.Module:
    """Replace pruned linears by :class:`SparseLinear`.

    Of a known family the linears of the blocks are looked at, of other models all plain ``nn.Linear``; with ``masks``
    those that have one. What was chosen, and why, is in ``model.pyprune_sparse``: print it. The
    ``save_pretrained`` of the model writes the compressed weights, for :func:`pyprune.load`.

    Parameters
    ----------
    model : nn.Module
        Not changed unless ``inplace``.
    format : {"auto", "dense", "bitmask", "nm", "block"}
        "auto": the pattern that a mask has, where the sparse product is the faster one; the other linears stay as they
        are. Any other: compress all that have zeros, in this format.
    masks : mapping of str to Tensor of bool, optional
        By name of the linear, True = kept, as in :attr:`pyprune.PruneResult.masks`; by default the weights that are not
        zero.
    dtype : torch.dtype, optional
        Of the values: float32, bfloat16, float16, or int8 with a scale for each row; by default that of the weight.
    tokens : int
        In a call, as a rule; the choice depends on it.
    inplace : bool
        Change ``model`` itself. Otherwise a copy is made of all but the weights that are compressed.

    Returns
    -------
    nn.Module

    Raises
    ------
    InputError
        An unknown format, a mask for what is no linear, or a mask that does not have the format asked for.

    Examples
    --------
    >>> linear = nn.Linear(8, 4)
    >>> model = sparsify(nn.Sequential(linear), "block", masks={"0": torch.arange(32).reshape(4, 8) % 8 < 2})
    >>> print(model.pyprune_sparse)
    1 of 1 linears are sparse, 0.0 MiB -> 0.0 MiB
        1 x [4, 8]  block: asked for, 25 % kept
    """
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}", hint=", ".join(FORMATS))
    choices, replaced = [], {}
    for name, linear in _linears(model, masks).items():
        mask = linear.weight.detach() != 0 if masks is None else masks[name].to(linear.weight.device)
        chosen, reason = _choose(linear, mask, format, dtype, tokens)
        size = linear.weight.nbytes
        kept = int(mask.sum()) / max(mask.numel(), 1)
        if chosen is None:
            choices.append(Choice(name, (*linear.weight.shape,), kept, None, size, size, reason))
            continue
        weight = compress_as(linear.weight, mask, chosen, dtype)
        bias = linear.bias if inplace else copy.deepcopy(linear.bias)
        sparse = SparseLinear(weight, bias).train(linear.training)
        replaced[id(linear)] = sparse
        choices.append(Choice(name, weight.shape, kept, weight.format, size, sparse.sparse.nbytes, reason))
    if inplace:
        for module in list(model.modules()):
            for key, child in module._modules.items():
                module._modules[key] = replaced.get(id(child), child)
    else:
        model = copy.deepcopy(model, dict(replaced))  # what is in the memo is not copied
    model.pyprune_sparse = Choices(choices)  # type: ignore[assignment]
    if replaced:
        saves_by(model, save_compressed)
    return model


def _linears(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, nn.Linear]:
    modules = dict(model.named_modules())
    if masks is not None:
        for name in masks:
            if type(modules.get(name)) is not nn.Linear:
                raise InputError(f"there is a mask for {name}, which is no plain nn.Linear of the model")
        return {name: modules[name] for name in masks}  # type: ignore[misc]
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family not in families():
        return {name: module for name, module in modules.items() if type(module) is nn.Linear}
    adapter = adapter_for(model)
    return {
        f"{adapter.block_name(model, index)}.{name}": linear
        for index, block in enumerate(adapter.blocks(model))
        for name, linear in adapter.linears(block).items()
    }


def _choose(
    linear: nn.Linear, mask: Tensor, format: str, dtype: torch.dtype | None, tokens: int
) -> tuple[str | None, str]:
    """Format or None, and why."""
    if bool(mask.all()):
        return None, "it has no zeros"
    if format != "auto":
        return format, "asked for"
    out, columns = linear.weight.shape
    kept = int(mask.sum()) / max(mask.numel(), 1)
    values, device = _value_type(linear, dtype), linear.weight.device.type
    if device == "cuda":
        found, reason = _on_gpu(linear.weight, mask, kept, values, tokens)
    elif device == "cpu":
        found = faster(out, columns, kept, dtype=values, tokens=tokens).format
        reason = f"{found} is faster at {tokens} tokens"
    else:
        found, reason = "dense", f"there is no sparse kernel for {device}"
    return ("auto" if found == "sparse" else None), reason


def _on_gpu(weight: Tensor, mask: Tensor, kept: float, values: torch.dtype, tokens: int) -> tuple[str, str]:
    """What is faster, "sparse" or "dense", and why."""
    shape, arch = (weight.shape[0], weight.shape[1]), arch_of(weight.device)
    backend = backends.choose("spmm", "cuda").backend
    arrangement = arrangement_of(shape, values, *format_of(mask), arch, backend)
    if arrangement != "semi" and backend not in KERNELS:
        return "dense", f"there is no sparse kernel here: {backend} is what multiplies on this GPU"
    wide = weight.dtype not in (torch.bfloat16, torch.float16)
    found = faster_on_gpu(
        *shape, kept, dtype=values, tokens=tokens, arch=arch, backend=backend, arrangement=arrangement, wide=wide
    ).format
    return found, f"{found} is faster at {tokens} tokens, by analysis"


def _value_type(linear: nn.Linear, dtype: torch.dtype | None) -> torch.dtype:
    own = linear.weight.dtype if linear.weight.dtype in VALUE_TYPES else torch.float32
    return own if dtype is None else dtype


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
