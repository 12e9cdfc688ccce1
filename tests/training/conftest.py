# SPDX-License-Identifier: Apache-2.0
"""Tiny models for every test of this room."""

from __future__ import annotations

from tiny_models import batches_of, family, kind, one_thread, tiny

__all__ = ["batches_of", "family", "kind", "one_thread", "tiny"]
