# SPDX-License-Identifier: Apache-2.0
"""What methods that prune while a model is trained share: lasting masks, schedules, losses, scores, callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyprune.training.choice import Choice
from pyprune.training.contrast import Contrast
from pyprune.training.contrastive import Bank, contrastive_loss, extra_rows
from pyprune.training.distillation import Parts, PruningLoss
from pyprune.training.first_order_units import FirstOrderPruning
from pyprune.training.losses import PUBLISHED, HiddenMaps, LogitsLoss, attention_loss, hidden_loss
from pyprune.training.masks import Masks, prunable
from pyprune.training.movement import MovementPruning
from pyprune.training.pruning import MagnitudePruning, Pruner, Ramp, State, WeightPruning
from pyprune.training.random_masks import PUBLISHED_DRAWS, MaskDraw, candidate_masks, draw_mask, draw_masks
from pyprune.training.schedules import Cubic, Levels, Schedule, changes, cubic, kept, steps_of
from pyprune.training.scores import first_order, movement, soft_penalty, straight_through, threshold_mask, top_mask
from pyprune.training.unit_pruning import UnitPruning

if TYPE_CHECKING:
    from pyprune.training.callback import PruningCallback

__all__ = [
    "PUBLISHED",
    "PUBLISHED_DRAWS",
    "Bank",
    "Choice",
    "Contrast",
    "Cubic",
    "FirstOrderPruning",
    "HiddenMaps",
    "Levels",
    "LogitsLoss",
    "MagnitudePruning",
    "MaskDraw",
    "Masks",
    "MovementPruning",
    "Parts",
    "Pruner",
    "PruningCallback",
    "PruningLoss",
    "Ramp",
    "Schedule",
    "State",
    "UnitPruning",
    "WeightPruning",
    "attention_loss",
    "candidate_masks",
    "changes",
    "contrastive_loss",
    "cubic",
    "draw_mask",
    "draw_masks",
    "extra_rows",
    "first_order",
    "hidden_loss",
    "kept",
    "movement",
    "prunable",
    "soft_penalty",
    "steps_of",
    "straight_through",
    "threshold_mask",
    "top_mask",
]


def __getattr__(name: str) -> Any:
    # transformers is imported when the callback is asked for: loops of one's own do without.
    if name == "PruningCallback":
        from pyprune.training.callback import PruningCallback

        return PruningCallback
    raise AttributeError(f"module 'pyprune.training' has no attribute {name!r}")
