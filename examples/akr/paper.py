# SPDX-License-Identifier: Apache-2.0
"""What the paper says: Li et al., EMNLP 2023 (arXiv 2310.13191), Table 1, BERT-base under TextFooler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Accuracy, accuracy under attack and attack success rate, in per cent."""

    accuracy: float
    aua: float
    asr: float


@dataclass(frozen=True)
class Protocol:
    """One task of the paper.

    Attributes
    ----------
    task : str
        As ``pyprune.tasks`` knows it.
    model : str
        A fine-tuned BERT-base on the hub; the paper's own checkpoints are not there.
    rows : int, optional
        Rows attacked; None: all.
    max_length : int
        Tokens of a text.
    fine_tuned, averaged : Rates
        The ordinary model, and the average of checkpoints that is pruned.
    pruned : dict of float to Rates
        AKR by sparsity.
    """

    task: str
    model: str
    rows: int | None
    max_length: int
    fine_tuned: Rates
    averaged: Rates
    pruned: dict[float, Rates]


SST2 = Protocol(
    "sst2",
    "textattack/bert-base-uncased-SST-2",
    None,
    128,
    Rates(92.3, 12.7, 86.2),
    Rates(91.4, 30.4, 66.75),
    {0.3: Rates(90.2, 42.3, 53.1), 0.5: Rates(88.31, 43.1, 51.2), 0.875: Rates(85.6, 37.6, 56.1)},
)
AG_NEWS = Protocol(
    "ag_news",
    "textattack/bert-base-uncased-ag-news",
    500,
    256,
    Rates(94.7, 19.1, 80.0),
    Rates(94.4, 48.5, 48.6),
    {0.3: Rates(93.8, 48.6, 48.2), 0.5: Rates(93.4, 48.5, 48.1), 0.875: Rates(92.4, 41.3, 55.3)},
)
IMDB = Protocol(
    "imdb",
    "textattack/bert-base-uncased-imdb",
    500,
    256,
    Rates(95.1, 7.4, 92.2),
    Rates(95.2, 44.4, 53.4),
    {0.3: Rates(94.6, 57.3, 39.4), 0.5: Rates(94.2, 53.2, 43.6), 0.875: Rates(91.6, 35.6, 61.1)},
)
