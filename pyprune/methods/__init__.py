# SPDX-License-Identifier: Apache-2.0
"""Whole-model methods: thin recipes over one driver."""

from __future__ import annotations

from pyprune.methods.averaging import Soup, soup
from pyprune.methods.driver import Progress
from pyprune.methods.entry import prune
from pyprune.methods.journal import JournalError
from pyprune.methods.kprune import KPrune, UnitMagnitude
from pyprune.methods.kwon import Kwon
from pyprune.methods.latency import measure_latency
from pyprune.methods.plan import Plan
from pyprune.methods.randomized import Level, Randomized, prune_randomized
from pyprune.methods.request import available, describe
from pyprune.methods.streaming import StreamResult, prune_streaming
from pyprune.methods.train_recipes import TRAIN_RECIPES
from pyprune.methods.trained import train_prune
from pyprune.methods.trimming import TrimmedVocabulary, trim_vocabulary
from pyprune.methods.units import prune_units

__all__ = [
    "TRAIN_RECIPES",
    "JournalError",
    "KPrune",
    "Kwon",
    "Level",
    "Plan",
    "Progress",
    "Randomized",
    "Soup",
    "StreamResult",
    "TrimmedVocabulary",
    "UnitMagnitude",
    "available",
    "describe",
    "measure_latency",
    "prune",
    "prune_randomized",
    "prune_streaming",
    "prune_units",
    "soup",
    "train_prune",
    "trim_vocabulary",
]
