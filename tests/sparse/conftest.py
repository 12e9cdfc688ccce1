# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the room."""

from __future__ import annotations

from tiny_models import one_thread

__all__ = ["one_thread"]
