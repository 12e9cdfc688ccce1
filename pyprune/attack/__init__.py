# SPDX-License-Identifier: Apache-2.0
"""Attacks on classifiers by TextAttack's recipes: accuracy, accuracy under attack, attack success rate."""

from __future__ import annotations

from pyprune.attack.library import install_line
from pyprune.attack.records import read
from pyprune.attack.resources import Resources
from pyprune.attack.run import AttackResult, run
from pyprune.attack.statistics import compare, summarise

__all__ = ["AttackResult", "Resources", "compare", "install_line", "read", "run", "summarise"]
