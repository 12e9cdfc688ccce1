# SPDX-License-Identifier: Apache-2.0
"""What calibration gathers: streaming moments of a site's inputs and targets."""

from __future__ import annotations

from pyprune.stats.moments import Moments

__all__ = ["Moments"]
