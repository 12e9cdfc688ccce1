# SPDX-License-Identifier: Apache-2.0
"""Embeddings of low rank, as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class FactoredEmbedding(nn.Embedding):
    """Embeddings ``W V``: a table ``W`` of ``rank`` columns behind which a linear without bias has ``Vᵀ``.

    Parameters
    ----------
    num_embeddings : int
    features : int
        Of what comes out.
    rank : int
    **options
        ``padding_idx``, ``device`` and ``dtype`` of :class:`torch.nn.Embedding`.
    """

    def __init__(self, num_embeddings: int, features: int, rank: int, **options: Any) -> None:
        super().__init__(num_embeddings, rank, **options)
        self.projection = nn.Linear(rank, features, bias=False, device=self.weight.device, dtype=self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Ids ``[...]`` to ``[..., features]``."""
        found: Tensor = self.projection(super().forward(input))
        return found
