# SPDX-License-Identifier: Apache-2.0
"""What is trained in `bench_pruned_training.py`: all seeds of the first group of cells, then those of the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyprune.training import PUBLISHED


@dataclass(frozen=True)
class Cell:
    """One way of pruning while training.

    Attributes
    ----------
    group : str
        The claim that it belongs to.
    name : str
    method : str
        Of :func:`pyprune.train_prune`; or ``"randomized"``, whose ``options`` are candidates and parts of an epoch.
    sparsity : float
        The last one.
    options, losses : mapping
        Of the method; weights and kinds of losses.
    contrast : tuple of str
        CAP's terms; none: without them.
    training : mapping
        Settings that differ from those that all runs share.
    """

    group: str
    name: str
    method: str
    sparsity: float
    options: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Any] = field(default_factory=dict)
    contrast: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)


ALL_TERMS = ("pretrained", "snapshots", "finetuned")
LEVELS = (0.54, 0.83, 0.94)
# Published with some twenty thousand steps and more. In a few hundred a moving average is over fewer steps, and scores
# move faster: at the end they would else be where they began.
GRAIN = {"decay": 0.99}
# Pruning begins when something has been learned: at a tenth of so few steps nothing has, and nothing is afterwards.
# Scores that begin alike have told no weight from another by then: 1,500 steps end at chance, as 200 do.
SCORES = {"rate": 1e-2, "warm_up": 0.2, "start": "size"}
SOFT = {"rate": 1e-1, "warm_up": 0.2, "start": "size"}


def _grain(part: int) -> list[Cell]:
    sparsity = 1.0 - part / 100
    return [
        Cell("grain", f"grain {part} %", "grain", sparsity, GRAIN),
        Cell("grain", f"heads {part} %", "grain", sparsity, {**GRAIN, "unit": "heads"}),
    ]


def _movement(part: int) -> list[Cell]:
    """Beside the masks that movement begins with."""
    sparsity = 1.0 - part / 100
    return [
        Cell("cap", f"magnitude {part} %", "imp", sparsity, {"warm_up": SCORES["warm_up"]}),
        Cell("cap", f"movement from sizes {part} %", "movement", sparsity, SCORES),
        Cell("cap", f"cap-m from sizes {part} %", "movement", sparsity, SCORES, contrast=ALL_TERMS),
    ]


def _soft(penalty: float) -> list[Cell]:
    options = {**SOFT, "soft": penalty}
    return [
        Cell("cap", f"soft-movement {penalty:g}", "soft-movement", 0.9, options),
        Cell("cap", f"cap-soft {penalty:g}", "soft-movement", 0.9, options, contrast=ALL_TERMS),
    ]


def _without_each(part: int) -> list[Cell]:
    found = []
    for term in ALL_TERMS:
        terms = tuple(one for one in ALL_TERMS if one != term)
        name = f"cap-m from sizes {part} % without {term}"
        found.append(Cell("cap", name, "movement", 1.0 - part / 100, SCORES, contrast=terms))
    return found


def _first_order(part: int) -> list[Cell]:
    """In two levels, an epoch each."""
    sparsity = 1.0 - part / 100
    options = {"levels": (sparsity / 2, sparsity)}
    return [
        Cell("cap", f"first-order {part} %", "first-order", sparsity, options),
        Cell("cap", f"cap-f {part} %", "first-order", sparsity, options, contrast=ALL_TERMS),
    ]


# Passes over the rows at each level: 4 masks for 0.25 and the best for 1, or one mask for 2.
RANDOM = {"candidates": 4, "short": 0.25, "long": 1.0}
ALONE = {"candidates": 1, "short": 0.25, "long": 2.0}

# What so much training gives a model that stays whole, with GRAIN's losses.
NOT_PRUNED = Cell(
    "grain", "not pruned", "imp", 0.0, losses={"hard": 0.0, "soft": 1.0, "hidden": 1.0, "logits": PUBLISHED["grain"]}
)

# Embeddings are frozen in all other runs; a product that was just made has to be trained.
WORDS = {"freeze_embeddings": False}
FEWER_WORDS = (
    Cell("grain", "grain 5 %, words trained", "grain", 0.95, GRAIN, training=WORDS),
    Cell("grain", "grain 5 %, words of rank 96", "grain", 0.95, {**GRAIN, "embedding_rank": 96}, training=WORDS),
)

TURNS: tuple[tuple[Cell, ...], ...] = (
    (NOT_PRUNED, *_grain(5), *_first_order(50)),
    (
        Cell("random", "imp", "randomized", LEVELS[-1], ALONE),
        Cell("random", "randomized", "randomized", LEVELS[-1], RANDOM),
    ),
    (
        Cell("grain", "grain 5 % without StructReg", "grain", 0.95, {**GRAIN, "regularisation": 0.0}),
        Cell("grain", "grain 5 % without separation", "grain", 0.95, {**GRAIN, "separate": False}),
        Cell("grain", "grain 5 % without hidden loss", "grain", 0.95, GRAIN, {"hidden": 0.0}),
    ),
    (*_grain(20), *_grain(10), *FEWER_WORDS),
    (*_movement(10), *_without_each(10)),
    (*_movement(50), *_movement(3)),
    (*_soft(1000.0), *_soft(4000.0), *_soft(16000.0)),
    tuple(_first_order(10)),
)
CELLS = tuple(cell for turn in TURNS for cell in turn)
