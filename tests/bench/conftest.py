# SPDX-License-Identifier: Apache-2.0
"""Tiny models, and kernels that are taken out again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoint import build_checkpoint
from tiny_models import one_thread

from pyprune.bench import registry

__all__ = ["one_thread"]


@pytest.fixture(autouse=True)
def _no_kernel_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny classifier, and the same with most weights of its encoder zero."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("pair")
    dense, pruned = build_checkpoint(folder / "dense"), build_checkpoint(folder / "pruned")
    model = AutoModelForSequenceClassification.from_pretrained(dense)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder" in name and parameter.dim() == 2:
                cut = parameter.abs().flatten().kthvalue(int(0.75 * parameter.numel())).values
                parameter.masked_fill_(parameter.abs() <= cut, 0.0)
    model.save_pretrained(pruned)
    return dense, pruned
