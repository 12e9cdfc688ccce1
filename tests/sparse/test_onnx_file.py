# SPDX-License-Identifier: Apache-2.0
"""Models as ONNX: what onnxruntime computes is what the model computes, at other lengths and paddings too."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CUTS
from small import pruned
from tiny_models import build_batches, build_model

import pyprune
from pyprune.errors import InputError
from pyprune.sparse.onnx_file import write_onnx
from pyprune.structured import compact

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None,
    reason="onnx and onnxruntime are not installed: pip install 'pyprune[onnx]'",
)


@needs_onnx
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_the_same_outputs(family: str, tmp_path: Path) -> None:
    import onnxruntime

    for name, head in (("uneven heads", "classification"), ("empty halves", "qa"), ("nothing", "none")):
        small: Any = compact(build_model(family, head), CUTS[name])
        path = tmp_path / "made" / f"{name}.onnx"
        found = write_onnx(small.train(), path)
        assert small.training
        small.eval()
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert [entry.name for entry in session.get_inputs()] == found["inputs"]
        assert [entry.name for entry in session.get_outputs()] == found["outputs"]
        assert ("attention_mask" in found["inputs"]) == (name != "nothing")
        one = {key: value[:1, :1] for key, value in build_batches(1)[0].items()}
        for batch in [*build_batches(2), one]:
            types = torch.zeros_like(batch["input_ids"])
            types[:, 1:] = 1
            given = {**batch, "token_type_ids": types}
            got = session.run(None, {key: given[key].numpy() for key in found["inputs"]})
            if "token_type_ids" in found["inputs"]:
                batch = given
            with torch.inference_mode():
                wanted = small(**batch)
            for key, value in zip(found["outputs"], got, strict=True):
                torch.testing.assert_close(torch.from_numpy(value), wanted[key], rtol=0, atol=1e-5)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pyprune\[onnx\]"):
        write_onnx(build_model("bert"), tmp_path / "model.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    result = pruned("bert")
    for model in (
        pyprune.sparsify(result.model, "bitmask", masks=result.masks),
        pyprune.optimize(pruned("bert").model),
    ):
        with pytest.raises(InputError, match="compressed"):
            write_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
