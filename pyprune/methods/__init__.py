# SPDX-License-Identifier: Apache-2.0
"""Whole-model methods: thin recipes over one driver."""

from __future__ import annotations

from pyprune.methods.driver import Progress
from pyprune.methods.entry import available, describe, prune
from pyprune.methods.journal import JournalError
from pyprune.methods.plan import Plan

__all__ = ["JournalError", "Plan", "Progress", "available", "describe", "prune"]
