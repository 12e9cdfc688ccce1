# SPDX-License-Identifier: Apache-2.0
"""What calibration gathers: streaming moments of a site's inputs and targets, gradients of gates."""

from __future__ import annotations

from pyprune.stats.gates import GateGradients, energies, grouped
from pyprune.stats.moments import Moments

__all__ = ["GateGradients", "Moments", "energies", "grouped"]
