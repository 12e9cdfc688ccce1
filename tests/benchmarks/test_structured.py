# SPDX-License-Identifier: Apache-2.0
"""The benchmark of structured pruning: its settings, tables and picture from made-up results, and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import squad
import structured_tables
import torch
from bench_structured import method_of
from tiny_checkpoint import WORDS, build_tokenizer
from tiny_models import build_model

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


def test_answers(tmp_path: Path) -> None:
    assert squad.overlap("a river bank", ["the bank", "sea"]) == pytest.approx(2 / 3)
    assert squad.exact("An oil crisis.", ["x", "oil crisis"]) == 1.0
    assert squad.exact("", ["x"]) == squad.overlap("", ["x"]) == 0.0
    spans = [None, None, (0, 3), (4, 8), (9, 12)]
    starts, ends = torch.tensor([9.0, 9, 0, 2, 1, 9]), torch.tensor([9.0, 9, 5, 0, 3, 9])
    # The best end lies before the best start, and questions and padding do not count.
    assert squad.best_span(starts, ends, spans) == (0, 3)
    assert squad.best_span(starts, ends - 5.0 * (torch.arange(6) == 2), spans) == (4, 12)
    answers = [{"text": "far", "answer_start": -1}, {"text": "near it", "answer_start": 4}]
    questions = [{"question": "where", "answers": answers}]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "was near it", "qas": questions}]}]}))
    (question,) = squad.read(path)
    assert question.answers == ("far", "near it")
    places = {"context": [None, None, None, (0, 3), (4, 8), (9, 11)]}
    assert squad.targets(places, question) == (4, 5)
    assert squad.targets({"context": places["context"][:5]}, question) is None
    with pytest.raises(InputError, match="SQuAD"):
        squad.read(_file(tmp_path, "b", []))


def test_a_model_learns_answers() -> None:
    tokenizer = build_tokenizer()
    context = " ".join(WORDS[:6])
    questions = [squad.Question(word, context, (word,), context.index(word), word) for word in WORDS[:6]]
    model = build_model("bert", "qa", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = squad.encode(tokenizer, questions)
    before = squad.score(model, tokenizer, questions, rows)
    squad.train(model, tokenizer, questions, epochs=40, rate=3e-3, batch=6, seed=0)
    after = squad.score(model, tokenizer, questions, rows)
    assert before["exact"] < after["exact"] == after["f1"] == 1.0
