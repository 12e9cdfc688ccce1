# SPDX-License-Identifier: Apache-2.0
"""What methods that prune while a model is trained share: lasting masks, schedules, losses, scores, callbacks."""

from __future__ import annotations

from pyprune.training.losses import PUBLISHED, HiddenMaps, LogitsLoss, attention_loss, hidden_loss
from pyprune.training.masks import Masks, prunable
from pyprune.training.schedules import Cubic, Levels, Schedule, changes, cubic, kept, steps_of

__all__ = [
    "PUBLISHED",
    "Cubic",
    "HiddenMaps",
    "Levels",
    "LogitsLoss",
    "Masks",
    "Schedule",
    "attention_loss",
    "changes",
    "cubic",
    "hidden_loss",
    "kept",
    "prunable",
    "steps_of",
]
