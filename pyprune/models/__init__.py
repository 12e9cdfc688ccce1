# SPDX-License-Identifier: Apache-2.0
"""How to walk an architecture: blocks, linears, and the streams of hidden states through them."""

from __future__ import annotations

from pyprune.models.adapters import Adapter, adapter_for, families

__all__ = ["Adapter", "adapter_for", "families"]
