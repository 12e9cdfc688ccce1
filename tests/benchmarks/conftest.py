# SPDX-License-Identifier: Apache-2.0
"""Puts the benchmarks, which are scripts and no package, where tests can import them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
