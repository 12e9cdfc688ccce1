# SPDX-License-Identifier: Apache-2.0
"""Encoders that are physically smaller: heads, channels of heads and neurons that were cut are not there any more."""

from __future__ import annotations

from pyprune.structured.cutting import compact, dense_units, masked, unit_masks
from pyprune.structured.embeddings import factorise, whole_embeddings
from pyprune.structured.expanding import expand
from pyprune.structured.factored import FactoredEmbedding

__all__ = [
    "FactoredEmbedding",
    "compact",
    "dense_units",
    "expand",
    "factorise",
    "masked",
    "unit_masks",
    "whole_embeddings",
]
