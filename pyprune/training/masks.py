# SPDX-License-Identifier: Apache-2.0
"""Masks that last through training: of weights, of their gradients, and of what an optimizer remembers of them.

A pruned weight is zero in the forward pass, has no gradient, and no moment that could move it: neither momentum nor
weight decay brings it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyprune.errors import InputError
from pyprune.files import write_atomically
from pyprune.ops.sparse_weight import pack_bits, unpack_bits

_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile


def bare(name: str) -> str:
    """A parameter's name without what wrappers put in front.

    >>> bare("module._orig_mod.bert.pooler.dense.weight"), bare("module.weight")
    ('bert.pooler.dense.weight', 'weight')
    """
    while name.startswith(_WRAPPERS):
        name = name.removeprefix(_WRAPPERS[0]).removeprefix(_WRAPPERS[1])
    return name


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel`` and ``torch.compile``."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def parameters_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Parameters by bare name, whether the model is wrapped or not.

    Raises
    ------
    InputError
        The model has no parameter of a name.
    """
    found = {bare(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"the model has no parameter {missing[0]!r}",
            seen=f"{len(found)} parameters, such as {next(iter(found), None)!r}",
            hint="names as in model.named_parameters(), such as 'bert.encoder.layer.0.output.dense.weight'",
        )
    return {name: found[name] for name in names}


class Masks(Mapping[str, Tensor]):
    """What is kept of each parameter.

    Parameters
    ----------
    masks : mapping of str to Tensor of bool
        By parameter name, in the parameter's shape, True = kept. Prefixes of wrappers (``module.``) are left out.
    monotone : bool
        Hold that what is gone stays gone: an update that would bring a weight back is an error.

    Raises
    ------
    InputError
        A mask that is not bool.

    Examples
    --------
    >>> linear = nn.Linear(4, 1, bias=False)
    >>> masks = Masks({"weight": torch.tensor([[True, False, True, False]])}, monotone=True)
    >>> masks.apply(linear)
    >>> int((linear.weight == 0).sum()), masks.kept, masks.sparsity
    (2, 2, 0.5)
    >>> masks.update({"weight": torch.ones(1, 4, dtype=torch.bool)})
    Traceback (most recent call last):
        ...
    pyprune.errors.InputError: weight: 2 weights that were pruned would come back
      try:   a schedule that never falls, or monotone=False
    """

    def __init__(self, masks: Mapping[str, Tensor], *, monotone: bool = False) -> None:
        self.monotone = monotone
        self._kept: dict[str, Tensor] = {}
        self._gone: dict[str, Tensor] = {}  # the inverse, which is what every step needs
        for name, mask in masks.items():
            self._put(bare(name), mask)

    @classmethod
    def dense(cls, model: nn.Module, names: Iterable[str], *, monotone: bool = False) -> Masks:
        """Everything kept of these parameters."""
        parameters = parameters_of(model, [bare(name) for name in names])
        whole = {name: torch.ones_like(value, dtype=torch.bool) for name, value in parameters.items()}
        return cls(whole, monotone=monotone)

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[bare(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def _put(self, name: str, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise InputError(f"{name}: a mask is bool, True = kept", seen=str(mask.dtype))
        self._kept[name] = mask.detach()
        self._gone[name] = ~mask.detach()

    @property
    def kept(self) -> int:
        """Weights kept."""
        return sum(int(mask.sum()) for mask in self._kept.values())

    @property
    def numel(self) -> int:
        """Weights there are."""
        return sum(mask.numel() for mask in self._kept.values())

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1.0 - self.kept / max(self.numel, 1)

    def update(self, masks: Mapping[str, Tensor], *, counts: Mapping[str, int] | None = None) -> None:
        """Put new masks in the place of those of the same names; all of them, or where one is wrong none.

        Parameters
        ----------
        masks : mapping of str to Tensor of bool
        counts : mapping of str to int, optional
            How many weights each has to keep, exactly.

        Raises
        ------
        InputError
            A name, type, shape or count that does not fit, or with ``monotone`` a weight that would come back.
        """
        new = {bare(name): mask for name, mask in masks.items()}
        for name, mask in new.items():
            if name not in self._kept:
                raise InputError(f"there is no mask of {name!r}", seen=", ".join(list(self._kept)[:3]) + ", ...")
            old = self._kept[name]
            if mask.dtype != torch.bool or mask.shape != old.shape:
                raise InputError(
                    f"{name}: the mask does not fit",
                    asked=f"bool {list(old.shape)}",
                    seen=f"{mask.dtype} {list(mask.shape)}",
                )
            if counts is not None and int(mask.sum()) != counts[name]:
                raise InputError(
                    f"{name}: the mask does not keep the weights that were asked for",
                    asked=str(counts[name]),
                    seen=str(int(mask.sum())),
                )
            if self.monotone and (back := int((mask.to(old.device) & self._gone[name]).sum())):
                raise InputError(
                    f"{name}: {back} weights that were pruned would come back",
                    hint="a schedule that never falls, or monotone=False",
                )
        for name, mask in new.items():
            self._put(name, mask.to(self._kept[name].device))

    def move_to(self, model: nn.Module) -> None:
        """Put every mask where its parameter is.

        Raises
        ------
        InputError
            A parameter is missing, or of another shape.
        """
        for name, parameter in parameters_of(model, self).items():
            if parameter.shape != self._kept[name].shape:
                raise InputError(
                    f"{name}: the mask does not fit the parameter",
                    asked=str(list(parameter.shape)),
                    seen=str(list(self._kept[name].shape)),
                )
            self._put(name, self._kept[name].to(parameter.device))

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Zero the pruned weights, in place; NaN and inf too."""
        for name, parameter in parameters_of(model, self).items():
            parameter.masked_fill_(self._gone[name], 0.0)

    @torch.no_grad()
    def apply_gradients(self, model: nn.Module) -> None:
        """Zero the gradients of pruned weights, in place, where there are gradients."""
        for name, parameter in parameters_of(model, self).items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(self._gone[name], 0.0)

    @torch.no_grad()
    def apply_moments(self, model: nn.Module, optimizer: Any) -> None:
        """Zero what the optimizer remembers of pruned weights: every state in the shape of its parameter.

        Needed when masks change. While gradients are masked, moments of zero stay zero.
        """
        for name, parameter in parameters_of(model, self).items():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                    value.masked_fill_(self._gone[name].to(value.device), 0.0)

    def hook(self, model: nn.Module) -> list[RemovableHandle]:
        """Mask gradients as they arrive: before they are added up, averaged over processes, measured or clipped.

        Masks of later updates are taken up. ``remove()`` the handles to end it.
        """

        def masked(name: str) -> Any:
            return lambda gradient: gradient.masked_fill(self._gone[name], 0.0)

        found: dict[str, Any] = dict(parameters_of(model, self))
        return [tensor.register_hook(masked(name)) for name, tensor in found.items() if tensor.requires_grad]

    def check(self, model: nn.Module) -> None:
        """Raise AssertionError where a pruned weight of the model is not zero."""
        for name, parameter in parameters_of(model, self).items():
            wrong = int(((parameter.detach() != 0) & self._gone[name]).sum())
            assert not wrong, f"{name}: {wrong} pruned weights are not zero"

    def linears(self) -> dict[str, Tensor]:
        """Masks by the name of the linear that has the weight, on the CPU: as :class:`pyprune.PruneResult` has them."""
        return {name.removesuffix(".weight"): mask.cpu() for name, mask in self._kept.items()}

    def packed(self) -> tuple[dict[str, Tensor], str]:
        """Eight to a byte, uint8 by name, and their shapes as JSON."""
        bits = {name: pack_bits(mask.reshape(len(mask), -1).cpu()) for name, mask in self._kept.items()}
        return bits, json.dumps({name: list(mask.shape) for name, mask in self._kept.items()})

    @classmethod
    def unpacked(cls, bits: Mapping[str, Tensor], shapes: str, *, monotone: bool = False) -> Masks:
        """The inverse of :meth:`packed`.

        Raises
        ------
        InputError
            The two do not fit each other.
        """
        try:
            sizes = {name: torch.Size(shape) for name, shape in json.loads(shapes).items()}
            masks = {
                name: unpack_bits(bits[name], size.numel() // size[0]).reshape(size) for name, size in sizes.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, ZeroDivisionError) as error:
            raise InputError("stored masks do not fit their shapes", seen=f"{type(error).__name__}: {error}") from None
        return cls(masks, monotone=monotone)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises
        ------
        InputError
            The disk is full, or the folder cannot be written.
        """
        from safetensors.torch import save

        bits, shapes = self.packed()
        write_atomically(Path(path), save(bits, metadata={"shapes": shapes}), "the masks")

    @classmethod
    def load(cls, path: Path, *, monotone: bool = False) -> Masks:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            The file cannot be read.
        """
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as file:
                bits = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                shapes = file.metadata()["shapes"]
        except Exception as error:  # the library raises its own types
            raise InputError(f"{path} cannot be read", seen=str(error), hint="a file written by Masks.save") from error
        return cls.unpacked(bits, shapes, monotone=monotone)


def prunable(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights of all linears in a model's blocks: what methods prune unless told otherwise.

    Raises
    ------
    InputError
        A model of an unknown family.
    """
    from pyprune.models import adapter_for

    model = unwrapped(model)
    adapter = adapter_for(model)
    return tuple(
        f"{adapter.block_name(model, index)}.{name}.weight"
        for index, block in enumerate(adapter.blocks(model))
        for name in adapter.linears(block)
    )
