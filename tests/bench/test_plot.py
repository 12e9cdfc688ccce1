# SPDX-License-Identifier: Apache-2.0
"""The plots of made-up numbers: every case is in them, with its label."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from made_up import model_record, spmm_record

from pyprune.bench import plot
from pyprune.errors import InputError

CASES = [
    (shape, tokens, sparsity, {"pyprune": 1.0, "torch.linear": gain, "scipy": 2.0})
    for shape in ((64, 64), (128, 64))
    for tokens in (1, 8)
    for sparsity, gain in ((0.5, 0.5), (0.9, 8.0))
]


@pytest.fixture
def svg(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


@pytest.mark.usefixtures("svg")
def test_spmm(tmp_path: Path) -> None:
    plot.draw_spmm(spmm_record(*CASES), "pyprune", tmp_path / "a" / "spmm.svg")
    text = (tmp_path / "a" / "spmm.svg").read_text(encoding="utf-8")
    for words in ("64 x 64, float32", "128 x 64, float32", ">50 %: 0.5 x<", ">90 %: 8 x<", "slower than dense"):
        assert words in text, words
    assert "Made-up 9000, 2 threads" in text
    assert "interrupted" not in text


@pytest.mark.usefixtures("svg")
def test_models(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "x"}
    record = model_record(
        (1, "real", {"dense float32": 0.2, "pruned optimize float32": 0.05}),
        (8, "real", {"dense float32": 1.5, "pruned optimize float32": failed}),
        interrupted=True,
    )
    plot.draw_model(record, tmp_path / "model.svg")
    text = (tmp_path / "model.svg").read_text(encoding="utf-8")
    for words in ("batch 1, real sentences", "batch 8, real sentences", "4.00 x   50 ms", "1.00 x   1,500 ms"):
        assert words in text, words
    assert text.count("not timed") == 1
    assert "times as fast as dense float32" in text
    assert "interrupted" in text


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        plot.draw_spmm(spmm_record(((8, 8), 1, 0.5, {"pyprune": 1.0})), "pyprune", tmp_path / "x.png")
    with pytest.raises(InputError, match="nothing to draw"):
        plot.draw_model(model_record(), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match="needs matplotlib"):
        plot.draw_spmm(spmm_record(*CASES), "pyprune", tmp_path / "x.png")
