# SPDX-License-Identifier: Apache-2.0
"""AKR: adaptive knowledge-retention pruning (Li et al., EMNLP 2023, arXiv 2310.13191).

Every linear of the encoder is pruned, one group after another, so that its output on the *pruned* model's inputs
copies the dense model's output:

    min_Ŵ ‖Y − X̃ Ŵᵀ‖²   =   ‖Y − X̃ W̄ᵀ‖²  +  tr[(Ŵ − W̄) H (Ŵ − W̄)ᵀ],      H = X̃ᵀX̃ / n

with the rectified dense weight ``W̄ = (C + λW₀)(H + λI)⁻¹``, ``C = YᵀX̃ / n`` (eq. 5). Exact greedy OBS then starts
from ``W̄`` with the same damped ``H``; the result is the restricted least-squares fit of ``Y`` on its support.

Where the paper and its released code leave a choice, this implementation

* protects the bias: statistics are centred and the bias is refitted, which equals a column of ones in ``X̃`` whose
  weight can never be pruned. It is not counted in the sparsity;
* counts real tokens only, and gives each batch its own attention mask;
* centres the ridge (1e-4 of the mean diagonal) on the dense weight, adds it once, and raises it tenfold from the
  undamped gram where the factorisation fails;
* removes exactly as many weights from each row as asked; with N:M a full group only stops losing weights;
* rectifies the first layer too (a no-op up to the ridge);
* leaves the pooler and the classifier as they are: they see one token a sentence, fewer than they have weights a
  row, so that recalibrating them would interpolate the calibration set.
"""

from __future__ import annotations

from pyprune.methods.recipe import Recipe

AKR = Recipe(
    "akr",
    solver="obs",
    rectify=True,
    refit_bias=True,
    line="every layer refitted to the dense model's output, weights removed by exact greedy OBS",
)
