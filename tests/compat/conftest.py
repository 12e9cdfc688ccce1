# SPDX-License-Identifier: Apache-2.0
"""What the tests of this room share."""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_models import one_thread

sys.path[:0] = [str(Path(__file__).parent)]  # published

__all__ = ["one_thread"]
