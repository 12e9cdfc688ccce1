# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weight is kept compressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.ops import prepare, spmm
from pyprune.ops.sparse_weight import STORED, SparseWeight, compress, restore
from pyprune.sparse.detect import format_of, geometry_of
from pyprune.sparse.layout import check

_KEYS = ("values", "bits", "scale", "layout")  # of a state dict


class SparseLinear(nn.Module):
    """``y = x Wᵀ + b`` with ``W`` compressed: a drop-in for ``nn.Linear``.

    Sums are float32 and the result has the type of the input, whatever the type of the values; in a region of autocast
    the input is cast as that of ``nn.Linear`` is. There is a gradient for the input and the bias. Memory holds one
    arrangement of the weight, the one that the kernel of its device wants.

    ``.to(dtype)``, ``.half()`` and so on change floating values and the bias as those of ``nn.Linear``; int8 values and
    their float32 scales stay, and float64 leaves the values float32, which loses nothing (trained ones follow). A state
    dict holds the weight in its stored format (docs/format.md): ``values``, ``bits``, ``scale`` and ``layout``. Loading
    one replaces the weight, its format and its type, if the shape is the same.

    Parameters
    ----------
    weight : SparseWeight, shape (out, in)
    bias : Tensor, shape (out,), optional
    trainable_values : bool
        Make the kept weights a parameter, ``values``, to train on with a fixed mask. The layer then computes with the
        dense matrix, made anew in every pass: as slow as ``nn.Linear``, and a little slower. Not with int8 values.

    Attributes
    ----------
    sparse : SparseWeight
        As prepared for the device; ``stored`` is it as a file holds it.
    bias : nn.Parameter or None
    in_features, out_features : int

    Raises
    ------
    InputError
        Shapes that do not fit, or int8 values that should be trained.

    Examples
    --------
    >>> linear = nn.Linear(3, 2)
    >>> sparse = SparseLinear.from_linear(linear, linear.weight.abs() > 0.3)
    >>> bool(torch.allclose(sparse(torch.eye(3)), sparse.weight.T + linear.bias))
    True
    """

    bias: nn.Parameter | None
    values: nn.Parameter | None

    def __init__(self, weight: SparseWeight, bias: Tensor | None = None, *, trainable_values: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise InputError("the bias does not fit", asked=f"[{self.out_features}]", seen=str(list(bias.shape)))
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        self.values = None
        self._kind = (weight.format, weight.geometry) if weight.format in STORED else ("bitmask", (1, 1))
        if trainable_values:
            weight = self._stored(weight)
            if not weight.dtype.is_floating_point:
                raise InputError(f"values of {weight.dtype} cannot be trained", hint="float32, or a half type")
            self.values = nn.Parameter(weight.values)
        self._hold(weight)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        mask: Tensor | None = None,
        format: str = "auto",
        dtype: torch.dtype | None = None,
        *,
        trainable_values: bool = False,
    ) -> SparseLinear:
        """Compress a linear; its bias is shared.

        Parameters
        ----------
        linear : nn.Linear
        mask : Tensor of bool, shape (out, in), optional
            True = kept; by default the weights that are not zero.
        format : {"auto", "dense", "bitmask", "nm", "block"}
            "auto": the one that the mask has (:func:`pyprune.sparse.detect.format_of`); of the others that must be so.
        dtype : torch.dtype, optional
            Of the values: float32, bfloat16, float16 or int8; by default that of the weight.
        trainable_values : bool
            See the class.

        Raises
        ------
        InputError
            The mask does not fit the weight or the format, or a kept weight is not finite.
        """
        weight = compress_as(linear.weight, mask, format, dtype)
        return cls(weight, linear.bias, trainable_values=trainable_values)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(..., in)`` to ``(..., out)``."""
        if self.values is not None:
            return nn.functional.linear(x, self.weight, self.bias)
        device = "cpu" if x.is_cpu else x.device.type
        if torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        bias = self._parameters.get("bias")  # a module's attribute takes as long to find as a tenth of a small product
        return spmm(x, self.sparse, self.bias if bias is None else bias)

    @property
    def weight(self) -> Tensor:
        """The dense matrix, made anew at every look, ``(out, in)``; not to be assigned."""
        return self.sparse.to_dense()

    @property
    def stored(self) -> SparseWeight:
        """The weight as a file holds it, whatever arrangement its kernel wants."""
        return self._stored(self.sparse)

    def extra_repr(self) -> str:
        """Sizes, format and how much is kept."""
        weight = self.stored
        kept = weight.values.numel() / max(self.in_features * self.out_features, 1)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={weight.format}, kept={100 * kept:.4g} %, values={str(weight.dtype).removeprefix('torch.')}"
        )

    def _stored(self, weight: SparseWeight) -> SparseWeight:
        return weight if weight.format in STORED else restore(weight, *self._kind)

    def _hold(self, weight: SparseWeight) -> None:
        """Take a weight; trained values are the parameter itself, in the stored format."""
        if weight.format in STORED:
            self._kind = (weight.format, weight.geometry)
        if self.values is None:
            self.sparse = prepare(weight)
        else:
            self.sparse = replace(weight, parts={**weight.parts, "values": self.values})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        weight = self.stored
        parts = {name: _converted(fn, part) for name, part in weight.parts.items() if part is not self.values}
        scale = None if weight.scale is None else fn(weight.scale).float()
        self._hold(replace(weight, parts=parts, scale=scale))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
        weight = self.stored
        tensors = dict(weight.parts)
        if weight.scale is not None:
            tensors["scale"] = weight.scale
        layout = [STORED.index(weight.format), *weight.shape, *weight.geometry]
        tensors["layout"] = torch.tensor(layout, dtype=torch.int64, device=weight.device)
        for name, tensor in tensors.items():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {name: state_dict[prefix + name] for name in _KEYS if prefix + name in state_dict}
        rest = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in own}
        before = len(missing_keys)
        super()._load_from_state_dict(  # type: ignore[no-untyped-call]
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing_keys[before:] = [key for key in missing_keys[before:] if key != f"{prefix}values"]
        needed = [name for name in ("values", "layout") if name not in own]
        if needed:
            missing_keys += [prefix + name for name in needed] if strict else []
            return
        try:
            weight = check(self._from_state(own))
        except InputError as error:
            error_msgs.append(f"{prefix.rstrip('.')}: {error}")
            return
        if self.values is not None:
            with torch.no_grad():
                self.values = nn.Parameter(weight.values, requires_grad=self.values.requires_grad)
        self._hold(weight)

    def _from_state(self, own: Mapping[str, Tensor]) -> SparseWeight:
        if own["layout"].dtype != torch.int64 or own["layout"].shape != (5,):
            raise InputError("layout is not five whole numbers", seen=f"{own['layout'].dtype}")
        layout = own["layout"].tolist()
        if not 0 <= layout[0] < len(STORED):
            raise InputError("layout begins with an unknown format", seen=f"{layout[0]}", hint=", ".join(STORED))
        shape = (layout[1], layout[2])
        if shape != (self.out_features, self.in_features):
            asked = f"[{self.out_features}, {self.in_features}]"
            raise InputError("the weight has another shape", asked=asked, seen=str(list(shape)))
        device = self.sparse.device
        moved = {name: tensor.detach().to(device, copy=True) for name, tensor in own.items() if name != "layout"}
        scale = moved.pop("scale", None)
        if self.values is not None and not moved["values"].is_floating_point():
            raise InputError("int8 values cannot be trained")
        return SparseWeight(shape, STORED[layout[0]], moved, scale, (layout[3], layout[4]))


def compress_as(
    weight: Tensor, mask: Tensor | None = None, format: str = "auto", dtype: torch.dtype | None = None
) -> SparseWeight:
    """Compress a matrix in a format, or with "auto" in the one its mask has; see :meth:`SparseLinear.from_linear`."""
    weight = weight.detach()
    mask = weight != 0 if mask is None else mask
    if format == "auto":
        format, geometry = format_of(mask)
    else:
        found = geometry_of(mask, format)
        if found is None:
            raise InputError(f"the mask has no pattern to be stored as {format}", hint='format="bitmask"')
        geometry = found
    return compress(weight, mask, format=format, geometry=geometry, dtype=dtype)


def _converted(fn: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
    moved = fn(part)
    return moved.float() if moved.dtype == torch.float64 else moved
