# SPDX-License-Identifier: Apache-2.0
"""What distinguishes one whole-model method from another: its target, its bias, its solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pyprune.solvers import LayerProblem
from pyprune.stats import Moments


@dataclass(frozen=True)
class Recipe:
    """A method as data; the driver does the rest.

    Attributes
    ----------
    name : str
    solver : str
        One of :func:`pyprune.solvers.available`.
    rectify : bool
        Work towards the dense model's output, ``min E‖Y − X̃Ŵᵀ‖²`` with ``X̃`` the inputs in the pruned model, so
        that the error of the layers below is corrected. False: towards the layer's own dense weight on ``X̃``.
    refit_bias : bool
        Centre the statistics and set the bias to fit (it is never pruned). False: leave it alone.
    line : str
        What it does, for a person.
    """

    name: str
    solver: str
    rectify: bool
    refit_bias: bool
    line: str

    def problems(
        self, moments: Moments, linears: Mapping[str, nn.Linear], names: Mapping[str, str]
    ) -> dict[str, LayerProblem]:
        """One problem per linear of a group; they share the gram and its factorisations.

        Parameters
        ----------
        moments : Moments
            Of the group; its output names are the keys of ``linears``.
        linears : mapping of str to nn.Linear
            Still dense.
        names : mapping of str to str
            Full names, for errors and notes.
        """
        shared: dict[bool, LayerProblem] = {}
        problems = {}
        for key, linear in linears.items():
            # Without a bias there is nothing that could absorb the means.
            centre = self.refit_bias and linear.bias is not None
            view = moments.centred() if centre else moments
            cross = view.cross(key) if self.rectify else None
            energy = view.target_energy(key) if self.rectify else None
            weight = linear.weight.detach()
            if centre in shared:
                problem = shared[centre].sibling(weight, cross, target_energy=energy, name=names[key])
            else:
                problem = LayerProblem(weight, view.gram, cross, target_energy=energy, name=names[key])
                shared[centre] = problem
            problems[key] = problem
        return problems

    def bias(self, moments: Moments, key: str, linear: nn.Linear, weight: Tensor) -> Tensor | None:
        """The bias that goes with the pruned ``weight`` ``[out, in]``, float64 ``[out]``; None where there is none.

        Rectified: ``E[y] − Ŵ E[x]``. Otherwise ``b + (W − Ŵ) E[x]``, which keeps the layer's own mean output.
        """
        if linear.bias is None:
            return None
        if not self.refit_bias:
            return linear.bias.detach().double()
        if self.rectify:
            return moments.centred().bias(key, weight)
        change = linear.weight.detach().double() - weight.double()
        return linear.bias.detach().double() + change @ moments.mean
