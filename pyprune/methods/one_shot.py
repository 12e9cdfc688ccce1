# SPDX-License-Identifier: Apache-2.0
"""One-shot methods through the same driver, layer after layer on the inputs of the pruned model.

``magnitude``, ``wanda`` and ``sparsegpt`` follow their papers: second moments about zero, the bias left alone.
"""

from __future__ import annotations

from pyprune.methods.recipe import Recipe

MAGNITUDE = Recipe(
    "magnitude", "magnitude", rectify=False, refit_bias=False, line="the smallest weights go, the rest stay as they are"
)
WANDA = Recipe(
    "wanda", "wanda", rectify=False, refit_bias=False, line="the smallest |weight|·‖input‖ go (Sun et al. 2023)"
)
SPARSEGPT = Recipe(
    "sparsegpt",
    "sparsegpt",
    rectify=False,
    refit_bias=False,
    line="columns in order, errors pushed to the right (Frantar & Alistarh 2023)",
)
OBS = Recipe(
    "obs",
    "obs",
    rectify=False,
    refit_bias=True,
    line="exact greedy OBS towards the layer's own output (Frantar et al. 2022)",
)
