# SPDX-License-Identifier: Apache-2.0
"""``sparsify_weight`` and its helpers with the signatures of llm-compressor's SparseGPT modifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyprune import ops
from pyprune.compat import layers
from pyprune.compat.problem import pattern_of, problem_of, published_loss, report, solve_as_published
from pyprune.compat.sweep import sweep
from pyprune.errors import InputError

SGPT_PRECISION = torch.float32


def make_empty_hessian(module: Any, device: torch.device | None = None) -> Tensor:
    """Zeros ``[in, in]`` float32 for :func:`accumulate_hessian`, on ``device`` or else where the weight is."""
    columns = layers.shape_of(module)[1]
    return torch.zeros(
        columns, columns, device=module.weight.device if device is None else device, dtype=SGPT_PRECISION
    )


def accumulate_hessian(inp: Tensor, module: Any, H: Tensor, num_samples: int) -> tuple[Tensor, int]:
    """Take a batch into the running mean ``H = 2/n · Σ x xᵀ``.

    Parameters
    ----------
    inp : Tensor, shape (samples, tokens, in), (tokens, in) or, of a convolution, (samples, in, height, width)
    module : nn.Module
    H : Tensor, shape (in, in)
        Changed in place.
    num_samples : int
        Samples in ``H`` so far.

    Returns
    -------
    H, num_samples
        The same tensor, and the new number.
    """
    tokens = layers.tokens_of(module, inp).to(H.device)
    total = num_samples + layers.samples_of(module, inp, rows_are_samples=False)
    if total:
        batch = ops.gram(tokens, out=torch.zeros(H.shape, dtype=torch.float64, device=H.device))
        H.mul_(num_samples / total).add_((batch * (2 / total)).to(H.dtype))
    return H, total


def sparsify_weight(
    module: Any,
    hessians_dict: dict[Any, Tensor],
    sparsity: float,
    prune_n: int,
    prune_m: int,
    block_size: int,
    dampening_frac: float,
    preserve_sparsity_mask: bool,
    *,
    solver: str = "sparsegpt",
) -> tuple[float, Tensor]:
    """Prune a module's weight; the module itself is left as it is.

    Parameters
    ----------
    module : nn.Linear, nn.Conv2d or Conv1D of transformers
    hessians_dict : dict
        Its entry for ``module``, ``[in, in]``, is taken out.
    sparsity : float
        Fraction of zeros, without effect with ``prune_n``.
    prune_n, prune_m : int
        Remove ``prune_n`` of every ``prune_m`` consecutive weights along the input dimension; 0 for unstructured.
    block_size : int
        Columns whose mask ``sparsegpt`` chooses at once.
    dampening_frac : float
        Ridge relative to the mean diagonal.
    preserve_sparsity_mask : bool
        Weights that are zero stay zero and count; needs the solver ``sparsegpt``.
    solver : str
        One of :func:`pyprune.solvers.available`.

    Returns
    -------
    loss : float
        ``½ (w − w₀)(H + λI)(w − w₀)ᵀ``, summed over the rows.
    weight : Tensor
        In the shape and dtype of ``module.weight``.

    Raises
    ------
    InputError
        No Hessian for the module, the pattern does not fit, or more is zero than ``sparsity`` allows.
    NumericsError
        The Hessian is zero, or not positive definite at any damping tried. It is never replaced by another matrix; a
        damping that had to be raised is logged as a warning.
    """
    name = layers.name_of(module)
    if module not in hessians_dict:
        raise InputError(f"{name}: there is no Hessian for this module", hint="accumulate_hessian on its inputs first")
    pattern = pattern_of(sparsity, prune_n, prune_m)
    weight = layers.matrix_of(module)
    problem = problem_of(weight, hessians_dict.pop(module).double(), name)
    if preserve_sparsity_mask:
        if solver != "sparsegpt":
            raise InputError(
                f"{name}: solver {solver!r} cannot preserve a mask",
                hint="solver='sparsegpt', or preserve_sparsity_mask=False",
            )
        solution = sweep(problem, pattern, dampening_frac, block_size, gone=weight == 0)
    else:
        solution = solve_as_published(problem, pattern, solver, dampening_frac, block_size)
    report(problem, solution)
    return published_loss(problem, solution), layers.stored_shape(module, solution.weight)
