# SPDX-License-Identifier: Apache-2.0
"""``SparseGPT`` with the surface of the published class (Frantar & Alistarh 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyprune import solvers
from pyprune.compat import layers
from pyprune.compat.grid import grid_of, rounding_of
from pyprune.compat.problem import pattern_of, problem_of, report, solve_as_published
from pyprune.compat.statistics import InputStatistics
from pyprune.compat.sweep import sweep, sweep_mask
from pyprune.errors import InputError, PypruneError
from pyprune.patterns import NM, Unstructured
from pyprune.solvers import LayerProblem, LayerSolution


class SparseGPT(InputStatistics):
    """Gather a layer's inputs with :meth:`add_batch`, prune it with :meth:`fasterprune`.

    Parameters
    ----------
    layer : nn.Linear, nn.Conv2d or Conv1D of transformers
        Any device, any floating dtype; the pruned weight is written into it.
    solver : str, optional
        One of :func:`pyprune.solvers.available`; default: the class attribute ``default_solver``.

    Attributes
    ----------
    H : Tensor, shape (columns, columns)
        Running mean of outer products, times two, per sample; float32.
    quantizer : optional
        Set it to quantise what is kept, with the protocol of :class:`pyprune.compat.grid.Quantizer`.
    solution : LayerSolution or None
        What the last :meth:`fasterprune` found: mask, error, damping, seconds; until :meth:`free`.

    Examples
    --------
    >>> layer = torch.nn.Linear(8, 4)
    >>> pruner = SparseGPT(layer)
    >>> pruner.add_batch(torch.randn(3, 20, 8), None)
    >>> pruner.fasterprune(0.5)
    >>> int((layer.weight == 0).sum()), pruner.nsamples
    (16, 3)
    """

    default_solver: ClassVar[str] = "sparsegpt"

    def __init__(self, layer: Any, *, solver: str | None = None) -> None:
        super().__init__(layer)
        self.solver = self.default_solver if solver is None else solver
        if self.solver not in solvers.available():
            raise InputError(f"unknown solver {self.solver!r}", hint=f"one of {', '.join(solvers.available())}")
        self.solution: LayerSolution | None = None

    def add_batch(self, inp: Tensor, out: Tensor | None = None, blocksize: int = 1024) -> None:
        """Take in the layer's inputs, as a forward hook gets them (``inp[0]``).

        Parameters
        ----------
        inp : Tensor, shape (samples, tokens, in), (tokens, in) or, of a convolution, (samples, in, height, width)
            Padding cannot be told from tokens here: leave it out before.
        out, blocksize
            Not used; other code passes them.
        """
        self._add(inp, layers.samples_of(self.layer, inp, rows_are_samples=False))

    def fasterprune(
        self,
        sparsity: float,
        prunen: int = 0,
        prunem: int = 0,
        blocksize: int = 128,
        percdamp: float = 0.01,
        *,
        prune_n: int = 0,
        prune_m: int = 0,
    ) -> None:
        """Prune the layer so that its outputs change least, and use ``H`` up.

        Parameters
        ----------
        sparsity : float
            Fraction of zeros in the layer; without effect with ``prunen``.
        prunen, prunem : int
            Remove ``prunen`` of every ``prunem`` consecutive weights along the input dimension.
        blocksize : int
            Columns whose mask ``sparsegpt`` chooses at once.
        percdamp : float
            Ridge relative to the mean diagonal of ``H``.
        prune_n, prune_m : int
            The same as ``prunen`` and ``prunem``, as one fork calls them.

        Raises
        ------
        InputError
            No inputs have been seen, or the pattern does not fit the layer.
        NumericsError
            Weights or inputs hold NaN or inf, or ``H`` is not positive definite at any damping tried.
        """
        pattern = pattern_of(sparsity, prunen or prune_n, prunem or prune_m)
        hessian = self._take()
        try:
            problem = problem_of(layers.matrix_of(self.layer), hessian, layers.name_of(self.layer))
            self.solution = self._solve(problem, pattern, blocksize, percdamp)
        except PypruneError:
            self.H = hessian.to(self._dtype)  # another setting may do
            raise
        layers.write_back(self.layer, self.solution.weight)
        report(problem, self.solution)

    def _solve(
        self, problem: LayerProblem, pattern: Unstructured | NM, blocksize: int, damping: float
    ) -> LayerSolution:
        quantizer = getattr(self, "quantizer", None)
        if quantizer is not None and not quantizer.ready():
            quantizer.find_params(layers.matrix_of(self.layer).float(), weight=True)
        rounding = None if quantizer is None else rounding_of(*grid_of(quantizer, self.rows), quantizer.maxq)
        if rounding is not None and self.solver == "sparsegpt":
            return sweep(problem, pattern, damping, blocksize, rounding=rounding)
        solution = solve_as_published(problem, pattern, self.solver, damping, blocksize)
        if rounding is None:
            return solution
        return sweep_mask(problem, solution.mask, damping, blocksize, rounding)

    def free(self) -> None:
        """Let go of ``H``, and of the solution, which holds it for the error."""
        self.H = None
        self.solution = None
        if self.dev.type == "cuda":
            torch.cuda.empty_cache()
