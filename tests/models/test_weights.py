# SPDX-License-Identifier: Apache-2.0
"""Files written tensor by tensor are what safetensors reads; random weights follow seed and name alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pyprune.errors import InputError
from pyprune.models.weights import INDEX, WEIGHTS, Checkpoint, RandomWeights, Spec, TensorWriter, shards


def test_written_files_are_read_by_the_library(tmp_path: Path, generator: torch.Generator) -> None:
    # An odd number of bytes first: without an order of types, what follows would lie unaligned.
    tensors = {
        "bits": torch.arange(7, dtype=torch.uint8),
        "half": torch.randn(3, 5, generator=generator).half(),
        "brain": torch.randn(1, generator=generator).bfloat16(),
        "single": torch.randn(4, 3, generator=generator).t(),
        "double": torch.randn(2, 1, 2, generator=generator).double(),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
    }
    specs = {name: Spec(value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    with TensorWriter(tmp_path / "file", specs, {"format": "pt", "note": "ä"}) as writer:
        for name in reversed(tensors):
            writer.put(name, tensors[name])
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "ä"}


def test_a_forgotten_tensor_does_not_go_unnoticed(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="other"),
        TensorWriter(
            tmp_path / "file", {"one": Spec(torch.float32, (1,)), "other": Spec(torch.float32, (1,))}, {}
        ) as writer,
    ):
        writer.put("one", torch.ones(1))


def test_shards() -> None:
    specs = {name: Spec(torch.float32, (size,)) for name, size in (("a", 3), ("b", 2), ("c", 9), ("d", 1), ("e", 1))}
    assert shards(specs, 10**6) == {WEIGHTS: specs}
    parts = shards(specs, 20)  # c is larger than a file and has one of its own
    assert [list(part) for part in parts.values()] == [["a", "b"], ["c"], ["d", "e"]]
    assert list(parts)[1] == "model-00002-of-00003.safetensors"


def test_random_weights_follow_seed_and_name() -> None:
    like = torch.empty(300, 400, device="meta")
    state = torch.get_rng_state()
    one = RandomWeights(3, 0.02).read("layers.0.q_proj.weight", like)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, RandomWeights(3, 0.02).read("layers.0.q_proj.weight", like))
    assert not torch.equal(one, RandomWeights(3, 0.02).read("layers.1.q_proj.weight", like))
    assert not torch.equal(one, RandomWeights(4, 0.02).read("layers.0.q_proj.weight", like))
    assert float(one.std()) == pytest.approx(0.02, rel=0.02)
    assert RandomWeights(0, 0.02).read("norm.weight", torch.empty(3, device="meta")).tolist() == [1.0] * 3
    half = RandomWeights(0, 0.02).read("fc1.bias", torch.empty(2, dtype=torch.bfloat16, device="meta"))
    assert (half.dtype, half.tolist()) == (torch.bfloat16, [0.0, 0.0])


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        Checkpoint(tmp_path)
    save_file({"a": torch.ones(2, 3), "q": torch.ones(2, 3, dtype=torch.int8)}, tmp_path / "part")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "part", "q": "part"}}))
    found = Checkpoint(tmp_path)
    assert found.spec("a", torch.empty(2, 3)).bytes == 24
    assert torch.equal(found.read("a", torch.empty(2, 3)), torch.ones(2, 3))
    for name, shape, message in (
        ("b", (2, 3), "does not hold b"),
        ("a", (3, 2), r"a does not fit[\s\S]*\[3, 2\]"),
        ("q", (2, 3), r"floating-point[\s\S]*I8"),
    ):
        with pytest.raises(InputError, match=message):
            found.spec(name, torch.empty(shape))
    (tmp_path / "part").write_bytes((tmp_path / "part").read_bytes()[:60])
    with pytest.raises(InputError, match="cut short"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        Checkpoint(tmp_path)
