# SPDX-License-Identifier: Apache-2.0
"""The modelling file: plain transformers loads compact models with it, in a process where this package is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CUTS
from tiny_checkpoint import build_tokenizer
from tiny_models import ENCODERS, build_batches, build_model

import pyprune
from pyprune.errors import InputError
from pyprune.models import adapter_for
from pyprune.sparse.modelling_file import with_modelling
from pyprune.structured import compact, factorise
from pyprune.structured.modelling import auto_map, modelling_text

# Nothing of this package can be imported; a model that is loaded, tuned and saved again is loaded once more.
_ELSEWHERE = """
import os, sys, warnings
sys.modules["pyprune"] = None
import torch, transformers
from pathlib import Path
transformers.utils.logging.set_verbosity_error()
batch = torch.load(sys.argv[1])
for folder in map(Path, sys.argv[2:]):
    head = getattr(transformers, (folder / "auto").read_text())
    attention = "eager" if folder.name.startswith("eager") else "sdpa"
    model = head.from_pretrained(folder, trust_remote_code=True, attn_implementation=attention)
    assert type(model).__module__.endswith("modeling_compact"), type(model)
    found = {"first": model.eval()(**batch)[0]}
    base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    found["base"] = base.eval()(**batch)[0]
    found["first"].square().mean().backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=0.01).step()
    model.save_pretrained(folder / "tuned")
    found["tuned"] = model(**batch)[0]
    again = head.from_pretrained(folder / "tuned", trust_remote_code=True).eval()
    assert torch.allclose(again(**batch)[0], found["tuned"], atol=1e-6)
    torch.save({key: value.detach() for key, value in found.items()}, folder / "found.pt")
# ordinary models of the family are not touched
plain = transformers.AutoModel.from_config(transformers.BertConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=50))
assert plain.encoder.layer[0].intermediate.dense.out_features == 48
"""
_HEADS = {
    "classification": "AutoModelForSequenceClassification",
    "qa": "AutoModelForQuestionAnswering",
    "masked_lm": "AutoModelForMaskedLM",
}


CASES = (
    ("bert", "classification", "uneven heads"),
    ("bert", "qa", "nothing"),
    ("roberta", "masked_lm", "whole heads"),
    ("distilbert", "classification", "empty halves"),
)


def test_the_same_outputs_where_pyprune_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = build_batches(1)[0]
    torch.save(batch, tmp_path / "batch.pt")
    folders: dict[Path, Any] = {}
    for number, (family, head, cut) in enumerate(CASES):
        model = build_model(family, head)
        if head == "classification":
            factorise(model, 6)
        small: Any = compact(model, CUTS[cut])
        small.save_pretrained(tmp_path / f"small{number}")
        attention = "eager" if number % 2 else "sdpa"
        folder = with_modelling(tmp_path / f"small{number}", tmp_path / f"{attention} {family} {head}")
        (folder / "auto").write_text(_HEADS[head], encoding="utf-8")
        folders[folder] = small
        # this package loads the folder as before, and runs nothing of what lies in it
        (folder / "modeling_compact.py").write_text(
            (folder / "modeling_compact.py").read_text() + "\n", encoding="utf-8"
        )
        assert type(pyprune.load(folder)) is type(small)
    assert not [name for name in sys.modules if "modeling_compact" in name]
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", _ELSEWHERE, tmp_path / "batch.pt", *folders]
    subprocess.run([str(part) for part in command], check=True, timeout=300, cwd=tmp_path)
    for folder, small in folders.items():
        found = torch.load(folder / "found.pt")
        with torch.inference_mode():
            torch.testing.assert_close(found["first"], small(**batch)[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(found["base"], small.base_model(**batch)[0], rtol=0, atol=1e-5)
            # what others fine-tuned is loaded here
            tuned = pyprune.load(folder / "tuned")
            torch.testing.assert_close(tuned(**batch)[0], found["tuned"], rtol=0, atol=1e-5)
        assert type(tuned) is type(small)


def test_every_family_has_its_file() -> None:
    import transformers

    for family in ENCODERS:
        model = build_model(family, "qa")
        text = modelling_text(adapter_for(model), type(model), "0")
        compile(text, "modeling_compact.py", "exec")
        for name in auto_map(type(model)).values():
            head = name.removeprefix("modeling_compact.")
            assert f"class {head}(transformers.{head}):" in text
            assert issubclass(getattr(transformers, head), transformers.PreTrainedModel)
        assert f'QUERY, KEY, VALUE = "{adapter_for(model).groups[0][0]}", ' in text


def test_what_is_written(tmp_path: Path) -> None:
    small: Any = compact(build_model("bert"), CUTS["whole heads"])
    small.save_pretrained(tmp_path / "small")
    build_tokenizer().save_pretrained(tmp_path / "small")
    folder = with_modelling(tmp_path / "small", tmp_path / "shared")
    assert {file.name for file in folder.iterdir()} - {file.name for file in (tmp_path / "small").iterdir()} == {
        "modeling_compact.py",
        "pyprune.json",
    }
    text = (folder / "modeling_compact.py").read_text(encoding="utf-8")
    compile(text, "modeling_compact.py", "exec")
    assert "import pyprune" not in text
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"]["AutoModel"] == "modeling_compact.BertModel"
    assert all(name.split(".")[1] in text for name in config["auto_map"].values())


def test_refusals(tmp_path: Path) -> None:
    dense, small = tmp_path / "dense", tmp_path / "small"
    build_model("bert").save_pretrained(dense)  # type: ignore[operator]
    compact(build_model("bert"), CUTS["whole heads"]).save_pretrained(small)  # type: ignore[operator]
    for source, output, message in (
        (dense, tmp_path / "out", "holds no compact model"),
        (tmp_path / "nowhere", tmp_path / "out", "holds no compact model"),
        (small, small, "folder of the model itself"),
        (small, dense, "was not written by pyprune"),
    ):
        with pytest.raises(InputError, match=message):
            with_modelling(source, output)
    (small / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        with_modelling(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()
