# SPDX-License-Identifier: Apache-2.0
"""Where the demo's model and sentences lie.

The model (Apache-2.0) and the sentences (CC BY 4.0, Kotzias et al., KDD 2015) are package data; each folder has a
README with its origin and licence.
"""

from __future__ import annotations

from pathlib import Path

from pyprune.errors import InputError

_ASSETS = Path(__file__).parent / "assets"


def model_folder() -> Path:
    """Folder of a BERT classifier of review sentences: 6 layers, 15.6 M parameters, 0 negative, 1 positive."""
    return _existing("reviews-minilm/model.safetensors").parent


def train_file() -> Path:
    """File of 2,372 review sentences with labels (which pruning does not use)."""
    return _existing("review_sentences/train.tsv")


def test_file() -> Path:
    """File of 600 other review sentences with labels."""
    return _existing("review_sentences/test.tsv")


def _existing(name: str) -> Path:
    path = _ASSETS / name
    if not path.is_file():
        raise InputError(
            "the demo's files are not installed", asked=str(path), hint="install pyprune again from a complete checkout"
        )
    return path
