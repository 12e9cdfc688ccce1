# SPDX-License-Identifier: Apache-2.0
"""Streaming second moments of one site: its inputs, and the targets of every linear that reads them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyprune import ops
from pyprune.errors import InputError, NumericsError

# Rows gathered before a kernel is called: enough for a kernel to run at full speed and for the float64 sums
# (8·in² bytes, read and written once per call) to cost little beside the products.
CHUNK = 4096
_CACHED = 256  # rows whose float64 copy stays in the cache: 30 times faster than a float64 norm of all


class Moments:
    """First and second moments of real tokens, summed in float64.

    For a site with input ``x`` and linears ``j`` with targets ``y_j`` it holds, per token,
    ``E[x]``, ``E[x xᵀ]``, ``E[y_j]``, ``E[y_j xᵀ]`` and ``E‖y_j‖²``. That is all a solver needs: for any weight

        E‖y − Wx‖² = E‖y‖² − 2⟨E[y xᵀ], W⟩ + ⟨W E[x xᵀ], W⟩.

    Padding never enters: its rows are left out, not multiplied by zero, so that even NaN there does no harm.

    Parameters
    ----------
    in_features : int
    outputs : mapping of str to int
        Name and number of outputs of each linear that reads the site. May be empty.
    name : str
        Used in errors.
    device : torch.device or str
        Where the sums live; ``add`` takes tensors of this device.
    chunk : int
        Rows gathered before the kernels run.

    Examples
    --------
    >>> x, y = torch.eye(3), torch.ones(3, 2)
    >>> moments = Moments(3, {"query": 2})
    >>> moments.add(x, {"query": y}, torch.tensor([True, True, False]))
    >>> moments.tokens, moments.gram.diagonal().tolist(), moments.target_energy("query")
    (2, [0.5, 0.5, 0.0], 2.0)
    """

    def __init__(
        self,
        in_features: int,
        outputs: Mapping[str, int],
        *,
        name: str = "site",
        device: torch.device | str = "cpu",
        chunk: int = CHUNK,
    ) -> None:
        if in_features < 1 or chunk < 1:
            raise InputError(f"{name}: moments need at least one feature and one row a chunk")
        self.name = name
        self.in_features = in_features
        self.outputs = dict(outputs)
        width = sum(self.outputs.values())
        ends = torch.tensor([0, *self.outputs.values()]).cumsum(0).tolist()
        self._columns = {key: slice(ends[i], ends[i + 1]) for i, key in enumerate(self.outputs)}
        self._tokens = 0
        self._gram = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)
        self._cross = torch.zeros(width, in_features, dtype=torch.float64, device=device)
        self._sum = torch.zeros(in_features, dtype=torch.float64, device=device)
        self._target_sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._target_square = torch.zeros(width, dtype=torch.float64, device=device)
        self._chunk = chunk
        self._held = 0
        self._rows: Tensor | None = None  # [chunk, in], in the dtype of the inputs
        self._targets: Tensor | None = None  # [chunk, width]: one cross_gram call serves all linears

    def add(self, inputs: Tensor, outputs: Mapping[str, Tensor], keep: Tensor | None = None) -> None:
        """Add the tokens of one batch.

        Parameters
        ----------
        inputs : Tensor, shape (..., in)
        outputs : mapping of str to Tensor, shape (..., out)
            One entry for each name given at construction.
        keep : Tensor of bool, shape (...), optional
            ``False`` for padding. Default: all tokens are real.

        Raises
        ------
        InputError
            Names, shapes or the dtype of ``keep`` do not fit.
        """
        self._check(inputs, outputs, keep)
        with torch.no_grad():
            x = inputs.detach().reshape(-1, self.in_features)
            ys = {key: outputs[key].detach().reshape(-1, out) for key, out in self.outputs.items()}
            real = None if keep is None else keep.reshape(-1).nonzero().squeeze(1)
            count = x.shape[0] if real is None else real.shape[0]
            if self._rows is None or self._targets is None:
                self._rows = x.new_empty(self._chunk, self.in_features)
                self._targets = x.new_empty(self._chunk, self._cross.shape[0])
            start = 0
            while start < count:
                taken = min(count - start, self._chunk - self._held)
                pick = slice(start, start + taken) if real is None else real[start : start + taken]
                held = slice(self._held, self._held + taken)
                self._rows[held] = x[pick]
                for key, columns in self._columns.items():
                    self._targets[held, columns] = ys[key][pick]
                self._held += taken
                start += taken
                if self._held == self._chunk:
                    self._flush()

    def _check(self, inputs: Tensor, outputs: Mapping[str, Tensor], keep: Tensor | None) -> None:
        tokens = tuple(inputs.shape[:-1])
        if inputs.dim() < 1 or inputs.shape[-1] != self.in_features:
            raise InputError(f"{self.name}: inputs must be [..., {self.in_features}]", seen=str(list(inputs.shape)))
        if set(outputs) != set(self.outputs):
            raise InputError(
                f"{self.name}: the outputs do not match", asked=str(list(self.outputs)), seen=str(list(outputs))
            )
        for key, out in self.outputs.items():
            if tuple(outputs[key].shape) != (*tokens, out):
                raise InputError(
                    f"{self.name}: outputs of {key!r} must be {[*tokens, out]}",
                    seen=str(list(outputs[key].shape)),
                )
        if keep is not None and (keep.dtype != torch.bool or tuple(keep.shape) != tokens):
            raise InputError(
                f"{self.name}: keep must be bool {list(tokens)}",
                seen=f"{keep.dtype} {list(keep.shape)}",
                hint="attention_mask.bool()",
            )

    def _flush(self) -> None:
        if not self._held or self._rows is None or self._targets is None:
            return
        x, y = self._rows[: self._held], self._targets[: self._held]
        ops.gram(x, out=self._gram)
        if self.outputs:
            ops.cross_gram(y, x, out=self._cross)
        for start in range(0, self._held, _CACHED):
            self._sum += x[start : start + _CACHED].double().sum(dim=0)
            exact = y[start : start + _CACHED].double()
            self._target_sum += exact.sum(dim=0)
            self._target_square += exact.square_().sum(dim=0)
        self._tokens += self._held
        self._held = 0

    def finish(self) -> Moments:
        """Add what is still held, let the chunk go, and check that everything is finite.

        Raises
        ------
        InputError
            No token was added.
        NumericsError
            Inputs or targets held NaN or inf; the message names the site.
        """
        self._flush()
        self._rows = self._targets = None
        if self._tokens == 0:
            raise InputError(f"{self.name}: no real token was seen", hint="check the texts and attention masks")
        parts = {"inputs": (self._gram, self._sum), "outputs": (self._cross, self._target_square)}
        for what, tensors in parts.items():
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                raise NumericsError(
                    f"{self.name}: its {what} are not finite on the calibration text",
                    seen=f"NaN or inf among {self._tokens} tokens",
                    hint="evaluate the dense model first; fp16 weights that overflow need a better checkpoint",
                )
        return self

    @property
    def tokens(self) -> int:
        """Real tokens seen."""
        self._flush()
        return self._tokens

    @property
    def mean(self) -> Tensor:
        """Tensor, shape (in,), float64: ``E[x]``."""
        return self._sum / self._count()

    @property
    def gram(self) -> Tensor:
        """Tensor, shape (in, in), float64: ``E[x xᵀ]``."""
        return self._gram / self._count()

    def cross(self, name: str) -> Tensor:
        """``E[y xᵀ]`` of a linear, float64 ``[out, in]``."""
        return self._cross[self._columns[name]] / self._count()

    def target_mean(self, name: str) -> Tensor:
        """``E[y]`` of a linear, float64 ``[out]``."""
        return self._target_sum[self._columns[name]] / self._count()

    def target_energy(self, name: str) -> float:
        """``E‖y‖²`` of a linear."""
        return float(self._target_square[self._columns[name]].sum()) / self._count()

    def centred(self) -> Centred:
        """The same moments about their means, from which a bias can be refitted.

        Pruning against these and then setting ``b = E[y] − W E[x]`` equals least squares on inputs with a ones
        column appended whose coefficient, the bias, is never pruned.
        """
        return Centred(self)

    def loss(self, name: str, weight: Tensor, bias: Tensor | None) -> float:
        """``E‖y − (Wx + b)‖²`` in float64; ``weight`` ``[out, in]``, ``bias`` ``[out]``."""
        w = weight.detach().double()
        mean = self.mean
        centred = self.centred()
        spread = centred.target_energy(name) - 2.0 * float((centred.cross(name) * w).sum())
        spread += float(((w @ centred.gram) * w).sum())
        # The mean's part is a square by itself, so that it loses no digits to cancellation.
        shift = self.target_mean(name) - w @ mean
        if bias is not None:
            shift = shift - bias.detach().double()
        return max(spread, 0.0) + float(shift.square().sum())

    def error(self, name: str, weight: Tensor, bias: Tensor | None) -> float:
        """``E‖y − (Wx + b)‖² / E‖y‖²``, in float64."""
        energy = self.target_energy(name)
        loss = self.loss(name, weight, bias)
        if energy <= 0.0:
            return 0.0 if loss == 0.0 else float("inf")
        return loss / energy

    def _count(self) -> int:
        if self.tokens == 0:
            raise InputError(f"{self.name}: no real token was seen", hint="call add first")
        return self._tokens


class Centred:
    """:class:`Moments` about the means: covariance of the inputs, and of targets with inputs."""

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._mean = moments.mean
        self._cached: Tensor | None = None

    @property
    def gram(self) -> Tensor:
        """Tensor, shape (in, in), float64: ``E[x xᵀ] − E[x]E[x]ᵀ``."""
        if self._cached is None:
            self._cached = self._moments.gram.addr_(self._mean, self._mean, alpha=-1.0)
        return self._cached

    def cross(self, name: str) -> Tensor:
        """``E[y xᵀ] − E[y]E[x]ᵀ``, float64 ``[out, in]``."""
        return self._moments.cross(name).addr_(self._moments.target_mean(name), self._mean, alpha=-1.0)

    def target_energy(self, name: str) -> float:
        """``E‖y‖² − ‖E[y]‖²``."""
        mean = self._moments.target_mean(name)
        return max(self._moments.target_energy(name) - float(mean.square().sum()), 0.0)

    def bias(self, name: str, weight: Tensor) -> Tensor:
        """The bias that fits best with ``weight``: ``E[y] − W E[x]``, float64 ``[out]``."""
        return self._moments.target_mean(name) - weight.detach().double() @ self._mean
