# SPDX-License-Identifier: Apache-2.0
"""A tiny model, really pruned, and folders with made-up records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import build_checkpoint, build_data
from tiny_models import one_thread

from pyprune.cli import main

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dense``, and pruned from it ``magnitude-50`` and ``akr-75``; not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    train, dev = build_data(folder)
    dense = build_checkpoint(folder / "dense")
    for method, sparsity in (("magnitude", 0.5), ("akr", 0.75)):
        command = ["prune", dense, "--data", train, "--method", method, "--sparsity", sparsity, "--evaluate", dev]
        output = folder / f"{method}-{100 * sparsity:g}"
        assert main([str(word) for word in [*command, "--output", output, "--quiet", "--json"]]) == 0
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of one of these folders, its report changed."""

    def copy(name: str = "akr-75", to: str = "copy", **changed: Any) -> Path:
        folder = shutil.copytree(made / name, tmp_path / to)
        if changed:
            report = json.loads((folder / "pyprune.json").read_text(encoding="utf-8"))
            (folder / "pyprune.json").write_text(json.dumps(report | changed), encoding="utf-8")
        return folder

    return copy


def attack_record(**changed: Any) -> dict[str, Any]:
    """What an attack of 100 rows leaves: 80 right, 20 of them still right under attack."""
    return {
        "recipe": "textfooler",
        "accuracy": 0.8,
        "aua": 0.2,
        "asr": 0.75,
        "queries_mean": 41.5,
        "words_changed": 0.12,
        "total": 100,
        "skipped": 20,
        "seed": 3,
        "sha256": "ab" * 32,
        "model_sha256": "cd" * 32,
        "resources": [
            {"name": "synonyms", "kind": "stand-in", "what": "a list", "source": "list", "sha256": "ef" * 32}
        ],
        **changed,
    }


@pytest.fixture
def attacked(tmp_path: Path) -> Callable[..., Path]:
    """A folder with nothing but ``attack.json``."""

    def write(to: str = "attacked", **changed: Any) -> Path:
        (tmp_path / to).mkdir()
        (tmp_path / to / "attack.json").write_text(json.dumps(attack_record(**changed)), encoding="utf-8")
        return tmp_path / to

    return write
