# SPDX-License-Identifier: Apache-2.0
"""Smaller models on disk: there and back, also in another process, and files that do not say what they hold."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CUTS
from tiny_checkpoint import build_sentences, build_tokenizer
from tiny_models import build_batches, build_model
from torch import Tensor

import pyprune
from pyprune.errors import InputError
from pyprune.structured import compact

_AGAIN = """
import sys, torch, pyprune
ids = torch.tensor([[5, 9, 7, 3], [8, 6, 4, 2]])
for folder in sys.argv[1:]:
    with torch.inference_mode():
        torch.save(pyprune.load(folder)(input_ids=ids).logits, folder + "/logits.pt")
"""


def _logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=torch.tensor([[5, 9, 7, 3], [8, 6, 4, 2]])).logits
        return found


def test_there_and_back(tmp_path: Path) -> None:
    for family, head in (("bert", "classification"), ("roberta", "classification"), ("distilbert", "masked_lm")):
        for name, units in CUTS.items():
            small, folder = compact(build_model(family, head), units), tmp_path / family / name
            small.save_pretrained(folder)
            loaded = pyprune.load(folder)
            assert type(loaded) is type(small)
            assert not loaded.training
            assert torch.equal(_logits(loaded), _logits(small)), (family, name)
            assert {k: v.requires_grad for k, v in loaded.named_parameters()} == {
                k: v.requires_grad for k, v in small.named_parameters()
            }
    halves = pyprune.load(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert halves.dtype == torch.bfloat16
    assert halves.config._attn_implementation == "eager"
    with pytest.raises(InputError, match="dtype= and attn_implementation= only"):
        pyprune.load(folder, device_map="auto")


def test_in_another_process(tmp_path: Path) -> None:
    folders = []
    for family in ("bert", "distilbert"):
        small, folder = compact(build_model(family), CUTS["empty halves"]), tmp_path / family
        small.save_pretrained(folder)
        folders.append((folder, _logits(small)))
    subprocess.run([sys.executable, "-c", _AGAIN, *(str(folder) for folder, _ in folders)], check=True, timeout=300)
    for folder, wanted in folders:
        torch.testing.assert_close(torch.load(folder / "logits.pt"), wanted, rtol=0, atol=1e-6)


def test_plain_transformers_does_not_take_it_for_its_own(tmp_path: Path) -> None:
    """It would draw what is not there at random."""
    for name in ("whole heads", "nothing"):
        small = compact(build_model("bert"), CUTS[name])
        small.save_pretrained(tmp_path / name)
        with pytest.raises(RuntimeError, match="mismatch"):
            type(small).from_pretrained(tmp_path / name)
    compact(build_model("bert"), CUTS["everything"]).save_pretrained(tmp_path / "all")
    torch.testing.assert_close(
        _logits(type(small).from_pretrained(tmp_path / "all").eval()), _logits(build_model("bert")), rtol=0, atol=1e-6
    )


def test_results_of_pruning(tmp_path: Path) -> None:
    """A smaller model is saved as a result is, with or without the zeros of what is left."""
    small: Any = compact(build_model("bert"), CUTS["whole heads"])
    name = "bert.encoder.layer.0.intermediate.dense"
    mask = small.get_submodule(name).weight.abs() > 0.3
    small.get_submodule(name).weight.data.mul_(mask)
    result = pyprune.PruneResult(small, {name: mask}, {"method": "kprune"})
    for storage in ("dense", "sparse"):
        loaded = pyprune.load(result.save(tmp_path / storage, storage=storage))
        torch.testing.assert_close(_logits(loaded), _logits(small), rtol=0, atol=1e-5)
        assert isinstance(loaded.get_submodule(name), pyprune.SparseLinear) == (storage == "sparse")
    pyprune.result.export(tmp_path / "sparse", tmp_path / "plain", storage="dense")
    assert torch.equal(_logits(pyprune.load(tmp_path / "plain")), _logits(small))


def test_fine_tuned_and_used_as_any_other(tmp_path: Path) -> None:
    import transformers

    compact(build_model("bert"), CUTS["empty halves"]).save_pretrained(tmp_path / "before")
    model, batch = pyprune.load(tmp_path / "before"), build_batches(1)[0]
    model.train()(**batch, labels=torch.tensor([0, 1, 0, 1, 0, 1])).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    model.eval().save_pretrained(tmp_path / "after", state_dict=model.state_dict())  # as a Trainer does
    assert torch.equal(_logits(pyprune.load(tmp_path / "after")), _logits(model))
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=build_tokenizer(), device="cpu")
    answers = pipe(build_sentences(3))
    assert {answer["label"] for answer in answers} <= {"LABEL_0", "LABEL_1"}


def _record(config: dict[str, Any], **changes: Any) -> None:
    config["pyprune"]["layers"][0] |= changes


_HUGE = 10**15


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(pyprune=[]),
        lambda config: config["pyprune"].pop("layers"),
        lambda config: config["pyprune"].update(version=2),
        lambda config: config["pyprune"]["layers"].pop(),
        lambda config: config["pyprune"]["layers"].append(config["pyprune"]["layers"][0]),
        lambda config: config["pyprune"].update(layers=[1, 2]),
        lambda config: _record(config, more=1),
        lambda config: _record(config, neurons=-1),
        lambda config: _record(config, neurons=True),
        lambda config: _record(config, neurons=3),
        lambda config: _record(config, neurons=_HUGE),
        lambda config: (config.update(intermediate_size=_HUGE), _record(config, neurons=_HUGE)),
        lambda config: _record(config, query=[8, 8], value=[8]),
        lambda config: _record(config, query=[9], value=[8]),
        lambda config: _record(config, query=[8], value=[0]),
        lambda config: _record(config, query=[8] * 5, value=[8] * 5),
        lambda config: _record(config, query=[8, 7], value=[8, 7]),
        lambda config: _record(config, query="88", value="88"),
        lambda config: config.update(hidden_size=_HUGE * 4),
        lambda config: (
            config.update(hidden_size=_HUGE * 4),
            _record(config, query=[_HUGE, 1], value=[_HUGE, 1]),
        ),
        lambda config: config.update(num_attention_heads=0),
        lambda config: config.update(num_hidden_layers=10**9),
        lambda config: config.update(vocab_size=_HUGE),
        lambda config: config.update(position_embedding_type="relative_key"),
        lambda config: config.update(model_type="gpt2"),
        lambda config: config.update(is_decoder=True),
        lambda config: config.pop("architectures"),
        lambda config: config.update(architectures=["os.system"]),
    ],
)
def test_hostile_configs(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    compact(build_model("bert"), CUTS["whole heads"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError):
        pyprune.load(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    compact(build_model("bert"), CUTS["whole heads"]).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    name = "bert.encoder.layer.0.attention.self.key.weight"
    for change in ({}, {name: tensors[name][:-1].clone()}, {name: tensors[name].long()}):
        save_file({key: value for key, value in tensors.items() if key != name} | change, path)
        with pytest.raises(InputError, match=r"key\.weight"):
            pyprune.load(tmp_path)
    for data in (whole[:-1], whole[:1000], b"", b"\xff" * 100):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"model\.safetensors"):
            pyprune.load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        pyprune.load(tmp_path)
