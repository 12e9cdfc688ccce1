# SPDX-License-Identifier: Apache-2.0
"""A life of a small model: cut, trimmed, saved; in a fresh process loaded, fine-tuned, exported; answers agree."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CUTS
from tiny_checkpoint import build_sentences, build_tokenizer
from tiny_models import build_model
from torch import Tensor

import pyprune
from pyprune.structured import compact, masked

_FRESH = """
import importlib.util, sys
from pathlib import Path
import torch, transformers, pyprune
from pyprune.sparse.onnx_file import write_onnx
torch.set_num_threads(1)
folder, texts = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
answers = lambda model: model.eval()(**batch).logits.detach()
model = pyprune.load(folder)
found = {"loaded": answers(model), "eager": answers(pyprune.load(folder, attn_implementation="eager"))}
pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
found["scores"] = torch.tensor([[one["score"] for one in sorted(all, key=lambda one: one["label"])]
                                for all in pipe(texts, top_k=None)])
model.train()(**batch, labels=torch.tensor([0, 1] * (len(texts) // 2))).loss.backward()
torch.optim.AdamW(model.parameters(), lr=1e-2).step()
found["tuned"] = answers(model)
model.save_pretrained(folder.parent / "tuned")
tokenizer.save_pretrained(folder.parent / "tuned")
found["compiled"] = torch.compile(model, backend="eager")(**batch).logits.detach()
if importlib.util.find_spec("onnx") is not None:
    write_onnx(model, folder.parent / "tuned.onnx")
torch.save(found, folder.parent / "found.pt")
"""
_TEXTS = build_sentences(8, seed=3)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Folder of all that came about, and the answers by stage."""
    folder = tmp_path_factory.mktemp("life")
    dense: Any = build_model("bert", pad_token_id=0)
    tokenizer, units = build_tokenizer(), CUTS["uneven heads"]
    trimmed = pyprune.trim_vocabulary(compact(dense, units), tokenizer, _TEXTS)
    trimmed.save(folder / "small")
    (folder / "texts.txt").write_text("\n".join(_TEXTS), encoding="utf-8")
    command = [sys.executable, "-c", _FRESH, folder / "small", folder / "texts.txt"]
    subprocess.run([str(part) for part in command], check=True, timeout=300)
    found = torch.load(folder / "found.pt")
    with torch.inference_mode():
        found["masked"] = masked(dense, units)(**_batch(tokenizer)).logits
    return folder, found


def _batch(tokenizer: Any) -> dict[str, Tensor]:
    return dict(tokenizer(_TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False))


def test_answers_agree_at_every_stage(life: tuple[Path, dict[str, Tensor]]) -> None:
    import transformers

    folder, found = life
    for name in ("loaded", "eager"):
        torch.testing.assert_close(found[name], found["masked"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["scores"], found["masked"].softmax(dim=-1), rtol=0, atol=1e-5)
    assert float((found["tuned"] - found["loaded"]).abs().max()) > 1e-2
    torch.testing.assert_close(found["compiled"], found["tuned"], rtol=0, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tuned")
    with torch.inference_mode():
        again = pyprune.load(folder / "tuned")(**_batch(tokenizer)).logits
    torch.testing.assert_close(again, found["tuned"], rtol=0, atol=1e-6)


@pytest.mark.skipif(
    importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None,
    reason="onnx and onnxruntime are not installed: pip install 'pyprune[onnx]'",
)
def test_another_runtime_answers_the_same(life: tuple[Path, dict[str, Tensor]]) -> None:
    import onnxruntime
    import transformers

    folder, found = life
    batch = _batch(transformers.AutoTokenizer.from_pretrained(folder / "tuned"))
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    session = onnxruntime.InferenceSession(str(folder / "tuned.onnx"), providers=["CPUExecutionProvider"])
    given = {entry.name: batch[entry.name].numpy() for entry in session.get_inputs()}
    torch.testing.assert_close(torch.from_numpy(session.run(None, given)[0]), found["tuned"], rtol=0, atol=1e-5)
