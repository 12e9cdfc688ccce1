# SPDX-License-Identifier: Apache-2.0
"""The benchmark of structured pruning: its settings, tables and picture from made-up results, and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import structured_tables
from bench_structured import method_of

from pyprune.errors import InputError
from pyprune.methods import KPrune


def _case(method: str, removed: float, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        **{"method": method, "removed": removed, "seed": seed, "samples": 8, "accuracy": accuracy},
        **{"agreement": 0.75, "divergence": 0.5, "heads": [1, 2], "neurons": [3, 4]},
        "seconds_of": {"measure": 3.0, "solve": 1.0, "total": 4.0},
    }


def _file(folder: Path, name: str, cases: list[dict[str, Any]]) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": f"structured-{name}", "cases": [{"method": "dense", "accuracy": 0.9}, *cases]}))
    return path


def test_settings_are_read() -> None:
    method = method_of("kprune tune=false energy_weight=1e-6 search=fisher")
    assert method == KPrune(tune=False, energy_weight=1e-6, search="fisher")


def test_tables_fill_their_places(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the figure, is not installed")
    runs = [_case("kprune", 0.4, seed, accuracy) for seed, accuracy in enumerate((0.8, 0.9))]
    files = [
        _file(tmp_path, "a", [*runs, _case("kwon", 0.4, 0, 0.5)]),
        _file(tmp_path, "a-ablation", [_case("kprune tune=false", 0.7, 0, 0.625)]),
    ]
    document = tmp_path / "page.md"
    names = ("a", "a-stages", "a-ablation")
    document.write_text("\n".join(f"before\n<!-- {name}:begin -->\nold\n<!-- {name}:end -->" for name in names))
    pictures = []
    for _ in range(2):
        structured_tables.main([*map(str, files), "--document", str(document)])
        pictures.append((tmp_path / "structured.svg").read_bytes())
    text = document.read_text()
    assert "old" not in text
    assert text.count("before") == 3
    assert "| none (dense) |  | 90.0 | 90.0 |" in text
    assert "| 40 % | 2 | 85.0 ± 7.1 | 50.0 |" in text
    assert "| kprune | 4 | – | – | 75.0 | – | – | 25.0 | – | – |" in text
    assert "| 70 % | `kprune tune=false` | 8 | 62.5 | 75.0 | 0.500 | 1 2 | 3 4 |" in text
    assert pictures[0] == pictures[1]
    assert b"kwon" in pictures[0]


def test_other_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="no file of results"):
        structured_tables.read(path)
